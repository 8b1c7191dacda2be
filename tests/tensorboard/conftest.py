"""A TensorBoard with either of its data loaders."""

from __future__ import annotations

import pytest

pytest.importorskip("tensorboard")
import boards  # noqa: E402, F401  (imports TensorBoard with its own deprecations left aside, whatever test comes first)


@pytest.fixture(scope="module", params=["rust", "python"])
def loader(request: pytest.FixtureRequest) -> str:
    """Which data loader; the fast one is not there on every machine."""
    if request.param == "rust":
        pytest.importorskip("tensorboard_data_server", reason="no fast data loader for this machine")
    return request.param
