"""What the table of many runs costs: one recorded run, varied many times, asked of DuckDB and of pandas.

python benchmarks/fleet.py                              # 1,000 small runs
python benchmarks/fleet.py --runs 20 --steps 250000     # few long ones: what a million rows cost
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gradscope

CHILD = """
import json, resource, sys, time
import gradscope
import pandas as pd
from gradscope.record import duck
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[3]).parent / "tests"))

def by_pandas(path):
    from fleets import by_pandas
    return pd.DataFrame([by_pandas(gradscope.load(path))])

def duckdb(fleet, paths):
    return fleet.table(findings=False)

def pandas(fleet, paths):
    return pd.concat([by_pandas(path) for path in paths])

def findings(fleet, paths):
    return fleet.findings()

if __name__ == "__main__":
    if len(sys.argv) > 4:
        connect = duck.connect
        duck.connect = lambda: connect().execute(f"SET memory_limit = '{sys.argv[4]}'")
    started = time.perf_counter()
    fleet = gradscope.load(sys.argv[1])
    loaded, busy = time.perf_counter(), time.process_time()
    found = globals()[sys.argv[2]](fleet, [str(fleet.root / name) for name in fleet])
    ended = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_SELF)
    mib, cpu = used.ru_maxrss / 1024, time.process_time() - busy
    sys.stdout.write(json.dumps({"load": loaded - started, "table": ended - loaded, "cpu": cpu, "mib": mib}))
    sys.stdout.flush()
"""


def main() -> None:
    """Make the runs, then ask for their table, each way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of each run")
    parser.add_argument("--ways", nargs="*", default=["duckdb", "pandas"], help="and findings")
    parser.add_argument("--memory", help="what DuckDB may use, such as 500MB; without it four fifths of what there is")
    options = parser.parse_args()
    rows, size, by_way = measure(options.runs, options.steps, options.ways, options.memory)
    sys.stdout.write(f"{options.runs:,} runs, {rows:,} rows in steps, clips, layers; {size:.0f} MiB in all\n")
    for way, cost in by_way.items():
        each = cost["table"] / rows * 1e6
        sys.stdout.write(f"{way:<9} load {cost['load']:6.2f} s   table {cost['table']:7.2f} s   ")
        sys.stdout.write(f"{each:7.2f} s per million rows   CPU {cost['cpu']:6.2f} s   {cost['mib']:6.0f} MiB\n")


def measure(
    runs: int, steps: int, ways: Sequence[str], memory: str | None = None
) -> tuple[int, float, dict[str, dict[str, float]]]:
    """Rows and MiB of so many runs, and what each way to their table costs, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        rows, size = sweep(Path(folder), runs, steps)
        script = Path(folder) / "child.py"
        script.write_text(CHILD, encoding="utf-8")
        costs: dict[str, dict[str, float]] = {}
        for way in ways:
            command = [sys.executable, str(script), folder, way, str(Path(__file__).resolve().parent)]
            command += [memory] if memory else []
            costs[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return rows, size, costs


def sweep(root: Path, runs: int, steps: int) -> tuple[int, float]:
    """So many runs below a folder, in folders of ten; how many rows the table rests on, and how large they are."""
    import pyarrow.parquet as parquet

    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder))
        home = Path(folder) / "gradscope"
        tables = {path.parent.parent.name: parquet.read_table(path) for path in home.rglob("*.parquet")}
        told = (home / "run.json").read_bytes()
    random, rows = np.random.default_rng(0), 0
    for number in range(runs):
        target = root / f"lr={number // 10}" / f"seed={number % 10}" / "gradscope"
        for name, table in tables.items():
            varied = vary(name, table, steps, random)
            (target / name / "rank=0").mkdir(parents=True)
            parquet.write_table(varied, target / name / "rank=0" / "part-000001.parquet", compression="zstd")
            rows += len(varied) if name in ("steps", "clips", "layers") else 0
        (target / "run.json").write_bytes(told)
    return rows, sum(path.stat().st_size for path in root.rglob("*.parquet")) / 2**20


def record(folder: Path) -> None:
    """One small training: 100 steps of a GRU, every tenth recorded."""
    torch.manual_seed(0)
    model = torch.nn.GRU(4, 16)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.attach(model, folder, every=10):
        for _ in range(100):
            optimizer.zero_grad()
            model(torch.randn(30, 8, 4))[0][-1].square().mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()


def vary(name: str, table: Any, steps: int, random: np.random.Generator) -> Any:
    """The table with other norms and horizons, and with more steps where every step has a row."""
    frame = table.to_pandas()
    if name in ("steps", "clips"):
        frame = frame.iloc[np.arange(steps) % len(frame)].assign(step=np.arange(steps))
    for column in {"grad_norm", "norm_before", "horizon", "decay"} & set(frame):
        frame[column] = frame[column] * random.lognormal(0, 0.5)
    import pyarrow as pa

    return pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False)


if __name__ == "__main__":
    main()
