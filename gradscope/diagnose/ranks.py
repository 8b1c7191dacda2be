"""Findings of a run of several processes: what all of them show is said once, what only some show names them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from gradscope.diagnose.frames import Recorded
from gradscope.diagnose.order import root_causes_first
from gradscope.types import Finding


class Ranked(Recorded, Protocol):
    """The same of several processes."""

    @property
    def ranks(self) -> list[int]:
        """The processes that have written."""
        ...

    def of_rank(self, rank: int) -> Recorded:
        """The tables of one of them."""
        ...


def merge_ranks(found: Mapping[int, Sequence[Finding]], runs: Mapping[int, Recorded]) -> list[Finding]:
    """The findings of each process as those of the run, the most probable root cause first.

    Args:
        found: by rank.
        runs: what they were found in.
    """
    alike: dict[tuple[object, ...], dict[int, Finding]] = {}
    for rank, findings in found.items():
        for finding in findings:
            where = None if finding.code == "nonfinite_gradient" else finding.layer_key  # once for the run
            alike.setdefault((finding.code, where), {}).setdefault(rank, finding)
    merged = [_named(by_rank, runs) for by_rank in alike.values() if _first(by_rank).code != "healthy"]
    return root_causes_first(merged) if merged else [_first(by_rank) for by_rank in alike.values()]


def _first(by_rank: Mapping[int, Finding]) -> Finding:
    return next(iter(by_rank.values()))


def _named(by_rank: Mapping[int, Finding], runs: Mapping[int, Recorded]) -> Finding:
    """The finding of the lowest rank, and whose it is where not everybody's."""
    finding, everybodys = _first(by_rank), len(by_rank) == len(runs)
    if everybodys and finding.code == "nonfinite_gradient":
        return _with_origin(by_rank, runs)
    if everybodys:
        return finding
    who = _told(by_rank)
    return replace(
        finding,
        title=f"{finding.title} ({who} of {len(runs)})",
        explanation=f"{finding.explanation} This is so on {who} alone, of {len(runs)} processes.",
        evidence={**finding.evidence, "ranks": tuple(by_rank)},
    )


def _with_origin(by_rank: Mapping[int, Finding], runs: Mapping[int, Recorded]) -> Finding:
    """Which processes' own gradients were not finite at the first such step: after the reduction, everybody's are."""
    finding = _first(by_rank)
    step = finding.evidence["steps"][0]
    own = {rank: run.frame("timesteps", step=step, quantity="grad_h") for rank, run in runs.items()}
    ill = [rank for rank, rows in own.items() if (rows["nonfinite"] > 0).any()]
    if not ill or len(ill) == len(runs):
        return finding
    who, finding = _told(ill), by_rank[ill[0]]
    return replace(
        finding,
        title=f"{finding.title}, begun on {who}",
        explanation=f"{finding.explanation} At step {step} only {who} of {len(runs)} had such gradients of its own, "
        "before those of all processes were added up: look at the data that it was given.",
        evidence={**finding.evidence, "ranks": tuple(ill)},
    )


def _told(ranks: Iterable[int]) -> str:
    names = [str(rank) for rank in ranks]
    return f"rank {names[0]}" if len(names) == 1 else f"ranks {', '.join(names[:-1])} and {names[-1]}"
