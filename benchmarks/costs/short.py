"""The page in ten lines, from its own tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from costs.tables import rows_of

BEGIN, END = "<!-- in short: begin -->", "<!-- in short: end -->"
DEFAULT, FIXED, PEERS = "What a user gets by default", "Fixed intervals: ", "Others, every step: "
JACOBIANS, MISSED, START = "Frobenius sizes of all step Jacobians: ", "Targets missed", "To begin with"
MEMORY = "Peak extra memory of a recorded step, in copies of the analysed gates, target 2"
ON_A_GPU = "<!-- on a GPU -->"

Rows = Sequence[tuple[str, ...]]


def summarised(page: str) -> str:
    """The page with its summary made anew; what has not been measured is left out of it."""
    before, begin, rest = page.partition(BEGIN)
    if not begin:
        return page
    lines = "\n".join(f"* {line}" for line in in_short(page))
    return f"{before}{BEGIN}\n\n{lines}\n\n{END}{rest.partition(END)[2]}"


def in_short(page: str) -> Iterator[str]:
    """What a user wants to know, a line each."""
    page, _, gpu = page.partition(ON_A_GPU)
    yield from _default(rows_of(page, DEFAULT))
    yield from _fixed(page)
    if cheaper := _figures(page, JACOBIANS, "factors and sizes", 1):
        yield f"The sizes of all step Jacobians cost {_span(cheaper, 'times')} less than by `vmap(jacrev)`."
    yield from _peers(page)
    if memory := [(_number(row[1]), _number(row[2])) for row in rows_of(page, MEMORY)]:
        yield f"A recorded step needs up to {max(one * copies for one, copies in memory):.0f} MiB more memory."
    if start := [row[1] for row in rows_of(page, START)]:
        yield f"`import gradscope` takes {start[0]} beside torch; attaching to 50 layers takes {start[1]}."
    if recorded := _figures(gpu, FIXED, "core, every=1", 2):
        yield f"On a GPU, a recorded step (`core`) takes {_span(recorded, 'times')} as long as a bare one."
    if missed := [row for row in rows_of(page, MISSED) if row[0] != "none"]:
        where = f"the table *{MISSED}* lists them, and [Cost](cost.md) gives the reasons"
        yield f"We miss {len(missed)} of our targets: {where}."


def _default(rows: Rows) -> Iterator[str]:
    if not rows:
        return
    steps, records, extra, added, ratios = ([_number(row[i]) for row in rows] for i in (1, 2, 4, 5, 6))
    long = [ratio for ratio, row in zip(ratios, rows, strict=True) if float(row[1].split(" of ")[1].split()[0]) >= 100]
    yield (
        f"With the default line, runs of {_span(steps, 'steps')} have {_span(records, 'records')}, and take "
        f"{_span(extra, 's')} longer in all, by the scope's own clock."
    )
    yield (
        f"A step that is not recorded launches no kernel. It takes up to {max(added):.0f} us longer: "
        f"{100 * (ratios[0] - 1):.1g} % in the smallest training, at most {100 * (max(long, default=1) - 1):.1g} % "
        "where a step takes 0.1 s or more."
    )


def _fixed(page: str) -> Iterator[str]:
    for units in ("256", "128"):
        said = [
            f"`{name}` {_span(found, 'times')}"
            for name in ("economy", "core", "full")
            if (found := _figures(page, FIXED, f"{name}, every=1", 2, f"H {units},"))
        ]
        if said:
            yield f"Every step recorded, {units} units: {', '.join(said)} as long as a bare step."
    for interval in (16, 64):
        if found := _figures(page, FIXED, f"core, every={interval}, composed", 2):
            yield f"One step in {interval} recorded: {_span(found, 'times')} as long on average."


def _peers(page: str) -> Iterator[str]:
    if found := _figures(page, PEERS, "TensorBoard histograms of all gradients (parameters only)", 1):
        what = "For comparison, TensorBoard's histograms of all gradients at every step"
        yield f"{what}: {_span(found, 'times')} as long."


def _figures(page: str, titles: str, name: str, column: int, among: str = "") -> list[float]:
    """The numbers at the beginning of a cell, in the rows of this name of all tables whose titles begin so."""
    found = re.findall(f"^#+ ({re.escape(titles)}.*)$", page, flags=re.MULTILINE)
    rows = [row for title in found if among in title for row in rows_of(page, title) if row[0] == name]
    return [_number(row[column]) for row in rows if row[column][:1].isdigit()]


def _number(cell: str) -> float:
    return float(cell.split()[0].replace(",", ""))


def _span(found: Sequence[float], unit: str) -> str:
    low, high = (f"{x:,.0f}" if x >= 10 or x == int(x) else f"{x:.2f}" for x in (min(found), max(found)))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
