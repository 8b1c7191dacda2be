"""A training with two scopes on its network: one as by default, one that records every eighth step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from torch import nn

import gradscope
from benchmarks.field import store
from benchmarks.field.case import Case
from benchmarks.field.clock import processor_time
from benchmarks.field.loop import train

EVERY = 8
DEFAULT, REGULAR = "default", f"every={EVERY}"
MODES = (DEFAULT, REGULAR)


def both(place: Path) -> Callable[[nn.Module], AbstractContextManager[None]]:
    """Both scopes at once: neither changes the training, so that each sees what it would see alone."""

    @contextmanager
    def watch(model: nn.Module) -> Iterator[None]:
        with (
            processor_time(),
            gradscope.attach(model, logdir=place / DEFAULT),
            gradscope.attach(model, logdir=place / REGULAR, every=EVERY),
        ):
            yield

    return watch


def watched(case: Case, out: Path) -> dict[str, Any]:
    """Train a case with both, unless that has been done."""
    place = out / "watched" / case.key()
    found = store.kept(place)
    if found is None:
        store.begin(place)
        began = time.process_time()
        result = train(case.work, case.setup, case.seed, both(place))
        found = {"score": result.score, "losses": result.losses, "cpu_s": time.process_time() - began}
        store.keep(place, found)
    return found
