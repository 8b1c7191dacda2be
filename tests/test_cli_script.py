"""Tracebacks of a script under `gradscope run`: our frames are in none of them."""

from __future__ import annotations

import re

import pytest

import gradscope

pytest.importorskip("click")
from gradscope.cli import script  # noqa: E402


def frames(error: BaseException) -> list[str]:
    names, trace = [], error.__traceback__
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    return names


def test_our_frames_are_taken_out_of_whole_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    house = re.escape(script._HOUSE)
    assert re.match(house, gradscope.__file__)
    ours = compile("def ours(call):\n    call()\n", f"{script._HOUSE}made_up.py", "exec")
    space: dict[str, object] = {}
    exec(ours, space)

    def inner() -> None:
        raise ValueError("inner")

    def outer() -> None:
        try:
            space["ours"](inner)  # type: ignore[operator]
        except ValueError as error:
            raise KeyError("outer") from error

    with pytest.raises(KeyError) as caught:
        space["ours"](outer)  # type: ignore[operator]
    error = caught.value
    assert "ours" in frames(error) and error.__cause__ and "ours" in frames(error.__cause__)
    script.clean(error)
    assert "ours" not in frames(error) and frames(error)[-1] == "outer"
    assert frames(error.__cause__) == ["outer", "inner"]
