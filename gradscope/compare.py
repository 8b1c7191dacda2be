"""Several runs as one: their tables stacked, their reports side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradscope.errors import GradscopeError
from gradscope.run import Run
from gradscope.types import Finding

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

    from gradscope.report import Report


def compare(runs: Mapping[str, Run]) -> Comparison:
    """Put runs side by side.

    Args:
        runs: what to compare, by the name that each is to have.

    Returns:
        Their tables, stacked, and their report.

    Raises:
        GradscopeError: there is nothing to compare, or something else than runs.

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
            hint = "load it with gradscope.load(...)" if isinstance(run, str) else "pass what gradscope.load(...) gives"
            raise GradscopeError(f"compare(): {name!r} is a {type(run).__name__}, not a run; {hint}")
    return Comparison({str(name): run for name, run in runs.items()})


@dataclass(frozen=True, slots=True, repr=False)
class Comparison:
    """Runs side by side; made by `compare`.

    Attributes:
        runs: the runs by name.
    """

    runs: Mapping[str, Run]

    def frame(self, table: str, /, **filters: Any) -> pd.DataFrame:
        """One table of all runs, with their names in the first column, `run`; filters are those of `Run.frame`.

        Raises:
            GradscopeError: there is no such table or column, or the column cannot have such a value.
        """
        import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

        frames = [(name, run.frame(table, **filters)) for name, run in self.runs.items()]
        for name, frame in frames:
            frame.insert(0, "run", name)
        filled = [frame for _, frame in frames if len(frame)]
        return pd.concat(filled or [frames[0][1]], ignore_index=True)

    def findings(self) -> dict[str, list[Finding]]:
        """What each run says about its training."""
        return {name: run.findings() for name, run in self.runs.items()}

    def report(self) -> Report:
        """The runs side by side, to be saved as HTML, Markdown, text or JSON."""
        from gradscope.report import comparison

        return comparison(self.runs, self.findings())

    def __repr__(self) -> str:
        """The names of the runs."""
        return f"<Comparison: {', '.join(self.runs)}>"
