"""The chart of reach, made of braille dots."""

from __future__ import annotations

import pytest

from gradscope.report.chart import draw

NAN = float("nan")


def decaying(per_step: float, steps: int = 17) -> list[float]:
    return [10 ** (per_step * lag) for lag in range(steps)]


def test_chart() -> None:
    expected = """\
     1 │⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉ long
       │   ⠈⠑⠢⢄
  1e-1 │       ⠉⠑⠤⢄
       │           ⠉⠑⠤⢄
  1e-2 │               ⠉⠒⠤⡀
       │                  ⠈⠉⠢⠤⡀
  1e-3 │┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄⠈⠉⠢⠤⡀┄┄┄┄┄┄┄
       │                          ⠈⠑⠢⢄
  1e-4 │                              ⠉⠑⠤⢄ short
       └┬───────┬───────┬────────┬───────┬
        0       4       8        12      16
                    steps back"""
    assert draw({"short": decaying(-0.25), "long": decaying(0.0)}, columns=34, rows=8, deepest=-4) == expected


@pytest.mark.parametrize(
    "values",
    [[], [1.0], [NAN] * 9, [0.0] * 9, [1.0, NAN, 0.1, float("inf")], decaying(-3), decaying(2), decaying(-0.01)],
)
def test_chart_of_anything_fits(values: list[float]) -> None:
    lines = draw({"it": values}, columns=40, rows=16, deepest=-9).splitlines()
    assert max(map(len, lines)) <= 8 + 40 + len(" it")
    assert len(lines) <= 24
