"""What was recorded, as frames: the only thing that reports, plots and findings are made from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Protocol

from gradscope.record.query import Filters
from gradscope.record.ranks import of_rank
from gradscope.record.schema import TABLES, lookup
from gradscope.types import Finding, LayerKey
from gradscope.types.loss import change

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

    from gradscope.report import Report


class Source(Protocol):
    """Where a run's rows come from: memory, a folder, or both."""

    @property
    def meta(self) -> dict[str, Any]:
        """What the run says about itself."""
        ...

    @property
    def ranks(self) -> list[int]:
        """The processes that have written."""
        ...

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The wanted rows in the order they were written, with the column `rank` at the end."""
        ...

    def count(self, table: str) -> int:
        """How many rows a table has."""
        ...


@dataclass(frozen=True, slots=True)
class Joined:
    """Two sources as one, such as a store and the step that has not been written to it yet."""

    first: Source
    second: Source

    @property
    def meta(self) -> dict[str, Any]:
        """What the first says."""
        return self.first.meta

    @property
    def ranks(self) -> list[int]:
        """The ranks of both."""
        return sorted({*self.first.ranks, *self.second.ranks})

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The rows of the first, then those of the second."""
        import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

        both = [source.read(table, filters, columns) for source in (self.first, self.second)]
        return pd.concat(both, ignore_index=True)

    def count(self, table: str) -> int:
        """How many rows both have."""
        return self.first.count(table) + self.second.count(table)


@dataclass(frozen=True, slots=True, repr=False)
class Run:
    """Everything that was recorded, as tidy pandas frames; a live one shows what is there so far."""

    source: Source

    @property
    def meta(self) -> dict[str, Any]:
        """What the run says about itself: versions, layers, arguments, sessions."""
        return dict(self.source.meta)

    @property
    def layers(self) -> list[LayerKey]:
        """The layer keys seen, by module name (2 before 10), layer, direction and chain."""
        found = self.source.read("layers", columns=LayerKey._fields).drop_duplicates(list(LayerKey._fields))
        keys = [LayerKey(*row[:4]) for row in found.itertuples(index=False)]
        return sorted(keys, key=lambda key: (natural(key.module), *key[1:]))

    def frame(self, table: str, /, **filters: Any) -> pd.DataFrame:
        """One table, or the rows of it that meet every filter, sorted by step, then layer key.

        A filter names a column: `quantity="grad_h"` wants that value, `step=[0, 8, 16]` any of several (list, tuple,
        set, range, array), `step=slice(100, 200)` a range with **both ends included**, `slice(100, None)` all from 100.
        Where several processes have written, there is one more column, `rank`; it can always be filtered by.

        Raises:
            GradscopeError: there is no such table or column, or the column cannot have such a value, as a quantity
                that there is not.
        """
        found = self.source.read(table, filters)
        if len(self.source.ranks) < 2:
            del found["rank"]
        return found.sort_values(lookup(table).order, kind="stable", ignore_index=True)

    def findings(self) -> list[Finding]:
        """What the run says about its training, the most probable cause first; `healthy` where nothing is wrong.

        Of several processes each is looked at by itself; a finding that is not everybody's names its ranks.
        """
        from gradscope.diagnose import diagnose, merge_ranks

        if len(self.source.ranks) < 2:
            return diagnose(self)
        runs = {rank: self.of_rank(rank) for rank in self.source.ranks}
        return merge_ranks({rank: diagnose(run) for rank, run in runs.items()}, runs)

    def of_rank(self, rank: int) -> Run:
        """What one of several processes has recorded, as a run of its own.

        Raises:
            GradscopeError: no such process has written.
        """
        return Run(of_rank(self.source, rank))

    def report(self) -> Report:
        """Findings, figures and numbers, for HTML, Markdown, text or JSON: `run.report().save("report.html")`."""
        from gradscope.report import report

        return report(self)

    def _sizes(self) -> dict[str, int]:
        return {name: rows for name in TABLES if (rows := self.source.count(name))}

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


def natural(name: str) -> list[tuple[int, str]]:
    """A name such that numbers in it sort by value."""
    return [(int(word) if word.isdigit() else -1, word) for word in re.split(r"(\d+)", name)]
