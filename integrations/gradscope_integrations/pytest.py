"""The pytest plugin: a fixture that attaches for the duration of a test.

    def test_gradients_reach_the_beginning(gradscope_attach):
        scope = gradscope_attach(model)
        train(model, steps=20)
        gradscope.testing.assert_no_findings(scope.run)

Every pytest session loads it; until a test uses the fixture, it imports nothing but pytest.
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
    """`gradscope.attach` with `every=1` and `strict=True`; closes the scopes after the test, failed or not."""
    import gradscope

    with ExitStack() as scopes:

        def attach(model: nn.Module, logdir: Any = None, **arguments: Any) -> Scope:
            options: dict[str, Any] = {"every": 1, "strict": True, **arguments}
            return scopes.enter_context(gradscope.attach(model, logdir, **options))

        yield attach
