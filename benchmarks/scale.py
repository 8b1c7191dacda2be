"""What gradscope costs at extremes of size: each case in a process of its own, one table of time, memory and disk.

python benchmarks/scale.py                       # all cases
python benchmarks/scale.py --cases long wide     # some of them
python benchmarks/scale.py --write               # and into docs/scaling.md
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import fleet
import gradscope
import long_run
from costs.memory import MIB, peak, reset_peak

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- scale: begin -->", "<!-- scale: end -->"
STEPS = 3


class Case(NamedTuple):
    """A training at an extreme.

    Attributes:
        family: class of the layer.
        sizes: its arguments.
        T: timesteps.
        B: sequences.
    """

    family: type[nn.RNNBase]
    sizes: dict[str, Any]
    T: int
    B: int


TRAININGS = {
    "long": Case(nn.LSTM, {"input_size": 16, "hidden_size": 64}, 10_000, 8),
    "deep": Case(nn.LSTM, {"input_size": 32, "hidden_size": 32, "num_layers": 64}, 50, 8),
    "wide": Case(nn.LSTM, {"input_size": 256, "hidden_size": 2048}, 32, 16),
    "batch": Case(nn.GRU, {"input_size": 32, "hidden_size": 128}, 100, 512),
}
TITLES = {
    "long": "10,000 timesteps: LSTM, H 64, B 8",
    "deep": "64 layers: LSTM, H 32, T 50, B 8",
    "wide": "H 2,048: LSTM, T 32, B 16",
    "batch": "512 sequences (16 analysed): GRU, H 128, T 100",
}
RUNS = {"rows": "report, with findings, on 10,000,000 rows of `timesteps`", "fleet": "table of 1,000 runs (DuckDB)"}


def train(name: str) -> dict[str, float]:
    """Bare and recorded steps of a case, in this process."""
    case = TRAININGS[name]
    torch.manual_seed(0)
    model = case.family(**case.sizes)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    x = torch.randn(case.T, case.B, case.sizes["input_size"])

    def steps() -> tuple[float, float]:
        """Median seconds of a step, and the peak memory of the process meanwhile in MiB."""
        seconds: list[float] = []
        known = reset_peak()
        for _ in range(STEPS):
            began = time.perf_counter()
            optimizer.zero_grad()
            model(x)[0].square().mean().backward()
            optimizer.step()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds), peak() / MIB if known else float("nan")

    steps()
    bare, low = steps()
    with tempfile.TemporaryDirectory() as folder:
        with gradscope.attach(model, folder, every=1) as scope:
            steps()
            recorded, high = steps()
            rows = sum(len(scope.run.frame(table)) for table in ("timesteps", "reach", "gates", "units", "weights"))
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
    return {
        "bare_s": bare,
        "recorded_s": recorded,
        "bare_mib": low,
        "more_mib": high - low,
        "rows": rows / (2 * STEPS),
        "disk_kib": disk / (2 * STEPS) / 1024,
    }


def row_of_training(name: str) -> str:
    """The table's row for a training."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", name]
    r = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    took = f"{r['recorded_s'] * 1e3:,.0f} ms for a recorded step, {r['bare_s'] * 1e3:,.0f} ms for a bare one"
    memory = f"{r['more_mib']:,.0f} MiB more than a bare step's {r['bare_mib']:,.0f}"
    disk = f"{r['disk_kib']:,.0f} KiB and {r['rows']:,.0f} rows for a record"
    return f"| {TITLES[name]} | {took} | {memory} | {disk} |"


def row_of_runs(name: str) -> str:
    """The table's row for a report or a fleet."""
    if name == "rows":
        r = long_run.measure(10_000_000, findings=True)
        return f"| {RUNS[name]} | {r['seconds']:.1f} s | {r['mib']:,.0f} MiB | {r['files_mib']:,.0f} MiB |"
    rows, size, costs = fleet.measure(1_000, 100, ["duckdb"])
    cost = costs["duckdb"]
    return f"| {RUNS[name]}, {rows:,} rows | {cost['table']:.1f} s | {cost['mib']:,.0f} MiB | {size:,.0f} MiB |"


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=[*TRAININGS, *RUNS], default=[*TRAININGS, *RUNS])
    parser.add_argument("--write", action="store_true", help="put the table into docs/scaling.md")
    parser.add_argument("--child", choices=list(TRAININGS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        sys.stdout.write(json.dumps(train(options.child)))
        return
    lines = ["| case | time | peak memory | disk |", "| --- | --- | --- | --- |"]
    for name in options.cases:
        lines.append(row_of_training(name) if name in TRAININGS else row_of_runs(name))
        sys.stdout.write(lines[-1] + "\n")
        sys.stdout.flush()
    now = datetime.now(timezone.utc)
    lines += [
        "",
        f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {now:%Y-%m-%d}.",
    ]
    if options.write:
        text = PAGE.read_text(encoding="utf-8")
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
