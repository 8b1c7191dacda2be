"""Several runs together: stacked tables, and one report side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradscope.errors import GradscopeError
from gradscope.run import Run
from gradscope.types import Finding

if TYPE_CHECKING:
    import pandas as pd

    from gradscope.report import Report


def compare(runs: Mapping[str, Run]) -> Comparison:
    """Put runs side by side.

    Args:
        runs: the runs, by name.

    Returns:
        Their stacked tables, and their report.

    Raises:
        GradscopeError: there is nothing to compare, or something other than runs.

    >>> import torch, gradscope
    >>> runs = {}
    >>> for size in (4, 8):
    ...     model = torch.nn.GRU(2, size)
    ...     with gradscope.attach(model, every=1) as scope:
    ...         model(torch.ones(6, 3, 2))[0][-1].sum().backward()
    ...     runs[f"{size} units"] = scope.run
    >>> gradscope.compare(runs).frame("units", gate="update").groupby("run").size().to_dict()
    {'4 units': 4, '8 units': 8}
    """
    if not isinstance(runs, Mapping) or not runs:
        raise GradscopeError('compare() takes runs by name: gradscope.compare({"small": run_1, "large": run_2})')
    for name, run in runs.items():
        if not isinstance(run, Run):
            hint = "load it with gradscope.load(...)" if isinstance(run, str) else "pass the result of gradscope.load"
            raise GradscopeError(f"compare(): {name!r} is a {type(run).__name__}, not a run; {hint}")
    return Comparison({str(name): run for name, run in runs.items()})


@dataclass(frozen=True, slots=True, repr=False)
class Comparison:
    """Runs side by side, from `compare`.

    Attributes:
        runs: the runs by name.
    """

    runs: Mapping[str, Run]

    def frame(self, table: str, /, **filters: Any) -> pd.DataFrame:
        """Read one table of all runs, with their names in the first column, `run`; filters are as in `Run.frame`.

        Raises:
            GradscopeError: there is no such table or column, or the column cannot have such a value.
        """
        import pandas as pd

        frames = [(name, run.frame(table, **filters)) for name, run in self.runs.items()]
        for name, frame in frames:
            frame.insert(0, "run", name)
        filled = [frame for _, frame in frames if len(frame)]
        return pd.concat(filled or [frames[0][1]], ignore_index=True)

    def findings(self) -> dict[str, list[Finding]]:
        """Diagnose each run."""
        return {name: run.findings() for name, run in self.runs.items()}

    def report(self) -> Report:
        """Make one report of the runs side by side, for HTML, Markdown, text or JSON."""
        from gradscope.report import comparison

        return comparison(self.runs, self.findings())

    def __repr__(self) -> str:
        """Write the names of the runs."""
        return f"<Comparison: {', '.join(self.runs)}>"
