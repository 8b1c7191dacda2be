"""Train the fault set, confirm it, diagnose it, and say how often the diagnosis was right.

    python -m benchmarks.faults train                  every training that is not there yet, in runs/faults
    python -m benchmarks.faults train --part tuning    of one part
    python -m benchmarks.faults train --shard 0/2      every second one: two processes share the work
    python -m benchmarks.faults train --again          also those that could not be observed the last time
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.faults import store
from benchmarks.faults.cases import PARTS, Case, all_cases
from benchmarks.faults.training import watch


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train",))
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--shard", default="0/1", help="i/n: only cases i, i + n, ...")
    parser.add_argument("--only", default="", help="only cases whose name holds this")
    parser.add_argument("--again", action="store_true", help="train again what could not be observed")
    parser.add_argument("--out", type=Path, default=store.OUT)
    return parser.parse_args(argv)


def chosen_cases(chosen: argparse.Namespace) -> list[Case]:
    """The cases of this part and shard."""
    index, count = map(int, chosen.shard.split("/"))
    cases = [case for case in all_cases() if chosen.part in (None, case.part)]
    return [case for case in cases[index::count] if chosen.only in case.name]


def train_all(chosen: argparse.Namespace) -> None:
    """Every training that is not there yet."""
    cases = chosen_cases(chosen)
    for case in store.progress(cases, "trained", len(cases)):
        place = store.folder(case, chosen.out)
        known = store.kept(place)
        if known is not None and not (chosen.again and "unobservable" in known):
            continue
        store.begin(place)
        store.keep(place, watch(case, place))


def main(argv: Sequence[str] | None = None) -> int:
    """Do what was asked for."""
    chosen = arguments(argv)
    torch.set_num_threads(1)
    train_all(chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
