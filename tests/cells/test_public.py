from __future__ import annotations

import gradscope.cells


def test_every_public_name_has_an_example() -> None:
    for name in gradscope.cells.__all__:
        if name != "Cell":  # abstract: its example is every other
            assert ">>>" in (getattr(gradscope.cells, name).__doc__ or ""), name
