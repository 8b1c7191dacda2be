"""A report: a summary, and its output formats."""

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


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """The report of a run, or of several runs side by side.

    Attributes:
        summary: the whole contents, as plain values.
        findings: findings, the most probable cause first; of several runs, all findings.
    """

    summary: Mapping[str, Any]
    findings: tuple[Finding, ...]
    _figures: Figures = field(default_factory=dict)

    def html(self, progress: Progress | None = None) -> str:
        """Render one self-contained page: no network, no script; light and dark, for screen and paper.

        `progress` receives the numbers of finished pictures and of all pictures.
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
        """Render the report without pictures, as Markdown."""
        return render.markdown(self.summary)

    def text(self, width: int | None = None, *, full: bool = True) -> str:
        """Render the report as plain text, with small pictures made of characters.

        Args:
            width: columns of a terminal, which tables must fit; by default 100, and tables as wide as they need.
            full: whether to print everything; `False` prints the essentials, on about one screen.
        """
        return render.text(self.summary, width, full)

    def json(self) -> str:
        """Render the summary with the numbers behind every picture, as JSON; NaN is null, infinities are text."""
        return json.dumps(_strict(self.summary), indent=1, ensure_ascii=False, allow_nan=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report into a file, in the format of the suffix: .html, .md, .txt or .json.

        Returns:
            The path.

        Raises:
            GradscopeError: the suffix is unknown, the file cannot be written, or the packages for pictures are not
                installed.
        """
        path = Path(path)
        method = FORMATS.get(path.suffix.lower())
        if method is None:
            raise GradscopeError(f"{path}: expected one of the suffixes {', '.join(FORMATS)}")
        content: str = getattr(self, method)()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        except OSError as error:
            raise GradscopeError(f"gradscope cannot write the report to {path}: {error.strerror or error}") from error
        return path

    def __repr__(self) -> str:
        """Name the run and count the figures."""
        return f"<Report of {self.summary['name']}: {len(self._figures)} figures>"

    def _repr_html_(self) -> str:
        return render.short(self.summary)


def _pictures(value: Any) -> list[dict[str, Any]]:
    """List all pictures anywhere in a summary."""
    if isinstance(value, Mapping):
        if "id" in value and "rows" in value:
            return [dict(value)]
        return [picture for item in value.values() for picture in _pictures(item)]
    return [picture for item in value for picture in _pictures(item)] if isinstance(value, list) else []


def _strict(value: Any) -> Any:
    """Convert a value for JSON: NaN becomes null, and infinities become text."""
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()  # a numpy number
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list | tuple) else plain(value)
