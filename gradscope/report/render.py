"""Summaries as HTML, Markdown and text. All formats escape names, as they come from users."""

from __future__ import annotations

import csv as csv_module
import io
import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gradscope.report import words
from gradscope.report.layers import COLUMNS, OPEN
from gradscope.report.small import bar, horizon_bar, loss_line, reach_chart, spark, sparkline

if TYPE_CHECKING:
    from jinja2 import Environment

Summary = Mapping[str, Any]
WIDTH = 100
RUNS = 20
"""Number of runs on the first screen of a text."""
SAMPLE_ROWS, SAMPLE_COLUMNS = 9, 7
FINDINGS = 4
"""Number of findings on the first screen of a text."""


def html(summary: Summary, figures: Mapping[str, str]) -> str:
    """Render the page, with its pictures by `id`."""
    return _fill(f"{summary['kind']}.html", summary, figures=figures)


def short(summary: Summary) -> str:
    """Render a fragment for notebooks: findings and layers."""
    return _fill("short.html", summary)


def markdown(summary: Summary) -> str:
    """Render Markdown, without pictures."""
    return _tidy(_fill(f"{summary['kind']}.md", summary))


def text(summary: Summary, width: int | None = None, full: bool = True) -> str:
    """Render plain text; see `Report.text`."""
    return _tidy(_fill(f"{summary['kind']}.txt", summary, width=width, full=full, most=FINDINGS, shown=RUNS))


def overview(table: Summary, width: int) -> str:
    """Render the table of several runs, in plain text."""
    template = _templates().get_template("runs.txt")
    return _tidy(template.render(overview=table, width=width, full=False, shown=RUNS))


def _fill(template: str, summary: Summary, **more: Any) -> str:
    return _templates().get_template(template).render(summary=summary, columns=COLUMNS, open=OPEN, **more)


def _tidy(text: str) -> str:
    """Remove blanks at the ends of lines, and repeated empty lines."""
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip() + "\n"


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context, select_autoescape

    environment = Environment(
        loader=PackageLoader("gradscope.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    environment.filters.update({name: pass_context(function) for name, function in FILTERS_BY_WIDTH.items()})
    return environment


def one_line(value: Any) -> str:
    """Write a value in one line without control characters, which a terminal would obey."""
    return codeline(" ".join(str(value).split()))


def codeline(line: str) -> str:
    """Replace control characters in a line of code."""
    return "".join(letter if letter.isprintable() else "�" for letter in line)


def markdown_safe(value: Any) -> str:
    """Write a value in one line without meaning to Markdown."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", one_line(value))


def wrap(context: Mapping[str, Any], value: Any, indent: int = 0) -> str:
    """Wrap a paragraph of plain text to the page."""
    blank = " " * indent
    return textwrap.fill(one_line(value), _width(context), initial_indent=blank, subsequent_indent=blank)


def _width(context: Mapping[str, Any]) -> int:
    """Return the columns of a line of text."""
    return min(context.get("width") or WIDTH, WIDTH)


def aligned(context: Mapping[str, Any], rows: Sequence[Sequence[Any]], indent: int = 2) -> str:
    """Align rows in columns, the first row as head; numbers to the right.

    If the page is too narrow, a line below names the missing columns, from the right.
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    fit = _fitting(widths, (context.get("width") or math.inf) - indent)
    lines = [
        "  ".join(f"{cell:>{width}}" if place else f"{cell:<{width}}" for place, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True))[:fit] for row in cells)
    ]
    left_out = ", ".join(filter(None, cells[0][fit:]))
    lines += [f"(no room for: {left_out})"] if left_out else []
    return "\n".join(" " * indent + line for line in lines)


def _fitting(widths: Sequence[int], room: float) -> int:
    """Return the number of columns that fit, two at least."""
    return max(n for n in range(len(widths) + 1) if sum(widths[:n]) + 2 * (n - 1) <= room or n <= 2)


def shortened(value: Any, width: int) -> str:
    """Shorten a line in the middle, as the ends distinguish runs."""
    line = one_line(value)
    if len(line) <= width:
        return line
    head = (width - 1) // 2
    return f"{line[:head]}…{line[-(width - 1 - head) :]}"


def sampled(picture: Summary) -> dict[str, Any]:
    """Sample a picture's numbers for reading: evenly spaced rows and columns, with the first and the last."""
    across = _spaced(len(picture["columns"]), SAMPLE_COLUMNS)
    down = _spaced(len(picture["rows"]), SAMPLE_ROWS)
    rows = [[words.as_text(picture["rows"][row][column]) for column in across] for row in down]
    return {"columns": [picture["columns"][column] for column in across], "rows": rows}


def _spaced(length: int, most: int) -> list[int]:
    if length <= most:
        return list(range(length))
    return [round(index * (length - 1) / (most - 1)) for index in range(most)]


def csv(picture: Summary) -> str:
    """Write all of a picture's numbers as an address that contains a CSV file."""
    file = io.StringIO()
    writer = csv_module.writer(file, lineterminator="\n")
    writer.writerow(picture["columns"])
    writer.writerows([[_cell(value) for value in row] for row in picture["rows"]])
    return "data:text/csv;charset=utf-8," + quote(file.getvalue(), safe=",.:+-_")


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    guarded = isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{value}" if guarded else value  # otherwise a spreadsheet reads a formula


def pretty(value: Any, indent: int = 0) -> str:
    """Write settings as JSON, with as many in a line as fit."""
    if not isinstance(value, Mapping | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    inner, (opening, closing) = indent + 2, "{}" if isinstance(value, Mapping) else "[]"
    names = [f"{json.dumps(str(name), ensure_ascii=False)}: " if isinstance(value, Mapping) else "" for name in value]
    items = value.values() if isinstance(value, Mapping) else value
    lines = [""]
    for part in map(str.__add__, names, (pretty(item, inner) for item in items)):
        beside = "\n" not in lines[-1] + part and len(lines[-1]) + len(part) + inner < WIDTH
        lines[-1:] = [f"{lines[-1]}, {part}" if lines[-1] else part] if beside or not lines[-1] else [lines[-1], part]
    if len(lines) == 1 and "\n" not in lines[0]:
        return opening + lines[0] + closing
    blank = "\n" + " " * inner
    return opening + blank + f",{blank}".join(lines) + "\n" + " " * indent + closing


FILTERS: Mapping[str, Any] = {
    "as_text": words.as_text,
    "plural": words.plural,
    "percent": words.percent,
    "one_line": one_line,
    "md": markdown_safe,
    "csv": csv,
    "codeline": codeline,
    "sampled": sampled,
    "pretty": pretty,
    "short": shortened,
    "bar": bar,
    "spark": spark,
    "sparkline": sparkline,
    "horizon_bar": horizon_bar,
}
FILTERS_BY_WIDTH: Mapping[str, Any] = {
    "wrap": wrap,
    "aligned": aligned,
    "loss_line": lambda context, picture: loss_line(picture, _width(context) - 8),
    "reach_chart": lambda context, layers: reach_chart(layers, _width(context), shortened),
}
