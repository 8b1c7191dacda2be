"""What several commands put on the terminal. Their results go to stdout; how far they are, to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from gradscope.types import Finding

COLOURS = {"critical": "bold red", "warning": "yellow", "info": "blue"}
PLAIN = {
    **dict(zip("▁▂▃▄▅▆▇█▏▎▍▌▋▊▉", "_.,-~=+####-===", strict=True)),
    **{
        "≥ ": ">=",
        "→ ": "->",
        "⠀": " ",
        "┄": "-",
        "│": "|",
        "└": "+",
        "─": "-",
        "┬": "+",
        "…": "..",
        "–": "-",
        "·": ".",
        "×": "x",
    },
}
"""What stands for signs that a terminal does not know, in as many columns where that can be."""
FORMATS = {"html": ".html", "md": ".md", "text": ".txt", "json": ".json"}

logdir_argument = click.argument("logdir", type=click.Path(path_type=Path))


def console() -> Console:
    """Where results go; lines wrap at the width of the terminal."""
    _forgiving()
    return Console(highlight=False, emoji=False)


def _forgiving() -> None:
    """Have a stdout that knows only ASCII show a question mark for what it cannot write."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@contextmanager
def waiting(what: str) -> Generator[None]:
    """A sign of life on stderr while something without parts takes its time; nothing where stderr is no terminal."""
    aside = Console(stderr=True)
    if not aside.is_terminal:
        yield
        return
    with aside.status(what):
        yield


@contextmanager
def counted(what: str, things: str) -> Generator[Callable[[int, int], None]]:
    """A bar on stderr for something of many parts, told how many of how many are done; nothing if it is no terminal."""
    aside = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(32), MofNCompleteColumn(), TextColumn(things))
    with Progress(*columns, console=aside, transient=True, disable=not aside.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def drawn(report: Any) -> str:
    """The report's page, with a bar that counts its pictures."""
    with counted("drawing", "figures") as progress:
        return report.html(progress)


def written(report: Any, output: Path, form: str, full: bool = False) -> str:
    """Write a report in one of the formats, to a file, or to stdout for `-`; what to say about it."""
    if str(output) == "-" and form == "text":
        screen(report, full)
        return ""
    content = {
        "html": drawn,
        "md": lambda it: it.markdown(),
        "text": lambda it: it.text(),
        "json": lambda it: it.json(),
    }
    made = content[form](report)
    if str(output) == "-":
        _forgiving()
        click.echo(made, nl=not made.endswith("\n"))
        return ""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(made, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"cannot write to {output}: {error.strerror}") from None
    return f"Report: {output}"


def screen(report: Any, full: bool) -> None:
    """The first screen of a report, or all of its text, as wide as the terminal; in colours where it has any."""
    out = console()
    written = Text(_writable(report.text(max(40, get_terminal_size().columns), full=full)))
    written.highlight_regex(r"(?m)^[A-Z]{4,}.*$", "bold")
    for severity, colour in {**COLOURS, "healthy": "green"}.items():
        written.highlight_regex(rf"(?m)^\[{severity}\]( \[\w+\])?", colour)
    out.print(written, soft_wrap=True, end="")


def _writable(text: str) -> str:
    """The text, with letters in the place of signs that stdout cannot write."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        for signs, letters in PLAIN.items():
            text = text.replace(signs, letters)
        return "".join("*" if "⠀" <= letter <= "⣿" else letter for letter in text)
    return text


def format_of(output: Path | None, form: str | None) -> str:
    """The format that was asked for, by name or by the suffix of the file."""
    if form:
        return form
    suffix = output.suffix.lower() if output and str(output) != "-" else ".html"
    for name, ending in FORMATS.items():
        if suffix == ending:
            return name
    raise click.ClickException(
        f"{output}: the suffix names no format; use one of {', '.join(FORMATS.values())}, or --format"
    )


def findings_table(findings: Sequence[Finding]) -> Table:
    """Findings, one a row, in as much of their words as the terminal is wide."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("severity", no_wrap=True)
    table.add_column("finding", no_wrap=True)
    table.add_column("layer", overflow="fold")
    table.add_column("what", ratio=1)
    for finding in findings:
        severity = Text("–" if finding.code == "healthy" else finding.severity, _colour(finding))
        table.add_row(severity, Text(finding.code), Text(place(finding)), Text(finding.title))
    return table


def runs_table(findings: Iterable[tuple[str, Finding]]) -> Table:
    """Findings of several runs, one a row."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("finding", no_wrap=True)
    table.add_column("run", overflow="fold", ratio=1)
    table.add_column("what", ratio=2)
    for name, finding in findings:
        table.add_row(Text(finding.code, _colour(finding)), Text(name), Text(finding.title))
    return table


def _colour(finding: Finding) -> str:
    return "green" if finding.code == "healthy" else COLOURS[finding.severity]


def place(finding: Finding) -> str:
    """Which layer a finding is about, in short."""
    key = finding.layer_key
    if key is None:
        return "whole model"
    chain = f" chain {key.chain}" if key.chain else ""
    return f"{key.module or 'model'}[{key.layer}]{'' if key.direction == 'forward' else ' reverse'}{chain}"
