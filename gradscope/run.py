"""What users hold of a record: a run, and the runs below a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradscope.errors import GradscopeError
from gradscope.record.data import RunData
from gradscope.record.find import find
from gradscope.record.fleet import SHOWN, FleetData, diagnosed
from gradscope.record.reader import FolderSource
from gradscope.types import Finding
from gradscope.types.loss import change

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

    from gradscope.report import Report

Progress = Callable[[int, int], object]
"""Told how many of how many runs have been diagnosed."""


def load(logdir: str | os.PathLike[str]) -> Run | Fleet:
    """What a folder holds, finished or still being written.

    Args:
        logdir: that of `attach`, or the `gradscope` in it; or a folder with many of them below it, as of a sweep.

    Returns:
        A run; or, of a folder that is no run itself, all that are below it, as a mapping by the names of their folders.

    Raises:
        LoadError: there is no run, or it was written by a newer gradscope.
    """
    found = find(logdir)
    return Run(FolderSource(found)) if isinstance(found, Path) else Fleet(Path(logdir), found)


@dataclass(frozen=True, slots=True, repr=False)
class Run(RunData):
    """Everything that was recorded, as tidy pandas frames; a live one shows what is there so far."""

    def findings(self) -> list[Finding]:
        """What the run says about its training, the most probable cause first; `healthy` where nothing is wrong.

        Of several processes each is looked at by itself; a finding that is not everybody's names its ranks.
        """
        from gradscope.diagnose import diagnose_ranks

        return diagnose_ranks(self)

    def report(self) -> Report:
        """Findings, figures and numbers, for HTML, Markdown, text or JSON: `run.report().save("report.html")`."""
        from gradscope.report import report

        return report(self, self.findings())

    def __repr__(self) -> str:
        """Steps, layers, the loss and the sizes of the tables, in one line."""
        sizes = ", ".join(f"{name} {rows:,}" for name, rows in self._sizes().items())
        layers = len(self.layers)
        loss = change(self.source.read("steps", None, ["step", "loss", "nonfinite"]))
        steps = self.source.count("steps")
        parts = [f"{steps:,} step{'s' * (steps != 1)}", f"{layers} layer{'s' * (layers != 1)}"]
        parts += [f"loss {loss}"] if loss else []
        return f"<Run: {', '.join(parts)}; rows: {sizes or 'none yet'}>"

    def _repr_html_(self) -> str:
        try:
            from gradscope.report import short
        except ModuleNotFoundError:  # jinja2 and its like come with an extra
            return f"<p>{escape(repr(self))}</p>"
        return short(self)


class Fleet(Mapping[str, Run]):
    """The runs below a folder, by name: a mapping that `gradscope.compare` takes; made by `gradscope.load`.

    Nothing is read before it is asked for. What concerns all runs is asked of DuckDB, over all their Parquet files at
    once, and may be larger than memory.

    Args:
        root: the folder.
        names: the folders of the runs below it.
    """

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.data = FleetData(root, names)

    @property
    def root(self) -> Path:
        """The folder."""
        return self.data.root

    def __getitem__(self, name: str) -> Run:
        """One run, by the name of its folder below that of the fleet."""
        if name not in self.data.names:
            raise KeyError(name)
        return Run(FolderSource(self.data.folder(name)))

    def __iter__(self) -> Iterator[str]:
        """The names of the runs, 2 before 10."""
        return iter(self.data.names)

    def __len__(self) -> int:
        """How many runs there are."""
        return len(self.data.names)

    def frame(self, table: str, /, **filters: Any) -> pd.DataFrame:
        """One table of all runs, with their names in the first column, `run`, and `rank` in the last.

        Filters are those of `Run.frame`, and `run`, which takes a name or several.

        Raises:
            GradscopeError: there is no such table, column or run, the column cannot have such a value, or DuckDB is
                not installed.
        """
        return self.data.frame(table, **filters)

    def table(self, *, findings: bool = True, progress: Progress | None = None) -> pd.DataFrame:
        """One row per run, in the order of their names; docs/tables.md says what the columns mean.

        Args:
            findings: also what each run's findings are. That takes longest by far: every run is diagnosed by itself.
            progress: told how many of how many runs have been diagnosed.

        Raises:
            GradscopeError: DuckDB is not installed.
        """
        numbers = self.data.numbers()
        return diagnosed(numbers, self.findings(progress)) if findings else numbers

    def findings(self, progress: Progress | None = None) -> dict[str, list[Finding]]:
        """What each run says about its training.

        Args:
            progress: told how many of how many runs have been diagnosed.
        """
        found: dict[str, list[Finding]] = {}
        for name, run in self.items():
            found[name] = run.findings()
            if progress:
                progress(len(found), len(self))
        return found

    def report(self, progress: Progress | None = None) -> Report:
        """All runs in one page, the worst first, to be saved as HTML, Markdown, text or JSON.

        Args:
            progress: told how many of how many runs have been diagnosed.
        """
        from gradscope.report import fleet

        return fleet(self.data, dict(self), self.findings(progress))

    def __repr__(self) -> str:
        """How many runs, and where; of a few also a table of them."""
        head = f"<Fleet: {len(self):,} runs in {self.root}>"
        if len(self) > SHOWN:
            return head
        try:
            from gradscope.report import overview

            return f"{head}\n{overview(self)}".rstrip()
        except (GradscopeError, ModuleNotFoundError):  # no run can be read, or jinja2 is not there
            return head

    def _repr_html_(self) -> str:
        try:
            numbers: Any = self.data.numbers()
        except GradscopeError as error:
            return f"<pre>{escape(repr(self))}</pre><p>{escape(str(error))}</p>"
        return f"<pre>{escape(repr(self))}</pre>{numbers.head(SHOWN).to_html(index=False)}"
