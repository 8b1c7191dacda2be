"""The figures as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.faults.evaluate import told
from benchmarks.field.case import Case
from benchmarks.field.judge import Verdict, confirmed, faulty, judge, summary
from benchmarks.field.remedies import first_remedy, outcome
from benchmarks.field.tasks import HALVES
from benchmarks.field.watch import MODES

PAGE = Path(__file__).parents[2] / "docs" / "diagnosis.md"
BEGIN, END = "<!-- field: begin -->", "<!-- field: end -->"


def report(cases: Sequence[Case], halves: Sequence[str], out: Path) -> str:
    """Everything that was measured, half by half."""
    return "\n".join(line for half in halves for line in _half([c for c in cases if c.half == half], half, out))


def _half(cases: Sequence[Case], half: str, out: Path) -> Iterator[str]:
    kept, dropped = confirmed(cases, out)
    verdicts = {mode: [judge(case, mode, out) for case in kept] for mode in MODES}
    yield f"#### The {half} {'half' if half in HALVES else 'part'}\n"
    yield from _counts(kept, dropped)
    yield from _rows(("", *MODES), _summary(verdicts, out))
    yield from _rows(("cause", *(f"first, {mode}" for mode in MODES), "remedy restores"), _causes(verdicts, out))
    yield "Wrong:\n"
    yield from (f"- {line}" for line in misses(verdicts, out))
    yield ""


def _counts(kept: Sequence[Case], dropped: dict[Case, str]) -> Iterator[str]:
    counted = Counter(case.truth for case in kept)
    tasks = len({case.task for case in kept})
    yield f"{tasks} tasks: " + ", ".join(f"{count} {truth}" for truth, count in sorted(counted.items())) + "."
    reasons = Counter(why.split(":")[0] for why in dropped.values())
    left = "; ".join(f"{count} because {why}" for why, count in sorted(reasons.items()))
    yield f"Left out: {left or 'none'}.\n"


def _summary(verdicts: dict[str, list[Verdict]], out: Path) -> Iterator[tuple[str, ...]]:
    columns = [summary(verdicts[mode]) for mode in MODES]
    for rows in zip(*columns, strict=True):
        yield rows[0][0], *(row[1] for row in rows)
    yield "first remedy restores", *(restored(faulty(verdicts[mode]), out) for mode in MODES)
    yield (
        "first remedy restores, facts included",
        *(restored(faulty(verdicts[mode]), out, facts=True) for mode in MODES),
    )


def restored(verdicts: Sequence[Verdict], out: Path, *, facts: bool = False) -> str:
    """Share of the faulty trainings that learn with the first remedy of the first finding, whatever that finding is.

    Args:
        facts: try also what a fact says where there is no warning.
    """
    found = [(came, verdict) for verdict in verdicts if (came := outcome(verdict, out)) is not None]
    return told(sum(came["restored"] and (facts or bool(verdict.loud)) for came, verdict in found), len(found))


def _causes(verdicts: dict[str, list[Verdict]], out: Path) -> Iterator[tuple[str, ...]]:
    ill = {mode: faulty(verdicts[mode]) for mode in MODES}
    for code in sorted({verdict.case.codes[0] for verdict in ill[MODES[0]]}):
        mine = {mode: [verdict for verdict in ill[mode] if verdict.case.codes[0] == code] for mode in MODES}
        first = [told(sum(verdict.first for verdict in mine[mode]), len(mine[mode])) for mode in MODES]
        yield code, *first, restored(mine[MODES[0]], out)


def misses(verdicts: dict[str, list[Verdict]], out: Path) -> Iterator[str]:
    """Every training of which something wrong was said, or whose first remedy does not help."""
    for mode in MODES:
        for verdict in verdicts[mode]:
            wanted = " or ".join(verdict.case.codes) or f"nothing ({verdict.case.truth})"
            if not verdict.right:
                yield f"{mode}, {verdict.case.name}: {wanted}; said {verdict.told()}"
            elif (came := outcome(verdict, out)) is not None and not verdict.case.fine and not came["restored"]:
                line = first_remedy(verdict).splitlines()[0]
                yield f"{mode}, {verdict.case.name}: `{line}` does not restore it ({came['score']:.2f})"


def write(text: str) -> None:
    """Put the figures between the marks on the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _rows(header: Sequence[str], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" * len(header)
    yield from ("| " + " | ".join(row) + " |" for row in rows)
    yield ""
