"""Runs: one run, and the runs below a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradscope.errors import GradscopeError, LoadError
from gradscope.record import meta
from gradscope.record.data import RunData, natural
from gradscope.record.fleet import SHOWN, FleetData, diagnosed
from gradscope.record.reader import FolderSource
from gradscope.types import Finding
from gradscope.types.loss import change

if TYPE_CHECKING:
    import pandas as pd

    from gradscope.report import Report

Progress = Callable[[int, int], object]
"""Receives the numbers of diagnosed runs and of all runs."""
DEEP = 8
"""How many folders deep the search goes."""


def load(logdir: str | os.PathLike[str]) -> Run | Fleet:
    """Load the run, or the runs, in a folder, finished or still growing.

    Args:
        logdir: the logdir of `attach`, or the folder `gradscope` in it; or a folder with many runs below it, such as a
            sweep.

    Returns:
        A run; or, if the folder is no run itself, all runs below it, as a mapping by the names of their folders.

    Raises:
        LoadError: there is no run, or a newer gradscope wrote it.
    """
    folder = Path(logdir)
    for root in (folder / meta.FOLDER, folder):
        if os.path.exists(root / meta.FILE):  # `Path.exists` raises where no file can have the name
            return Run(FolderSource(root))
    if names := sorted(_below(folder), key=natural):
        return Fleet(folder, names)
    fault = "holds no run" if os.path.isdir(folder) else "is a file" if os.path.exists(folder) else "does not exist"
    raise LoadError(
        f"{folder} {fault}: there is no {meta.FOLDER}/{meta.FILE} in it, nor below it; pass the logdir of attach()"
    )


@dataclass(frozen=True, slots=True, repr=False)
class Run(RunData):
    """The records of a training, as tidy pandas frames; a live run has the records so far."""

    def findings(self) -> list[Finding]:
        """Diagnose the training: the most probable cause first, or `healthy` alone.

        Each of several processes gets its own diagnosis; a finding names its ranks unless all processes have it.
        """
        from gradscope.diagnose import diagnose_ranks

        return diagnose_ranks(self)

    def report(self) -> Report:
        """Make a report with findings, figures and numbers: `run.report().save("report.html")`."""
        from gradscope.report import report

        return report(self, self.findings())

    def __repr__(self) -> str:
        """Write steps, layers, the loss and the sizes of the tables in one line."""
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
        except ModuleNotFoundError:  # an extra brings jinja2
            return f"<p>{escape(repr(self))}</p>"
        return short(self)


class Fleet(Mapping[str, Run]):
    """The runs below a folder, by name, from `gradscope.load`; `gradscope.compare` takes such a mapping.

    A fleet reads its runs on demand. DuckDB answers questions about all runs from all their Parquet files together,
    which may exceed memory. While methods diagnose runs, `progress` receives the numbers of diagnosed runs and of all
    runs.
    """

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.data = FleetData(root, names)

    @property
    def root(self) -> Path:
        """The folder."""
        return self.data.root

    def __getitem__(self, name: str) -> Run:
        """Load one run, by its folder relative to the fleet's."""
        if name not in self.data.names:
            raise KeyError(name)
        return Run(FolderSource(self.data.folder(name)))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the runs, 2 before 10."""
        return iter(self.data.names)

    def __len__(self) -> int:
        """Count the runs."""
        return len(self.data.names)

    def frame(self, table: str, /, **filters: Any) -> pd.DataFrame:
        """Read one table of all runs, with their names in the first column, `run`, and `rank` in the last.

        Filters are as in `Run.frame`, and `run` with one name or several.

        Raises:
            GradscopeError: there is no such table, column or run, the column cannot have such a value, or DuckDB is
                not installed.
        """
        return self.data.frame(table, **filters)

    def table(self, *, findings: bool = True, progress: Progress | None = None) -> pd.DataFrame:
        """Make a table with one row per run, in the order of their names; docs/tables.md explains the columns.

        To diagnose each run takes by far the most time; `findings=False` leaves this out.

        Raises:
            GradscopeError: DuckDB is not installed.
        """
        numbers = self.data.numbers()
        return diagnosed(numbers, self.findings(progress)) if findings else numbers

    def findings(self, progress: Progress | None = None) -> dict[str, list[Finding]]:
        """Diagnose each run."""
        findings: dict[str, list[Finding]] = {}
        for name, run in self.items():
            findings[name] = run.findings()
            if progress:
                progress(len(findings), len(self))
        return findings

    def report(self, progress: Progress | None = None) -> Report:
        """Make one report of all runs, the worst first, for HTML, Markdown, text or JSON."""
        from gradscope.report import fleet

        return fleet(self.data, dict(self), self.findings(progress))

    def __repr__(self) -> str:
        """Write the number of runs and the folder; for a few runs also their table."""
        head = f"<Fleet: {len(self):,} runs in {self.root}>"
        if len(self) > SHOWN:
            return head
        try:
            from gradscope.report import overview

            return f"{head}\n{overview(self)}".rstrip()
        except (GradscopeError, ModuleNotFoundError):  # no run is readable, or jinja2 is not installed
            return head

    def _repr_html_(self) -> str:
        try:
            numbers: Any = self.data.numbers()
        except GradscopeError as error:
            return f"<pre>{escape(repr(self))}</pre><p>{escape(str(error))}</p>"
        return f"<pre>{escape(repr(self))}</pre>{numbers.head(SHOWN).to_html(index=False)}"


def _below(folder: Path) -> Iterator[str]:
    """Yield the paths of the runs below, with `/` as separator; the search follows no links."""
    for place, folders, _ in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        if meta.FOLDER in folders:
            folders.remove(meta.FOLDER)
            if os.path.exists(os.path.join(place, meta.FOLDER, meta.FILE)):
                yield Path(place).relative_to(folder).as_posix()
        folders[:] = [name for name in folders if not name.startswith(".") and depth < DEEP]
