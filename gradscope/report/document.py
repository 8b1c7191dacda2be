"""A report: a summary, and the ways to write it down."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradscope.errors import GradscopeError
from gradscope.record.meta import plain
from gradscope.report import figures, render
from gradscope.report.summary import Figures
from gradscope.types import Finding

FORMATS = {".html": "html", ".htm": "html", ".md": "markdown", ".txt": "text", ".json": "json"}
Progress = Callable[[int, int], object]
"""Told how many of how many pictures are drawn."""


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """What a run, or several side by side, have to say.

    Attributes:
        summary: everything in it, as plain values.
        findings: what it says is wrong, the most probable cause first; of several runs, all of them.
    """

    summary: Mapping[str, Any]
    findings: tuple[Finding, ...]
    _figures: Figures = field(default_factory=dict)

    def html(self, progress: Progress | None = None) -> str:
        """One page that needs nothing else: no network, no script; light and dark, for screen and paper.

        Args:
            progress: told how many of how many pictures are drawn.
        """
        pictures = {picture["id"]: picture for picture in _pictures(self.summary)}
        drawn: dict[str, str] = {}
        for name, draw in self._figures.items():
            title = f"{pictures[name]['title']}. {pictures[name]['text']}"
            drawn[name] = figures.svg(name, title, draw, across="across" in pictures[name])
            if progress:
                progress(len(drawn), len(self._figures))
        return render.html(self.summary, drawn)

    def markdown(self) -> str:
        """The report without pictures, as Markdown."""
        return render.markdown(self.summary)

    def text(self, width: int | None = None, *, full: bool = True) -> str:
        """The report as plain text, with small pictures that are made of characters.

        Args:
            width: columns of a terminal, into which tables are made to fit; without it 100, and tables as they are.
            full: everything; without it what a person wants to know first, on about one screen.
        """
        return render.text(self.summary, width, full)

    def json(self) -> str:
        """The summary with the numbers behind every picture, as JSON; what is not finite is text there."""
        return json.dumps(_strict(self.summary), indent=1, ensure_ascii=False, allow_nan=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report into a file, as its suffix says: .html, .md, .txt or .json.

        Returns:
            The path.

        Raises:
            GradscopeError: the suffix is another, the file cannot be written, or the packages for pictures are not
                installed.
        """
        path = Path(path)
        written = FORMATS.get(path.suffix.lower())
        if written is None:
            raise GradscopeError(f"{path}: a report is saved as one of {', '.join(FORMATS)}")
        content: str = getattr(self, written)()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        except OSError as error:
            raise GradscopeError(f"the report cannot be written to {path}: {error.strerror or error}") from error
        return path

    def __repr__(self) -> str:
        """What it is of."""
        return f"<Report of {self.summary['name']}: {len(self._figures)} figures>"

    def _repr_html_(self) -> str:
        return render.short(self.summary)


def _pictures(value: Any) -> list[dict[str, Any]]:
    """All pictures anywhere in a summary."""
    if isinstance(value, Mapping):
        if "id" in value and "rows" in value:
            return [dict(value)]
        return [picture for item in value.values() for picture in _pictures(item)]
    return [picture for item in value for picture in _pictures(item)] if isinstance(value, list) else []


def _strict(value: Any) -> Any:
    """As JSON can hold it: NaN is null, and infinities are text."""
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list | tuple) else plain(_python(value))


def _python(value: Any) -> Any:
    """A numpy number as Python's."""
    return _strict(value.item()) if hasattr(value, "item") and not hasattr(value, "__len__") else value
