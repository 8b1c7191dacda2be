"""Train the field set, confirm it, diagnose it, and say how often the diagnosis was right.

    python -m benchmarks.field confirm    train without gradscope what is not there yet: is each what it is said to be?
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.field import store
from benchmarks.field.case import Case
from benchmarks.field.cases import all_cases
from benchmarks.field.confirm import train_bare
from benchmarks.field.tasks import HALVES


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("confirm",), nargs="?", default="confirm")
    parser.add_argument("--half", choices=HALVES)
    parser.add_argument("--only", default="", help="only cases whose name holds this")
    parser.add_argument("--out", type=Path, default=store.OUT)
    return parser.parse_args(argv)


def chosen_cases(chosen: argparse.Namespace) -> list[Case]:
    """The cases of this half whose names hold what was asked for."""
    return [case for case in all_cases() if chosen.half in (None, case.half) and chosen.only in case.name]


def main(argv: Sequence[str] | None = None) -> int:
    """Do what was asked for."""
    chosen = arguments(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for line in train_bare(chosen_cases(chosen), chosen.out):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
