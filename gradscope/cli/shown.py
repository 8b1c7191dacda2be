"""Terminal output of several commands: results on stdout, progress on stderr."""

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

from gradscope.types import Finding, in_short

COLOURS = {"critical": "bold red", "warning": "yellow", "info": "blue"}
PLAIN = {
    **{"≥ ": ">=", "→ ": "->", "…": ".."},
    **dict(zip("▁▂▃▄▅▆▇█▏▎▍▌▋▊▉", "_.,-~=+####-===", strict=True)),
    **dict(zip("⠀┄│└─┬–·×", " -|+-+-.x", strict=True)),
}
"""Replacements for characters that a terminal lacks, of the same width if possible."""
FORMATS = {"html": ".html", "md": ".md", "text": ".txt", "json": ".json"}

logdir_argument = click.argument("logdir", type=click.Path(path_type=Path))
format_option = click.option(
    "--format", "form", type=click.Choice(list(FORMATS)), help="By default the format of the file's suffix."
)
full_option = click.option(
    "--full", is_flag=True, help="Print the whole text, not the first screen alone; files always have the whole text."
)


def console() -> Console:
    """Return the console for results; lines wrap at the width of the terminal."""
    _replace_unwritable()
    return Console(highlight=False, emoji=False)


def _replace_unwritable() -> None:
    """Let an ASCII stdout write question marks for other characters."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@contextmanager
def waiting(what: str) -> Generator[None]:
    """Show a spinner on stderr during a long operation, if stderr is a terminal."""
    stderr = Console(stderr=True)
    if not stderr.is_terminal:
        yield
        return
    with stderr.status(what):
        yield


@contextmanager
def counted(what: str, things: str) -> Generator[Callable[[int, int], None]]:
    """Show a progress bar on stderr, if stderr is a terminal; yields a function of the finished and of all parts."""
    stderr = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(32), MofNCompleteColumn(), TextColumn(things))
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def write(report: Any, output: Path, form: str, full: bool = False) -> str:
    """Write a report in one of the formats, to a file, or to stdout for `-`; returns a message for the terminal."""
    if str(output) == "-" and form == "text":
        screen(report, full)
        return ""
    if form == "html":
        with counted("drawing", "figures") as progress:
            content = report.html(progress)
    else:
        content = {"md": report.markdown, "text": report.text, "json": report.json}[form]()
    if str(output) == "-":
        _replace_unwritable()
        click.echo(content, nl=not content.endswith("\n"))
        return ""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(content, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"cannot write to {output}: {error.strerror}") from None
    return f"Report: {output}"


def screen(report: Any, full: bool) -> None:
    """Print the first screen of a report, or its whole text, as wide as the terminal, with its colours."""
    out = console()
    text = Text(_writable(report.text(max(40, get_terminal_size().columns), full=full)))
    text.highlight_regex(r"(?m)^[A-Z]{4,}.*$", "bold")
    for severity, colour in {**COLOURS, "healthy": "green"}.items():
        text.highlight_regex(rf"(?m)^\[{severity}\]( \[\w+\])?", colour)
    out.print(text, soft_wrap=True, end="")


def _writable(text: str) -> str:
    """Replace characters that stdout cannot write."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        for signs, letters in PLAIN.items():
            text = text.replace(signs, letters)
        return "".join("*" if "⠀" <= letter <= "⣿" else letter for letter in text)
    return text


def format_of(output: Path | None, form: str | None) -> str:
    """Return the requested format, by name or by the suffix of the file."""
    if form:
        return form
    suffix = output.suffix.lower() if output and str(output) != "-" else ".html"
    for name, ending in FORMATS.items():
        if suffix == ending:
            return name
    raise click.ClickException(
        f"{output}: the suffix is of no known format; use one of {', '.join(FORMATS.values())}, or --format"
    )


def findings_table(findings: Sequence[Finding]) -> Table:
    """Make a table of findings, one a row, as wide as the terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("severity", no_wrap=True)
    table.add_column("finding", no_wrap=True)
    table.add_column("layer", overflow="fold")
    table.add_column("what", ratio=1)
    for finding in findings:
        severity = Text("–" if finding.code == "healthy" else finding.severity, _colour(finding))
        place = "whole model" if finding.layer_key is None else in_short(finding.layer_key)
        table.add_row(severity, Text(finding.code), Text(place), Text(finding.title))
    return table


def runs_table(findings: Iterable[tuple[str, Finding]]) -> Table:
    """Make a table of findings of several runs, one a row."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("finding", no_wrap=True)
    table.add_column("run", overflow="fold", ratio=1)
    table.add_column("what", ratio=2)
    for name, finding in findings:
        table.add_row(Text(finding.code, _colour(finding)), Text(name), Text(finding.title))
    return table


def _colour(finding: Finding) -> str:
    return "green" if finding.code == "healthy" else COLOURS[finding.severity]
