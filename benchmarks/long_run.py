"""How long a report on a very long run takes, and how much memory: made rows, one report, in a process of its own.

python benchmarks/long_run.py                     # 10 million rows of `timesteps`
python benchmarks/long_run.py --rows 1000000 --findings
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

QUANTITIES = (
    "grad_h",
    "grad_h_direct",
    "grad_c",
    "weight_grad",
    "jacobian",
    "jacobian_h",
    "jacobian_c",
    "state",
    "cell",
)
GATES = ("input", "forget", "output", "candidate", "hidden")
LENGTH, LAYERS, UNITS, EVERY = 100, 6, 64, 16
LIMIT = 20.0, 2048  # seconds, MiB

CHILD = """
import json, resource, sys, time
started = time.perf_counter()
import gradscope
from gradscope.report import report
run = gradscope.load(sys.argv[1])
loaded = time.perf_counter()
made = run.report() if sys.argv[3] == "findings" else report(run, [])
summed = time.perf_counter()
made.save(sys.argv[2])
ended = time.perf_counter()
print(json.dumps({"import": loaded - started, "summary": summed - loaded, "figures": ended - summed,
                  "seconds": ended - started, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def main() -> None:
    """Write the run, then report on it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of `timesteps`")
    parser.add_argument("--findings", action="store_true", help="diagnose the run as well")
    options = parser.parse_args()
    result = measure(options.rows, findings=options.findings)
    for name, value in result.items():
        sys.stdout.write(f"{name:<10}{value:10.1f}\n")
    if result["seconds"] > LIMIT[0] or result["mib"] > LIMIT[1]:
        sys.exit(f"over the limit of {LIMIT[0]:.0f} s and {LIMIT[1]} MiB")


def measure(rows: int, *, findings: bool) -> dict[str, float]:
    """Seconds, memory and sizes of a report on so many rows."""
    with tempfile.TemporaryDirectory() as folder:
        logdir, page = Path(folder) / "run", Path(folder) / "report.html"
        started = time.perf_counter()
        steps = write(logdir, rows)
        written = time.perf_counter() - started
        size = sum(path.stat().st_size for path in logdir.rglob("*.parquet")) / 2**20
        command = [sys.executable, "-c", CHILD, str(logdir), str(page), "findings" if findings else "plain"]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        page_mib = page.stat().st_size / 2**20
    return {"recorded": steps, "written": written, "files_mib": size, **result, "page_mib": page_mib}


def write(logdir: Path, rows: int) -> int:
    """A run with so many rows of `timesteps`; how many recorded steps that takes."""
    import os

    from gradscope.record import ParquetStore
    from gradscope.types import Batch

    os.environ["GRADSCOPE_DISK_LIMIT"] = str(2**36)
    recorded = -(-rows // (LENGTH * LAYERS * len(QUANTITIES)))
    store = ParquetStore(logdir, {"versions": {}, "layers": {}}, flush_seconds=1e9)
    random = np.random.default_rng(0)
    for step in range(recorded * EVERY):
        store.write(Batch(step, tuple(_rows(step, random))))
    store.close()
    return recorded


def _rows(step: int, random: np.random.Generator) -> Iterator[object]:
    from gradscope.types import Rows

    norm = float(random.lognormal(-1, 1))
    call = {"index": 0, "kind": "norm", "how": "", "threshold": 1.0, "norm_type": 2.0, "parameters": 8, "nonfinite": 0}
    norms = {"norm_before": norm, "norm_after": min(norm, 1.0), "coefficient": min(1.0, 1 / norm), "clipped": norm > 1}
    yield Rows("clips", {**call, **norms})
    if step % EVERY == 0:
        for layer in range(LAYERS):
            yield from _layer({"module": "encoder", "layer": layer, "direction": "forward", "chain": 0}, random)
    told = {
        "optimizer": "Adam",
        "loss": 1.0,
        "grad_norm": norm,
        "nonfinite": 0,
        "skipped": False,
        "overhead_s": 1e-4,
        "step_s": 1e-2,
    }
    yield Rows("steps", {**told, "recorded": step % EVERY == 0})


def _layer(key: dict[str, object], random: np.random.Generator) -> Iterator[object]:
    from gradscope.types import Rows

    times = np.arange(LENGTH)
    for quantity in QUANTITIES:
        middle = 10 ** (0.02 * (times - LENGTH)) * random.lognormal(0, 0.3, LENGTH)
        spread = {"p10": middle / 2, "p50": middle, "p90": middle * 2, "mean": middle}
        counts = {"se": 0.0, "sequences": 16, "nonfinite": 0}
        yield Rows("timesteps", {**key, "t": times, "quantity": quantity, **spread, **counts})
    reach = 10 ** (-0.05 * times)
    spread = {name: reach for name in ("p10", "p50", "p90", "mean")}
    yield Rows("reach", {**key, "lag": times, **spread, "sequences": 16, "nonfinite": 0})
    for gate in GATES:
        low, high = random.uniform(0, 0.5, (2, LENGTH))
        yield Rows("gates", {**key, "t": times, "gate": gate, "low": low, "high": high, "mean": low})
        low, high = random.uniform(0, 0.5, (2, UNITS))
        yield Rows("units", {**key, "gate": gate, "unit": np.arange(UNITS), "low": low, "high": high})
        yield Rows(
            "weights",
            {**key, "gate": gate, "spectral_radius": 1.0, "spectral_norm": 1.2, "orthogonality": 0.5, "update": 1e-3},
        )
    told = {"horizon": 61.0, "horizon_censored": False, "decay": -0.05, "lyapunov": float("nan"), "residual": 1e-7}
    yield Rows("layers", {**key, **told, "timesteps": LENGTH})


if __name__ == "__main__":
    main()
