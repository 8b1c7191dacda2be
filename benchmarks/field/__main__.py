"""Train the field set, confirm it, diagnose it, and say how often the diagnosis was right.

    python -m benchmarks.field                          all of it: what is not there yet is trained, then the figures
    python -m benchmarks.field confirm                  train without gradscope: is each what it is said to be?
    python -m benchmarks.field train --half held-out    train, two scopes attached, and the mended twins; judge nothing
    python -m benchmarks.field judge --half tuning      what is said of each training that is there, wrong ones first
    python -m benchmarks.field remedy --half tuning     try the first remedies of what is said
    python -m benchmarks.field report --write           the figures of what is there, also in docs/diagnosis.md

Rules were tuned on the tuning half alone; `judge`, `remedy` and `report` of the held-out half are for the end. What has
been trained is kept in build/field and not trained again: stop it whenever you like, remove the folder to begin anew,
or --only what a name holds to look at some. One core is enough, and what else the machine does does not matter.
"""

from __future__ import annotations

import argparse
import random
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.field import store
from benchmarks.field.case import FAULTY, ODD, SOUND, UNRELATED, Case
from benchmarks.field.cases import PARTS, all_cases
from benchmarks.field.confirm import train_bare
from benchmarks.field.judge import confirmed, faulty, judge
from benchmarks.field.remedies import try_remedy
from benchmarks.field.report import report, write
from benchmarks.field.watch import MODES, watched


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("all", *COMMANDS), nargs="?", default="all")
    parser.add_argument("--half", choices=PARTS)
    parser.add_argument("--truth", choices=(SOUND, ODD, UNRELATED, FAULTY))
    parser.add_argument("--only", default="", help="only cases whose name holds this")
    parser.add_argument("--write", action="store_true", help="the figures also to docs/diagnosis.md")
    parser.add_argument("--out", type=Path, default=store.OUT)
    return parser.parse_args(argv)


def chosen_cases(chosen: argparse.Namespace) -> list[Case]:
    """The cases of this half whose names hold what was asked for, in a random order that is always the same."""
    found = list(all_cases())
    random.Random(0).shuffle(found)
    found = [case for case in found if chosen.half in (None, case.half) and chosen.truth in (None, case.truth)]
    return [case for case in found if chosen.only in case.name]


def confirm(cases: Sequence[Case], chosen: argparse.Namespace) -> None:
    for line in train_bare(cases, chosen.out):
        print(line, flush=True)


def train(cases: Sequence[Case], chosen: argparse.Namespace) -> None:
    """All that are judged, then those of their mended twins that are not among them."""
    for case in store.progress(cases, "trainings", len(cases)):
        watched(case, chosen.out)
    for case in store.progress(cases, "mended twins", len(cases)):
        store.bare(case.work, case.mended, case.seed, chosen.out)


def look(cases: Sequence[Case], chosen: argparse.Namespace) -> None:
    """What is said of each, the wrong ones first."""
    kept, dropped = confirmed(cases, chosen.out)
    verdicts = [judge(case, mode, chosen.out) for case in kept for mode in MODES]
    for verdict in sorted(verdicts, key=lambda verdict: (verdict.right, verdict.case.name)):
        wanted = " | ".join(verdict.case.codes) or verdict.case.truth
        mark = "right" if verdict.right else "WRONG"
        where = f"{verdict.case.key()}/{verdict.mode}"
        print(f"{mark} {verdict.case.name}: wanted {wanted}; said {verdict.told()}  [{where}]")
    for case, why in dropped.items():
        print(f"left out: {case.name}: {why}")


def remedy(cases: Sequence[Case], chosen: argparse.Namespace) -> None:
    kept, _ = confirmed([case for case in cases if not case.fine], chosen.out)
    for case in store.progress(kept, "remedies", len(kept)):
        for mode in MODES:
            try_remedy(faulty([judge(case, mode, chosen.out)])[0], chosen.out)


def figures(cases: Sequence[Case], chosen: argparse.Namespace) -> None:
    text = report(cases, [chosen.half] if chosen.half else PARTS, chosen.out)
    print(text)
    if chosen.write:
        write(text)


COMMANDS: dict[str, Callable[[Sequence[Case], argparse.Namespace], None]] = {
    "confirm": confirm,
    "train": train,
    "judge": look,
    "remedy": remedy,
    "report": figures,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Do what was asked for."""
    chosen = arguments(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for command in ("train", "remedy", "report") if chosen.command == "all" else (chosen.command,):
        COMMANDS[command](chosen_cases(chosen), chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
