"""What is said of a training, and whether it is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gradscope
from benchmarks.faults.evaluate import told
from benchmarks.field import store
from benchmarks.field.case import FAULTY, ODD, SOUND, UNRELATED, Case
from benchmarks.field.confirm import why_not
from gradscope.types import Finding

LOUD = ("warning", "critical")


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """A training, and what was said of it in one of the two ways of recording.

    A fact that matters only under a condition, of severity `info`, neither accuses nor counts as found.
    """

    case: Case
    mode: str
    findings: tuple[Finding, ...]
    failure: str = ""

    @property
    def loud(self) -> list[Finding]:
        """Findings of a warning or more, in their order."""
        return [finding for finding in self.findings if finding.severity in LOUD and finding.code != "healthy"]

    @property
    def codes(self) -> list[str]:
        """Their codes."""
        return [finding.code for finding in self.loud]

    @property
    def leading(self) -> Finding | None:
        """What a person reads first, be it a fact; None where nothing was found."""
        named = (finding for finding in self.findings if finding.code not in ("healthy", "too_few_records"))
        return next(named, None)

    @property
    def first(self) -> bool:
        """Whether a true cause comes first."""
        return bool(self.codes) and self.codes[0] in self.case.codes

    @property
    def found(self) -> bool:
        """Whether a true cause is among what was found."""
        return any(code in self.case.codes for code in self.codes)

    @property
    def right(self) -> bool:
        """Nothing where there is nothing, a true cause first where there is one."""
        if self.failure:
            return False
        return not self.codes if self.case.fine else self.first

    def told(self) -> str:
        """In one line, what is only `info` in brackets."""
        if self.failure:
            return f"nothing: {self.failure}"
        quiet = [
            finding.code for finding in self.findings if finding.severity not in LOUD and finding.code != "healthy"
        ]
        said = [*self.codes, *(f"({code})" for code in quiet)]
        return ", ".join(said) or ", ".join(finding.code for finding in self.findings) or "nothing"


def judge(case: Case, mode: str, out: Path) -> Verdict:
    """Diagnose a training from its folder, as anybody would; a rule that fails is a wrong verdict."""
    run = gradscope.load(out / "watched" / case.key() / mode)
    try:
        return Verdict(case, mode, tuple(run.findings()))
    except Exception as error:  # noqa: BLE001
        return Verdict(case, mode, (), f"{type(error).__name__}: {error}")


def confirmed(cases: Sequence[Case], out: Path) -> tuple[list[Case], dict[Case, str]]:
    """Trainings that have been watched and are what they are said to be; and the others, with the reason."""
    dropped = {case: why for case in cases if (why := why_not(case, out) or _unwatched(case, out))}
    return [case for case in cases if case not in dropped], dropped


def _unwatched(case: Case, out: Path) -> str:
    return "" if store.kept(out / "watched" / case.key()) else "not watched"


def accused(verdicts: Sequence[Verdict], truths: Sequence[str]) -> str:
    """Share of the trainings with nothing to find of which something was said."""
    mine = [verdict for verdict in verdicts if verdict.case.truth in truths]
    return told(sum(bool(verdict.codes) for verdict in mine), len(mine))


def faulty(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those with something to find."""
    return [verdict for verdict in verdicts if verdict.case.truth == FAULTY]


def summary(verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """What is asked of a diagnosis, and how often it was so."""
    ill = faulty(verdicts)
    return [
        ("accused: healthy", accused(verdicts, (SOUND, ODD))),
        ("accused: trouble of another kind", accused(verdicts, (UNRELATED,))),
        ("accused: both", accused(verdicts, (SOUND, ODD, UNRELATED))),
        ("true cause first", told(sum(verdict.first for verdict in ill), len(ill))),
        ("true cause found", told(sum(verdict.found for verdict in ill), len(ill))),
        ("true cause first, facts included", told(sum(_named_first(verdict) for verdict in ill), len(ill))),
        ("facts stated: healthy", _stated(verdicts, (SOUND, ODD))),
        ("facts stated: trouble of another kind", _stated(verdicts, (UNRELATED,))),
    ]


def _named_first(verdict: Verdict) -> bool:
    return verdict.leading is not None and verdict.leading.code in verdict.case.codes


def _stated(verdicts: Sequence[Verdict], truths: Sequence[str]) -> str:
    """Share of the trainings with nothing to find of which anything was said, be it a fact."""
    mine = [verdict for verdict in verdicts if verdict.case.truth in truths]
    return told(sum(verdict.leading is not None for verdict in mine), len(mine))
