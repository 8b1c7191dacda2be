"""The short version of `make soak`: a few kills, some hundred steps, some cycles; faults have tests of their own."""

from __future__ import annotations

import os

import pytest
from reliability import soak


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and /proc")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_the_long_run_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--kills", "2", "--steps", "300", "--cycles", "12", "--faults", "0"]) == 0
    told = capsys.readouterr().out
    assert "kills survived: 2 of 2" in told and "in memory: 300 steps" in told and "12 cycles" in told


def test_a_growing_memory_is_seen() -> None:
    samples = [soak.Sample(step, 1000.0 + 2.0 * step, 3 * step, 5.0) for step in range(0, 100, 10)]
    slopes = [soak.slope(samples, what) for what in ("resident", "blocks", "native")]
    assert slopes == pytest.approx([2000.0, 3000.0, 0.0])
    figures = soak.Figures()
    figures.expect(False, "a leak")
    assert figures.failures == ["a leak"]
