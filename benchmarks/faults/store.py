"""Where the trainings are kept, one folder each: what has been done is not done again."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import gradscope
from benchmarks.faults.cases import Case
from gradscope.diagnose.frames import QUANTITIES

NAMES = ("layers", "reach", "gates", "units", "weights", "steps", "clips", "notes")
OUT = Path(__file__).parents[2] / "runs" / "faults"


def folder(case: Case, out: Path, suffix: str = "") -> Path:
    """Where a case is kept."""
    return out / case.part / (case.name + suffix)


def kept(place: Path) -> dict[str, Any] | None:
    """What came of a training, if it was finished."""
    try:
        return json.loads((place / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def keep(place: Path, result: dict[str, Any]) -> None:
    """Write it, all or nothing."""
    place.mkdir(parents=True, exist_ok=True)
    temporary = place / f"result.json.{os.getpid()}"
    temporary.write_text(json.dumps(result), encoding="utf-8")
    temporary.replace(place / "result.json")


@dataclass(frozen=True, slots=True)
class Tables:
    """What was recorded in a training, as far as rules look at it: frames and nothing of ours, to outlast the code."""

    meta: dict[str, Any]
    frames: dict[str, pd.DataFrame]

    def frame(self, table: str, /, **filters: Any) -> pd.DataFrame:
        """As a run gives it."""
        found = self.frames[table]
        for column, wanted in filters.items():
            found = found[found[column].isin(wanted if isinstance(wanted, list) else [wanted])]
        return found.reset_index(drop=True)


def keep_run(place: Path, run: gradscope.Run) -> None:
    """Write what was recorded in memory: files and events for TensorBoard would cost a quarter more."""
    frames = {name: run.frame(name) for name in NAMES}
    frames["timesteps"] = run.frame("timesteps", quantity=list(QUANTITIES))
    (place / "run.tables").write_bytes(pickle.dumps((run.meta, frames)))


def run(place: Path) -> Tables:
    """What was recorded in a training."""
    return Tables(*pickle.loads((place / "run.tables").read_bytes()))  # noqa: S301 - our own file


def begin(place: Path) -> None:
    """Remove what an interrupted training has left."""
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)


def progress(cases: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """The same, with a line on stderr every half minute."""
    began = last = time.monotonic()
    for done, case in enumerate(cases):
        if time.monotonic() - last > 30:
            last = time.monotonic()
            rate = (last - began) / max(done, 1)
            sys.stderr.write(
                f"{what}: {done} of {total}, {rate:.1f} s each, {rate * (total - done) / 60:.0f} min left\n"
            )
        yield case
