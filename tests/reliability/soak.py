"""The long run: trainings killed at random moments, every fault of the table, and memory over very many steps.

make soak                                     # in full, under 20 minutes
python -m reliability.soak --kills 5 --steps 2000 --cycles 20 --faults 3      # with tests/ on the path
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import subprocess
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reliability.faults import ANY_ROOT, MOUNTED, can_mount
from reliability.meter import Use, can_measure, frozen, in_use, resident
from reliability.stage import EVERY, Often
from reliability.test_faults import holds
from torch import nn

import gradscope
from gradscope.record import ParquetStore, existing, live, sink_thread

MEMORY_LIMIT, DISK_LIMIT = "2M", "512K"
FLUSH_STEPS, RECENT_STEPS = 50, 1024
"""What else a folder's run goes by is made smaller by as much, so that all of it happens many times."""
SAMPLES = 50
PATIENCE = 4.0
"""A kill comes after at most so many times what a short session takes."""


@dataclass
class Figures:
    """What was found; `failures` is what should not be.

    Attributes:
        lines: to print.
        failures: what went wrong, in words.
    """

    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)
        print(line, flush=True)

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.failures.append(what)
            print(f"FAILED: {what}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Everything in turn; 1 if something has failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--faults", type=int, default=10**6, help="so many of the table at most")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=1080.0, help="what is not begun by then is left out, and told")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures, end = Figures(), time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kills(figures, Path(folder), options.kills, until=end - 0.5 * options.seconds)
        steps(figures, options.steps, until=end - 0.25 * options.seconds)
        cycles(figures, options.cycles, until=end - 0.2 * options.seconds)
        faults(figures, Path(folder), options.faults, until=end)
    for failure in figures.failures:
        print(f"FAILED: {failure}")
    return int(bool(figures.failures))


# --- kills


def session(logdir: Path, first: int, count: int) -> None:
    """A training that continues the run in a folder, and flushes at every second step."""
    tiny = Tiny()
    with gradscope.attach(tiny.model, logdir, every=EVERY, first_step=first, strict=True):
        for _ in range(count):
            tiny.step()


def kills(figures: Figures, folder: Path, count: int, until: float) -> None:
    """SIGKILL to a training in a child process; what it leaves is read, and continued."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(existing, "ParquetStore", Often)
        session(folder / "warm", 0, 4)
        found = [_kill(figures, folder / str(n), n) for n in range(count) if time.monotonic() < until]
    lengths = [length for length in found if length is not None]
    figures.say(
        f"kills survived: {len(found)} of {count} asked for; {len(lengths)} left a run, of {min(lengths, default=0)} "
        f"to {max(lengths, default=0)} steps, all read whole and without a warning, all continued"
    )


def _kill(figures: Figures, logdir: Path, number: int) -> int | None:
    began = time.monotonic()
    session(logdir.with_name("pace"), 4 * number, 4)
    pace = time.monotonic() - began
    child = os.fork()
    if not child:
        try:
            for first in range(0, 10**6, 8):
                session(logdir, first, 8)
        finally:
            os._exit(1)
    time.sleep(random.Random(number).uniform(0, PATIENCE) * pace)
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    figures.expect(status == -signal.SIGKILL, f"kill {number}: the child had ended by itself with {status}")
    if not (logdir / "gradscope/run.json").exists():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        length = _whole(figures, logdir, f"kill {number}")
        session(logdir, length, 2)
        figures.expect(_whole(figures, logdir, f"kill {number}, continued") == length + 2, f"kill {number}: continued")
    return length


def _whole(figures: Figures, logdir: Path, what: str) -> int:
    """How many steps there are, gapless, each with all that belongs to it."""
    run = gradscope.load(logdir)
    frame = run.frame("steps")
    recorded = set(frame.loc[frame["recorded"], "step"])
    figures.expect(frame["step"].tolist() == list(range(len(frame))), f"{what}: steps have gaps")
    for table in ("layers", "timesteps", "gates", "reach"):
        figures.expect(set(run.frame(table)["step"]) == recorded, f"{what}: {table} and steps differ")
    return len(frame)


# --- memory


class Tiny:
    """A training step as small as can be: what is measured is ours."""

    def __init__(self) -> None:
        self.model, self.x = nn.GRU(2, 2), torch.randn(2, 2, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-4)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.x)[0].sum().backward()
        self.optimizer.step()


@dataclass(frozen=True)
class Sample:
    """Memory after a step.

    Attributes:
        step: how many steps there have been.
        resident: KiB.
        blocks: Python's, in use.
        native: KiB in use.
    """

    step: int
    resident: float
    blocks: int
    native: float


def sample(step: int) -> Sample:
    use = in_use() if can_measure() else Use(0, 0)
    return Sample(step, resident(), use.blocks, use.native / 1024)


def steps(figures: Figures, count: int, until: float) -> None:
    """Memory of a run in memory, once it has reached its limit; and of a folder."""
    for name, share in (("in memory", 1.0), ("in a folder", 0.5)):
        if not count:
            break
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder, frozen():
            patch.setenv("GRADSCOPE_MEMORY_LIMIT", MEMORY_LIMIT)
            patch.setenv("GRADSCOPE_DISK_LIMIT", DISK_LIMIT)
            patch.setattr(existing, "ParquetStore", partial(ParquetStore, flush_steps=FLUSH_STEPS))
            patch.setattr(live, "STEPS", RECENT_STEPS)
            logdir = None if name == "in memory" else folder
            samples, run = _trained(int(count * share), logdir, until)
            _tell(figures, name, samples, run)


def _trained(count: int, logdir: str | None, until: float) -> tuple[list[Sample], Any]:
    tiny, every = Tiny(), max(1, count // SAMPLES)
    samples: list[Sample] = []
    with gradscope.attach(tiny.model, logdir, every=16, strict=True) as scope:
        for step in range(1, count + 1):
            tiny.step()
            if step % every == 0:
                samples.append(sample(step))
                if time.monotonic() > until:
                    break
    return samples, scope.run


def slope(samples: list[Sample], what: str) -> float:
    """So much more for each 1,000 steps, over the second half."""
    half = np.array([(one.step, getattr(one, what)) for one in samples[len(samples) // 2 :]])
    return 1000 * float(np.polyfit(half[:, 0], half[:, 1], 1)[0]) if len(half) > 1 else 0.0


def _tell(figures: Figures, name: str, samples: list[Sample], run: Any) -> None:
    first, middle, last = samples[0], samples[len(samples) // 2], samples[-1]
    kept, records = len(run.frame("steps")), run.frame("layers")["step"].nunique()
    said = run.frame("notes")["reason"].str.contains("at its limit").sum()
    at = ", ".join(f"{one.resident / 1024:.1f} MiB after {one.step:,}" for one in (first, middle, last))
    grows = [slope(samples, what) for what in ("resident", "native", "blocks")]
    figures.say(
        f"{name}: {last.step:,} steps; resident memory {at} steps; slope of the second half for each 1,000 steps "
        f"{grows[0]:+.1f} KiB resident, {grows[1]:+.1f} KiB in use in C, {grows[2]:+.1f} blocks of Python's; "
        f"{kept:,} rows of steps and {records:,} records kept, {said:,} notes of thinning among them"
    )
    for what, grown in (("resident", last.resident - middle.resident), ("in use", last.native - middle.native)):
        figures.expect(grown < 16 * 1024, f"{name}: memory {what} grew by {grown / 1024:.1f} MiB over the second half")


def cycles(figures: Figures, count: int, until: float) -> None:
    """Attach, a step, close; objects and memory after a tenth of them, and at the end."""
    tiny, made, marks = Tiny(), 0, list[tuple[int, float, int]]()
    with frozen():
        for made in range(1, count + 1):
            with gradscope.attach(tiny.model, every=1, strict=True):
                tiny.step()
            if made % max(1, count // 10) == 0:
                marks.append((made, resident(), len(gc.get_objects())))
                if time.monotonic() > until:
                    break
    if not marks:
        return
    first, last = marks[0], marks[-1]
    figures.say(
        f"attach and close: {made:,} cycles; from cycle {first[0]} on resident memory {last[1] - first[1]:+.0f} KiB, "
        f"{last[2] - first[2]:+d} Python objects"
    )
    figures.expect(last[2] - first[2] < 200, f"{last[2] - first[2]} objects were left by {made - first[0]} cycles")


# --- faults


def faults(figures: Figures, folder: Path, most: int, until: float) -> None:
    """Every fault of the table, as the tests have them."""
    outcomes: dict[str, str] = {}
    for number, fault in enumerate((*ANY_ROOT, *MOUNTED)[:most]):
        if time.monotonic() > until:
            break
        place = folder / f"fault-{number}"
        place.mkdir()
        with _hurried() as patch:
            if fault in MOUNTED and not can_mount(place):
                outcomes[fault.name] = "not here: this process may not mount"
                continue
            try:
                holds(fault, place / "run", patch)
                outcomes[fault.name] = "as promised"
            except Exception as error:
                outcomes[fault.name] = f"{type(error).__name__}: {error}"
                figures.expect(False, f"{fault.name}: {error}")
            for mounted in (place / "run", place):
                subprocess.run(["umount", "--lazy", str(mounted)], capture_output=True)
    good = sum(outcome == "as promised" for outcome in outcomes.values())
    figures.say(f"faults injected: {len(outcomes)} of {len(ANY_ROOT) + len(MOUNTED)}; {good} as promised")
    for name, outcome in outcomes.items():
        figures.say(f"  {name}: {outcome}")


def _hurried() -> Any:
    return _Hurried()


class _Hurried:
    """Sinks are waited for no longer than a test does."""

    def __enter__(self) -> pytest.MonkeyPatch:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(sink_thread, "PATIENCE_S", 0.02)
        self.patch.setattr(sink_thread.SinkThread.__init__, "__kwdefaults__", {"close_s": 0.2})
        return self.patch

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


if __name__ == "__main__":
    raise SystemExit(main())
