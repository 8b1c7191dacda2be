"""Many runs as one: the runs of a sweep by name, their tables, and a table of the runs themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gradscope.errors import GradscopeError
from gradscope.record import duck, meta
from gradscope.record.query import conditions
from gradscope.record.schema import TABLES, TEXT, choices
from gradscope.types import Finding

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

LATE = 4
"""Recorded steps at the end of a run that are taken together, as in its report."""
SEVERITIES = ("info", "warning", "critical")
FOUND: Mapping[str, str] = {
    "finding": "its worst finding; of several equally severe ones, the most probable cause",
    "severity": "how severe that is; empty for a healthy run",
    "findings": "how many findings it has",
}
COLUMNS: Mapping[str, str] = {
    "run": "the run's folder, below that of the fleet",
    **FOUND,
    "horizon": "steps back until a thousandth of the loss gradient is left, of the layer where that is soonest",
    "horizon_censored": "whether even there it reached back further than was seen",
    "timesteps": "length of the longest sequence",
    "decay_min": "decades that the loss gradient gains per step back, of the layer where it loses most",
    "decay_max": "the same of the layer where it gains most",
    "clip_rate": "share of the optimizer steps whose gradients were clipped, of those of which that is known",
    "loss_first": "median loss of the first tenth of the steps, at most 10 of them; infinite where most was not finite",
    "loss_last": "median loss of the last tenth of the steps, at most 100 of them; infinite where most was not finite",
    "nonfinite_steps": "steps with a loss or a gradient that was not finite",
    "skipped_steps": "steps that a GradScaler skipped",
    "grad_norm": "median finite norm of the recurrent gradients",
    "grad_norm_max": "largest finite norm of the recurrent gradients",
    "steps": "optimizer steps",
    "recorded": "recorded steps",
    "layers": "recorded layers, directions and chains apart",
    "residual": "largest relative difference between what was rebuilt and what the kernel computed",
    "notes": "reasons why something was not observed",
    "seconds": "time that the training took",
    "overhead": "share of it that was gradscope's",
    "path": "the folder, for `gradscope.load`",
}
"""What the columns of a fleet's table mean; those of layers are medians over the last four recorded steps of each."""
COUNTS = ("timesteps", "nonfinite_steps", "skipped_steps", "steps", "recorded", "layers", "notes")
ASKED = ("attempts", "looked_at", "clipped", "unmeasured", "called")
"""Columns of answers from which others are made."""
QUESTIONS = {"steps": duck.STEPS, "clips": duck.CLIPS, "layers": duck.LAYERS, "notes": duck.NOTES}
SHOWN = 20


class FleetData:
    """The data of the runs below a folder. DuckDB reads all their Parquet files at once, which may exceed memory.

    Args:
        root: the folder.
        names: the folders of the runs below it.
    """

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.root = root
        self.names = dict.fromkeys(names)

    def frame(self, table: str, /, **filters: Any) -> pd.DataFrame:
        """One table of all runs, with their names in the first column, `run`, and `rank` in the last.

        Filters are those of `Run.frame`, and `run`, which takes a name or several.

        Raises:
            GradscopeError: there is no such table, column or run, the column cannot have such a value, or DuckDB is
                not installed.
        """
        import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

        names = self._chosen(filters.pop("run", None))
        question, asked = duck.rows(table, conditions(table, filters))
        found = duck.ask([self.folder(name) for name in names], table, question, asked)
        if found is None:
            columns = {"run": TEXT, **TABLES[table].columns, "rank": "int64"}
            kinds = {name: cast(Any, "str" if kind == TEXT else kind) for name, kind in columns.items()}
            return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})
        frame = found.to_pandas()
        frame["run"] = pd.Series(names, dtype="str").take(frame["run"]).array
        return frame

    def numbers(self) -> pd.DataFrame:
        """One row per run, in the order of their names: the columns of `COLUMNS` but those of findings.

        Raises:
            GradscopeError: DuckDB is not installed.
        """
        import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

        whole: Any = pd.DataFrame({"run": pd.Series(list(self.names), dtype="str")})
        roots = [self.folder(name) for name in self.names]
        for table, question in QUESTIONS.items():
            found = duck.ask(roots, table, question, {"late": LATE} if table == "layers" else {})
            if found is not None:
                whole = whole.join(found.to_pandas().set_index("run"))
        whole = whole.reindex(columns=[*dict.fromkeys([*whole.columns, *COLUMNS, *ASKED])])
        whole["clip_rate"] = _clip_rate(whole)
        whole["path"] = pd.Series([str(self.root / name) for name in self.names], dtype="str")
        whole = whole[[name for name in COLUMNS if name not in FOUND]]
        kinds = {name: "int64" for name in COUNTS}
        floats = {name: "float64" for name in whole.columns if name not in (*COUNTS, "run", "path", "horizon_censored")}
        censored = whole["horizon_censored"].eq(True)  # and not where there is no layer to ask
        return whole.fillna(dict.fromkeys(COUNTS, 0)).assign(horizon_censored=censored).astype({**kinds, **floats})

    def folder(self, name: str) -> Path:
        """The `gradscope` folder of a run."""
        return self.root / name / meta.FOLDER

    def _chosen(self, asked: Any) -> list[str]:
        names = list(self.names) if asked is None else [asked] if isinstance(asked, str) else list(asked)
        for name in names:
            if name not in self.names:
                raise GradscopeError(f"{self.root} holds no run {name!r}{choices(str(name), list(self.names)[:SHOWN])}")
        return names


def _clip_rate(answers: Any) -> Any:
    """The share of clipped steps, as `gradscope.types.clips.share` counts it."""
    called = answers["called"].eq(True)
    counted = (answers["attempts"] - answers["unmeasured"].fillna(0)).where(called, answers["looked_at"])
    return answers["clipped"].fillna(0) / counted.where(counted > 0)


def worst(findings: Sequence[Finding]) -> Finding:
    """The most severe finding; of several, the first, which is the most probable cause."""
    return max(findings, key=lambda finding: (finding.code != "healthy", SEVERITIES.index(finding.severity)))


def diagnosed(numbers: pd.DataFrame, findings: Mapping[str, Sequence[Finding]]) -> pd.DataFrame:
    """A fleet's table with what was found in each of its runs."""
    told: list[tuple[str, str, int]] = []
    for name in numbers["run"]:
        mine = findings[name]
        first = worst(mine)
        faults = sum(finding.code != "healthy" for finding in mine)
        told.append((first.code, first.severity if faults else "", faults))
    found = {name: [row[place] for row in told] for place, name in enumerate(FOUND)}
    whole: Any = numbers.assign(**found)
    return whole[list(COLUMNS)]
