"""The figures as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.faults.cases import all_cases
from benchmarks.faults.confirm import Confirmed, confirm
from benchmarks.faults.cures import cures
from benchmarks.faults.evaluate import Verdict, baselines, judge, misses, table, told
from benchmarks.faults.predictions import predictions
from benchmarks.faults.scaling import scaled

PAGE = Path(__file__).parents[2] / "docs" / "diagnosis.md"
MARK = "<!-- measured -->"


def report(parts: Sequence[str], out: Path) -> str:
    """Everything that was measured, part by part."""
    return "\n".join(line for part in parts for line in _part(part, out))


def _part(part: str, out: Path) -> Iterator[str]:
    confirmed = confirm([case for case in all_cases() if case.part == part], out)
    faulty, healthy = judge(confirmed.faulty), judge(confirmed.healthy)
    yield f"### The {part} part\n"
    yield from _counts(confirmed)
    yield from _rows(("code", "recall", "false alarms", "cause first"), table(faulty, healthy))
    yield "Baselines: whether they say anything at all.\n"
    yield from _rows(("rule", "of the faulty", "of the healthy"), baselines(confirmed.faulty, confirmed.healthy))
    yield from _cures(faulty, out)
    yield from _predictions(faulty, out)
    yield from _scales([*faulty, *healthy], out)
    yield "Misdiagnosed:\n"
    yield from (f"- {line}" for line in misses(faulty, healthy))
    yield ""


def _counts(confirmed: Confirmed) -> Iterator[str]:
    reasons = Counter(why.split(":")[0] for why in confirmed.dropped.values())
    dropped = "; ".join(f"{count} because {why}" for why, count in sorted(reasons.items()))
    yield f"{len(confirmed.faulty)} faulty and {len(confirmed.healthy)} healthy trainings are confirmed."
    yield f"Left out, in configurations of three seeds: {dropped or 'none'}.\n"
    kinds = Counter(kept.case.fault for kept in confirmed.faulty)
    yield "Faults: " + ", ".join(f"{name} {count}" for name, count in sorted(kinds.items())) + ".\n"


def _cures(faulty: Sequence[Verdict], out: Path) -> Iterator[str]:
    found = cures(faulty, out)
    rows: list[tuple[str, ...]] = []
    codes = sorted({verdict.kept.case.kind.code for verdict in faulty if verdict.kept.case.kind})
    for code in codes:
        mine = [cure for verdict, cure in found.items() if verdict.kept.case.kind.code == code]  # type: ignore[union-attr]
        rows.append((code, told(sum(cure["restored"] for cure in mine), len(mine))))
    rows.append(("all", told(sum(cure["restored"] for cure in found.values()), len(found))))
    yield "The first remedy of the first finding, typed in:\n"
    yield from _rows(("fault of code", "restores learning"), rows)


def _predictions(faulty: Sequence[Verdict], out: Path) -> Iterator[str]:
    found = predictions(faulty, out)
    rows: list[tuple[str, ...]] = []
    for code in sorted({prediction.code for prediction in found}):
        mine = [prediction for prediction in found if prediction.code == code]
        what = "horizon" if any(prediction.span for prediction in mine) else "largest reach"
        direction, near = sum(p.direction for p in mine), sum(p.near for p in mine)
        rows.append((code, what, told(direction, len(mine)), told(near, len(mine))))
    yield "What `scope.whatif` predicts for that remedy, against the last quarter of the training with it:\n"
    yield from _rows(("fault of code", "what", "changed as predicted", "came near"), rows)


def _scales(verdicts: Sequence[Verdict], out: Path) -> Iterator[str]:
    found = scaled(verdicts, out)
    changed = [(kept, scale, a, b) for kept, scale, a, b in found if sorted(a) != sorted(b)]
    same = told(len(found) - len(changed), len(found))
    yield f"Loss multiplied by 1e-4 and 1e4: the findings stay the same in {same}.\n"
    for kept, scale, before, after in changed:
        yield f"- {kept.case.group}, {scale:g}: {', '.join(before) or 'healthy'} became {', '.join(after) or 'healthy'}"
    yield from [""] if changed else ()


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" * len(header)
    yield from ("| " + " | ".join(row) + " |" for row in rows)
    yield ""


def write(text: str) -> None:
    """Put the figures at the end of the page."""
    before = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(f"{before}{MARK}\n\n{text}\n", encoding="utf-8")
