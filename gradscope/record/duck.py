"""DuckDB over the Parquet files of many runs: no other file knows DuckDB. Names of folders are never SQL."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.record import arrow, parts
from gradscope.record.query import Condition
from gradscope.record.schema import FLOAT, TABLES
from gradscope.types import loss

_ATTEMPTS = 5
_ROWS = """
    FROM (
        FROM read_parquet(
            $files, filename = true, file_row_number = true, hive_partitioning = false, union_by_name = true
        ) UNION ALL BY NAME FROM blank
    ) AS rows
    JOIN listed USING (filename)
"""
"""The rows of one table of all runs, with `run` (the place of its folder), `rank`, `place` (the place of their file),
and `shared` (whether the run has several ranks: only then can rows of `steps` have a step in common). A column that no
file has, as in runs of an earlier gradscope, comes from the table `blank`, which has every column and no row."""


def _nan(column: str) -> str:
    """Return SQL for conditions: the number is NaN, or the file lacks the column.

    DuckDB answers conditions from the statistics of Parquet files where it can, and the statistics ignore NaN. A column
    of `listed` in the condition prevents this.
    """
    return f"coalesce(isnan({column} + place), true)"


STEPS = f"""
    WITH counted AS (
        SELECT run, count(*) AS attempts, count(*) FILTER (NOT isnan(grad_norm) OR nonfinite > 0) AS looked_at,
            median(grad_norm) FILTER (isfinite(grad_norm)) AS grad_norm,
            max(grad_norm) FILTER (isfinite(grad_norm)) AS grad_norm_max,
            sum(step_s) AS seconds, sum(overhead_s) / nullif(sum(step_s), 0) AS overhead
        {_ROWS} GROUP BY run
    ), common AS (SELECT run, count(DISTINCT step) AS steps {_ROWS} WHERE shared GROUP BY run),
    ill AS (SELECT run, count(DISTINCT step) AS nonfinite_steps {_ROWS} WHERE nonfinite > 0 GROUP BY run),
    passed AS (SELECT run, count(DISTINCT step) AS skipped_steps {_ROWS} WHERE skipped GROUP BY run),
    known AS (
        SELECT run, step, {_nan("loss")} AS lost, CASE WHEN lost THEN CAST('infinity' AS DOUBLE) ELSE loss END AS value
        {_ROWS} WHERE NOT lost OR nonfinite > 0
    ), stretches AS (
        SELECT run, min(step) AS first_step, max(step) AS last_step,
            greatest(1, (last_step - first_step + 1) // {loss.SHARE}) AS tenth
        FROM known GROUP BY run HAVING bool_or(NOT lost)
    ), ends AS (
        SELECT run, median(value) FILTER (step < first_step + least(tenth, {loss.EARLY})) AS loss_first,
            median(value) FILTER (step > last_step - least(tenth, {loss.LATE})) AS loss_last
        FROM known JOIN stretches USING (run) GROUP BY run
    )
    SELECT counted.*, coalesce(steps, attempts) AS steps, nonfinite_steps, skipped_steps, loss_first, loss_last
    FROM counted LEFT JOIN common USING (run) LEFT JOIN ill USING (run) LEFT JOIN passed USING (run)
        LEFT JOIN ends USING (run)
"""
"""`loss_first` and `loss_last` are as in `gradscope.types.loss`."""
_LIMITS = "(kind <> 'modified' OR how = 'clamped') AND threshold <> 'infinity'"
CLIPS = f"""
    WITH calls AS (SELECT run, bool_or(kind <> 'modified') AS called {_ROWS} WHERE {_LIMITS} GROUP BY run),
    unmeasured AS (
        SELECT DISTINCT run, rank, step {_ROWS} WHERE {_LIMITS} AND {_nan("norm_before")} AND nonfinite = 0
    ), clipped AS (
        SELECT DISTINCT run, rank, step {_ROWS} WHERE {_LIMITS} AND clipped
    ), of_known AS (
        SELECT run, count(*) AS clipped FROM clipped ANTI JOIN unmeasured USING (run, rank, step) GROUP BY run
    ), unknown AS (SELECT run, count(*) AS unmeasured FROM unmeasured GROUP BY run)
    SELECT * FROM calls LEFT JOIN of_known USING (run) LEFT JOIN unknown USING (run)
"""
"""The numbers behind `gradscope.types.clips.share`."""
LAYERS = f"""
    WITH dated AS (
        SELECT rows.*, run,
            dense_rank() OVER (PARTITION BY run, module, layer, direction, chain ORDER BY step DESC) AS back
        {_ROWS}
    ), late AS (
        SELECT run, module, layer, direction, chain, max(timesteps) AS timesteps,
            median(horizon) FILTER (NOT isnan(horizon)) AS horizon,
            avg(CAST(horizon_censored AS INTEGER)) FILTER (NOT isnan(horizon)) > 0.5 AS censored,
            median(decay) FILTER (NOT isnan(decay)) AS decay
        FROM dated WHERE back <= $late GROUP BY run, module, layer, direction, chain
    ), counted AS (
        SELECT run, count(DISTINCT step) AS recorded, max(residual) FILTER (NOT isnan(residual)) AS residual
        FROM dated GROUP BY run
    )
    SELECT run, any_value(recorded) AS recorded, count(*) AS layers, max(timesteps) AS timesteps,
        min(horizon) AS horizon,
        arg_min(censored, (horizon, censored)) FILTER (horizon IS NOT NULL) AS horizon_censored,
        min(decay) AS decay_min, max(decay) AS decay_max, any_value(residual) AS residual
    FROM late JOIN counted USING (run) GROUP BY run
"""
NOTES = f"SELECT run, count(DISTINCT reason) AS notes {_ROWS} GROUP BY run"


class Listed(NamedTuple):
    """One file, its run and rank, and its place among the files of the rank."""

    path: Path
    run: int
    rank: int
    place: int


def engine() -> Any:
    """Import DuckDB on first use.

    Raises:
        GradscopeError: DuckDB is not installed.
    """
    try:
        return import_module("duckdb")
    except ModuleNotFoundError:
        raise GradscopeError(
            "gradscope reads the tables of many runs with DuckDB, and DuckDB is not installed; install it with: "
            "pip install 'gradscope-rnn[fleet]'"
        ) from None


def connect() -> Any:
    """Open a separate database in memory that downloads nothing and spills into the folder for temporary files."""
    spill = Path(tempfile.gettempdir()) / f"gradscope-duckdb-{os.getpid()}"
    off = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    return engine().connect(":memory:", config={**off, "temp_directory": str(spill)})


def listed(roots: Sequence[Path], table: str) -> list[Listed]:
    """List the live files of one table, run by run."""
    return [
        Listed(part.path, run, rank, place)
        for run, root in enumerate(roots)
        for rank in parts.ranks(root)
        for place, part in enumerate(parts.live(root, table, rank))
    ]


def query(roots: Sequence[Path], table: str, sql: str, parameters: Mapping[str, Any] | None = None) -> Any:
    """Run one of the queries above; returns an Arrow table, or None if no run has such rows.

    If a merge removes files meanwhile, the query starts again with the new files. Damaged files are skipped with a
    warning.
    """
    failures, files = engine().Error, listed(roots, table)
    for _ in range(_ATTEMPTS):
        if not files:
            return None
        try:
            return _execute(files, table, sql, parameters or {})
        except failures as error:
            now = listed(roots, table)
            readable = [file for file in now if file in set(files) and _readable(file.path)] if now == files else now
            if readable == files:
                raise GradscopeError(f"DuckDB cannot read {table!r}: {str(error).splitlines()[0]}") from error
            files = readable
    raise GradscopeError(f"the files of {table!r} change too fast to be read")


def _execute(files: Sequence[Listed], table: str, sql: str, parameters: Mapping[str, Any]) -> Any:
    pa = arrow.pyarrow()
    ranks = Counter(run for run, _ in {(one.run, one.rank) for one in files})
    columns = {
        "filename": [str(file.path) for file in files],
        "run": [file.run for file in files],
        "rank": [file.rank for file in files],
        "place": [file.place for file in files],
        "shared": [ranks[file.run] > 1 for file in files],
    }
    with connect() as database:
        database.register("listed", pa.table(columns))
        database.register("blank", arrow.schema(TABLES[table]).empty_table())
        patterns = [_escaped(file.path) for file in files]
        return database.sql(sql, params={"files": patterns, **parameters}).to_arrow_table()


def _escaped(path: Path) -> str:
    """Escape the wildcards in a path: DuckDB reads paths as patterns."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))


def _readable(path: Path) -> bool:
    """Read a whole file; if it is damaged, warn and return False."""
    try:
        with arrow.parquet().ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group)
    except parts.unreadable() as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"{path} is damaged and was skipped: {reason}", GradscopeWarning, stacklevel=6)
        return False
    return True


def rows(table: str, wanted: Mapping[str, Condition]) -> tuple[str, dict[str, Any]]:
    """Return a query, and its parameters, for the rows that meet all conditions, run by run, ordered as `Run.frame`."""
    terms, parameters = _terms(wanted)
    floats = [name for name in wanted if TABLES[table].columns.get(name) == FLOAT]
    bounded = [name for name in floats if wanted[name].low is not None]
    terms += [f"NOT {_nan(name)}" for name in bounded]  # to DuckDB, NaN is larger than all numbers
    columns = ", ".join(f'rows."{name}"' for name in TABLES[table].columns)
    order = ", ".join(f'rows."{name}"' for name in TABLES[table].order)
    where = f"WHERE {' AND '.join(terms)}" if terms else ""
    order = f"run, {order}, rank, place, file_row_number"
    return f"SELECT run, {columns}, rank {_ROWS} {where} ORDER BY {order}", parameters


def _terms(wanted: Mapping[str, Condition]) -> tuple[list[str], dict[str, Any]]:
    """Translate conditions into SQL over columns of the schema; all values become parameters."""
    terms = [
        (term.format(column=f'"{column}"', name=name), name, value)
        for number, (column, condition) in enumerate(wanted.items())
        for term, name, value in _of(condition, number)
    ]
    return [term for term, _, _ in terms], {name: value for _, name, value in terms}


def _of(condition: Condition, number: int) -> Iterator[tuple[str, str, Any]]:
    if condition.values is not None:
        yield "list_contains(${name}, {column})", f"values_{number}", list(condition.values)
        return
    if condition.low is not None:
        yield "{column} >= ${name}", f"low_{number}", condition.low
    if condition.high is not None:
        yield "{column} <= ${name}", f"high_{number}", condition.high
