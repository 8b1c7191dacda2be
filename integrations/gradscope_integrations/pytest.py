"""The pytest plugin: a fixture that attaches for as long as a test runs.

    def test_gradients_reach_the_beginning(gradscope_attach):
        scope = gradscope_attach(model)
        train(model, steps=20)
        gradscope.testing.assert_no_findings(scope.run)

It is loaded whenever pytest starts, and imports nothing then but pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import nn

    from gradscope import Scope


@pytest.fixture
def gradscope_attach() -> Iterator[Callable[..., Scope]]:
    """`gradscope.attach` with `every=1` and `strict=True`; scopes are closed when the test is over, failed or not."""
    import gradscope

    with ExitStack() as scopes:

        def attach(model: nn.Module, logdir: Any = None, **arguments: Any) -> Scope:
            given: dict[str, Any] = {"every": 1, "strict": True, **arguments}
            return scopes.enter_context(gradscope.attach(model, logdir, **given))

        yield attach
