"""Train the fault set, confirm it, diagnose it, and say how often the diagnosis was right.

    python -m benchmarks.faults                        all of it: what is not there yet is trained, then the figures
    python -m benchmarks.faults train                  every training that is not there yet, in runs/faults
    python -m benchmarks.faults train --part tuning    of one part
    python -m benchmarks.faults train --shard 0/2      every second one: two processes share the work
    python -m benchmarks.faults train --again          also those that could not be observed the last time
    python -m benchmarks.faults report --write         what is there so far, also at the end of docs/diagnosis.md

The rules were tuned on the tuning part alone. The first run takes about an hour on one core, and everything
is kept: remove runs/faults to begin anew, or --only what a name holds to look at some. Faulty configurations come
first, one of every kind of fault after the other, each with its healthy twins, its remedies and its other scales before
the next: wherever it is stopped, what is there is a random sample of each kind.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.faults import pursue, store
from benchmarks.faults.cases import PARTS, Case, all_cases
from benchmarks.faults.confirm import configurations
from benchmarks.faults.report import report, write


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("all", "train", "report"), nargs="?", default="all")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--shard", default="0/1", help="i/n: only cases i, i + n, ...")
    parser.add_argument("--only", default="", help="only cases whose name holds this")
    parser.add_argument("--again", action="store_true", help="train again what could not be observed")
    parser.add_argument("--no-cures", action="store_true", help="leave out whether remedies restore learning")
    parser.add_argument("--no-scales", action="store_true", help="leave out the scaled losses")
    parser.add_argument("--write", action="store_true", help="the figures also to docs/diagnosis.md")
    parser.add_argument("--out", type=Path, default=store.OUT)
    return parser.parse_args(argv)


def chosen_cases(chosen: argparse.Namespace) -> list[list[Case]]:
    """The configurations of this part and shard, in a random order that is always the same.

    The faulty ones come first: one of every kind, then a second of every kind, and so on.
    """
    found = configurations([case for case in all_cases() if chosen.part in (None, case.part)])
    random.Random(0).shuffle(found)
    turn: Counter[str] = Counter()
    rank: dict[int, int] = {}
    for place, members in enumerate(found):
        turn[members[0].fault] += 1
        rank[place] = turn[members[0].fault] if members[0].fault else len(found)
    found = [found[place] for place in sorted(rank, key=lambda place: rank[place])]
    index, count = map(int, chosen.shard.split("/"))
    return [members for members in found[index::count] if any(chosen.only in case.name for case in members)]


def train(chosen: argparse.Namespace) -> None:
    """Every training that is not there yet. Where it is stopped, there is a random sample of each kind of fault."""
    planned = chosen_cases(chosen)
    for members in store.progress(planned, "configurations", len(planned)):
        for group in (members, [case.twin() for case in members]) if members[0].fault else (members,):
            pursue.train_all(group, chosen.out, chosen.again)
            pursue.follow_up(group, chosen.out, not chosen.no_cures, not chosen.no_scales)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what was asked for."""
    chosen = arguments(argv)
    torch.set_num_threads(1)
    if chosen.command in ("all", "train"):
        train(chosen)
    if chosen.command in ("all", "report"):
        parts = [chosen.part] if chosen.part else list(PARTS)
        text = report(parts, chosen.out)
        sys.stdout.write(text + "\n")
        if chosen.write:
            write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
