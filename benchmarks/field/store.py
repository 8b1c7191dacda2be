"""Where trainings are kept, one folder each: what has been done is not done again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.faults.store import begin, keep, kept, progress
from benchmarks.field.loop import train
from benchmarks.field.setup import Setup
from benchmarks.field.task import Task

OUT = Path(__file__).parents[2] / "build" / "field"
__all__ = ["OUT", "bare", "begin", "keep", "kept", "known", "progress"]


def known(key: str, out: Path) -> dict[str, Any] | None:
    """What came of a training without gradscope or with it: with a scope attached it is the same, bit for bit."""
    return kept(out / "watched" / key) or kept(out / "bare" / key)


def bare(task: Task, setup: Setup, seed: int, out: Path) -> dict[str, Any]:
    """Train without gradscope, unless that has been done in one way or the other."""
    key = setup.key(task.name, seed)
    found = known(key, out)
    if found is None:
        began = time.process_time()
        result = train(task, setup, seed)
        found = {"score": result.score, "losses": result.losses, "cpu_s": time.process_time() - began}
        keep(out / "bare" / key, found)
    return found
