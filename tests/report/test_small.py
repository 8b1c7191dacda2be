"""Small pictures made of characters."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("jinja2")
from gradscope.report.small import bar, sparkline  # noqa: E402


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([1.0], "█"),
        ([2.0, 1.0, 0.5, 0.0], "█▅▃▁"),
        ([-1.0, 0.0, 1.0], "▁▅█"),
        ([1000.0, 100.0, 10.0, 1.0], "█▆▃▁"),
        ([1.0, math.nan, math.inf, 1.0], "█ ×█"),
        ([math.inf, math.inf], "××"),
        ([0.0, 0.0], "▁▁"),
        (range(100), "▁▂▃▄▄▅▆▇▇█"),
    ],
)
def test_sparklines(values: list[float], line: str) -> None:
    assert sparkline(values, 10) == line


def test_bars() -> None:
    assert [bar(share, 4) for share in (0.0, 0.5, 1.0, 7.0, 0.3, math.nan)] == [
        "····", "██··", "████", "████", "█▎··", "    ",
    ]  # fmt: skip
