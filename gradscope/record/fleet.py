"""Many runs together: the runs of a sweep by name, their tables, and a table of the runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradscope.errors import GradscopeError
from gradscope.record import arrow, duck, meta
from gradscope.record.query import conditions
from gradscope.record.schema import choices
from gradscope.types import LATE, SEVERITIES, Finding

if TYPE_CHECKING:
    import pandas as pd

FOUND: Mapping[str, str] = {
    "finding": "the run's worst finding; of several equally severe findings, the most probable cause",
    "severity": "severity of that finding; empty for a healthy run",
    "findings": "number of findings",
}
COLUMNS: Mapping[str, str] = {
    "run": "the run's folder, relative to the fleet's",
    **FOUND,
    "horizon": "steps back until a thousandth of the loss gradient is left, in the layer with the shortest horizon",
    "horizon_censored": "true if the gradient of that layer reaches back further than its sequences",
    "timesteps": "length of the longest sequence",
    "decay_min": "decades that the loss gradient gains per step back, in the layer where it loses most",
    "decay_max": "the same in the layer where it gains most",
    "clip_rate": "share of optimizer steps with clipped gradients, among steps where this is known",
    "loss_first": "median loss of the first tenth of the steps, at most 10; infinite if most losses are not finite",
    "loss_last": "median loss of the last tenth of the steps, at most 100; infinite if most losses are not finite",
    "nonfinite_steps": "steps with a loss or a gradient that is not finite",
    "skipped_steps": "steps that a GradScaler skipped",
    "grad_norm": "median finite norm of the recurrent gradients",
    "grad_norm_max": "largest finite norm of the recurrent gradients",
    "steps": "optimizer steps",
    "recorded": "recorded steps",
    "layers": "recorded layers; directions and chains count separately",
    "residual": "largest relative difference between the rebuilt layers and the kernels' results",
    "notes": "number of different reasons in `notes`",
    "seconds": "duration of the training",
    "overhead": "gradscope's share of the duration",
    "path": "the folder, for `gradscope.load`",
}
"""Meanings of the columns of a fleet's table; values of layers are medians over the last four records of each."""
COUNTS = ("timesteps", "nonfinite_steps", "skipped_steps", "steps", "recorded", "layers", "notes")
HELPERS = ("attempts", "looked_at", "clipped", "unmeasured", "called")
"""Columns of the queries from which other columns are computed."""
QUERIES = {"steps": duck.STEPS, "clips": duck.CLIPS, "layers": duck.LAYERS, "notes": duck.NOTES}
SHOWN = 20


class FleetData:
    """The data of the runs below a folder. DuckDB reads all their Parquet files together; they may exceed memory."""

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.root = root
        self.names = dict.fromkeys(names)

    def frame(self, table: str, /, **filters: Any) -> pd.DataFrame:
        """Read one table of all runs; see `gradscope.run.Fleet.frame`."""
        import pandas as pd

        names = self._chosen(filters.pop("run", None))
        sql, parameters = duck.rows(table, conditions(table, filters))
        rows = duck.query([self.folder(name) for name in names], table, sql, parameters)
        frame: Any = arrow.frame([], table, None).assign(run=[]) if rows is None else rows.to_pandas()
        frame["run"] = pd.Series(names, dtype="str").take(frame["run"]).array
        return frame[["run", *(column for column in frame.columns if column != "run")]]

    def numbers(self) -> pd.DataFrame:
        """Return one row per run, in the order of their names: `COLUMNS` without the columns of findings.

        Raises:
            GradscopeError: DuckDB is not installed.
        """
        import pandas as pd

        whole: Any = pd.DataFrame({"run": pd.Series(list(self.names), dtype="str")})
        roots = [self.folder(name) for name in self.names]
        for table, sql in QUERIES.items():
            numbers = duck.query(roots, table, sql, {"late": LATE} if table == "layers" else {})
            if numbers is not None:
                whole = whole.join(numbers.to_pandas().set_index("run"))
        whole = whole.reindex(columns=[*dict.fromkeys([*whole.columns, *COLUMNS, *HELPERS])])
        whole["clip_rate"] = _clip_rate(whole)
        whole["path"] = pd.Series([str(self.root / name) for name in self.names], dtype="str")
        whole = whole[[name for name in COLUMNS if name not in FOUND]]
        kinds = {name: "int64" for name in COUNTS}
        floats = {name: "float64" for name in whole.columns if name not in (*COUNTS, "run", "path", "horizon_censored")}
        censored = whole["horizon_censored"].eq(True)  # False also for runs without layers
        return whole.fillna(dict.fromkeys(COUNTS, 0)).assign(horizon_censored=censored).astype({**kinds, **floats})

    def folder(self, name: str) -> Path:
        """Return the `gradscope` folder of a run."""
        return self.root / name / meta.FOLDER

    def _chosen(self, run: Any) -> list[str]:
        names = list(self.names) if run is None else [run] if isinstance(run, str) else list(run)
        for name in names:
            if name not in self.names:
                raise GradscopeError(f"{self.root} holds no run {name!r}{choices(str(name), list(self.names)[:SHOWN])}")
        return names


def _clip_rate(answers: Any) -> Any:
    """Compute the share of clipped steps as `gradscope.types.clips.share` does."""
    called = answers["called"].eq(True)
    counted = (answers["attempts"] - answers["unmeasured"].fillna(0)).where(called, answers["looked_at"])
    return answers["clipped"].fillna(0) / counted.where(counted > 0)


def worst(findings: Sequence[Finding]) -> Finding:
    """Return the most severe finding; of several, the first, which is the most probable cause."""
    return max(findings, key=lambda finding: (finding.code != "healthy", SEVERITIES.index(finding.severity)))


def diagnosed(numbers: pd.DataFrame, findings: Mapping[str, Sequence[Finding]]) -> pd.DataFrame:
    """Add the columns of findings to a fleet's table."""
    rows: list[tuple[str, str, int]] = []
    for name in numbers["run"]:
        first = worst(findings[name])
        faults = sum(finding.code != "healthy" for finding in findings[name])
        rows.append((first.code, first.severity if faults else "", faults))
    columns = {name: [row[place] for row in rows] for place, name in enumerate(FOUND)}
    whole: Any = numbers.assign(**columns)
    return whole[list(COLUMNS)]
