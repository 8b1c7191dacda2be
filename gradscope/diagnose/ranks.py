"""Findings of a run of several processes: common findings appear once, others name their ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from gradscope.diagnose.frames import Recorded
from gradscope.diagnose.order import root_causes_first
from gradscope.types import Finding


class Ranked(Recorded, Protocol):
    """A run of several processes."""

    @property
    def ranks(self) -> list[int]:
        """The ranks that have written."""
        ...

    def of_rank(self, rank: int) -> Recorded:
        """Return the tables of one process."""
        ...


def merge_ranks(findings: Mapping[int, Sequence[Finding]], runs: Mapping[int, Recorded]) -> list[Finding]:
    """Merge the findings of the processes by rank, the most probable root cause first."""
    alike: dict[tuple[object, ...], dict[int, Finding]] = {}
    for rank, own in findings.items():
        for finding in own:
            where = None if finding.code == "nonfinite_gradient" else finding.layer_key  # once for the run
            alike.setdefault((finding.code, where), {}).setdefault(rank, finding)
    merged = [_named(by_rank, runs) for by_rank in alike.values() if _first(by_rank).code != "healthy"]
    return root_causes_first(merged) if merged else [_first(by_rank) for by_rank in alike.values()]


def _first(by_rank: Mapping[int, Finding]) -> Finding:
    return next(iter(by_rank.values()))


def _named(by_rank: Mapping[int, Finding], runs: Mapping[int, Recorded]) -> Finding:
    """Return the finding of the lowest rank, with the ranks unless all processes have the finding."""
    finding, common = _first(by_rank), len(by_rank) == len(runs)
    if common and finding.code == "nonfinite_gradient":
        return _with_origin(by_rank, runs)
    if common:
        return finding
    who = _listed(by_rank)
    return replace(
        finding,
        title=f"{finding.title} ({who} of {len(runs)})",
        explanation=f"{finding.explanation} This holds on {who} alone, of {len(runs)} processes.",
        evidence={**finding.evidence, "ranks": tuple(by_rank)},
    )


def _with_origin(by_rank: Mapping[int, Finding], runs: Mapping[int, Recorded]) -> Finding:
    """Name the processes whose own gradients were not finite first: after the reduction the gradients of all are."""
    finding = _first(by_rank)
    step = finding.evidence["steps"][0]
    own = {rank: run.frame("timesteps", step=step, quantity="grad_h") for rank, run in runs.items()}
    ill = [rank for rank, rows in own.items() if (rows["nonfinite"] > 0).any()]
    if not ill or len(ill) == len(runs):
        return finding
    who, finding = _listed(ill), by_rank[ill[0]]
    whose = "it" if len(ill) == 1 else "they"
    return replace(
        finding,
        title=f"{finding.title}, begun on {who}",
        explanation=f"{finding.explanation} At step {step} only {who} of {len(runs)} had such gradients before the "
        f"processes summed them: look at the data that {whose} received.",
        evidence={**finding.evidence, "ranks": tuple(ill)},
    )


def _listed(ranks: Iterable[int]) -> str:
    names = [str(rank) for rank in ranks]
    return f"rank {names[0]}" if len(names) == 1 else f"ranks {', '.join(names[:-1])} and {names[-1]}"
