"""Where the time of one recorded step goes, as shares of a bare training step.

    python benchmarks/profile_step.py                            LSTM, H 256, core
    python benchmarks/profile_step.py --workload bilstm --full
    python benchmarks/profile_step.py --loss every --steps 20

Stopwatches are put around functions of the library while it records; each counts its own time, less that of others
within it. Bare and recorded steps take turns; medians over the steps. The stopwatches cost about a microsecond a call.
Beside it stands the least that a part has to do, in time at the speed that this machine reaches in a large matrix
product or in a large addition, measured in the same run, and how many times as long it took in fact.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

import gradscope
from costs import machine, tables
from costs.bounds import Peaks, Work, least_work, measure_peaks
from costs.rounds import WARM_UP, now, without_gc
from costs.stopwatches import Stopwatches, placed
from costs.tables import Table
from costs.workloads import WORKLOADS, Training, Workload

FAMILY_PARTS = {
    "run": "lower layers run again",
    "replay": "replay GEMM",
    "piece": "factors",
    "constants": "sizes",
    "sizes": "sizes",
    "scan": "reverse scan",
    "cotangents": "gradients at the gates",
    "activations": "saturation",
    "input_cotangents": "gradient for the layer below",
    "push": "full: products",
}
CLASSES = ("base:Family", "lstm:LSTM", "gru:GRU", "rnn:TanhRNN", "rnn:ReluRNN", "rnn:_Elman")

# Function -> part; `the rest` is what a function spends outside of the others.
PARTS = {
    "gradscope.observe.guard:Guard.call": "hooks, and the rest",
    "gradscope.observe.observer:Observer.finish": "the rest of the step's end",
    "gradscope.observe.step:Recording.observe": "capture copies",
    "gradscope.capture.layout:Dense.select": "capture copies",
    "gradscope.capture.layout:Dense.time_first": "capture copies",
    "gradscope.capture.snapshot:select_final": "capture copies",
    "gradscope.capture.saved:copy_saved": "what the kernel kept",
    "gradscope.observe.step:Recording.analyse": "the rest of the analysis",
    "gradscope.capture.snapshot:Snapshot.stack": "the rest of the analysis",
    "gradscope.capture.snapshot:Dropout.masks": "dropout masks drawn again",
    "gradscope.families.lstm:_cell_path": "cell scan",
    "gradscope.families.measure:measure": "the rest of the pass over time",
    "gradscope.families.scan:ReverseScan.through": "reverse scan",
    "gradscope.families.norms:norms": "norms",
    "gradscope.families.norms:relative_parts": "certificate",
    "gradscope.families.measure:sketch_matrix": "certificate",
    "gradscope.families.stack:certify": "certificate",
    "gradscope.families.saved:_confirmed": "certificate",
    "gradscope.families.saved:analyse_saved": "the rest of the analysis",
    "gradscope.families.saturation:Saturation.add": "saturation",
    "gradscope.families.saturation:Saturation.finish": "saturation",
    "gradscope.families.reach:pick_anchors": "reach",
    "gradscope.families.reach:reach_by_lag": "reach",
    "gradscope.families.blocks:measure_blocks": "weights spectra",
    "gradscope.families.products:measure_products": "full: products",
    "gradscope.record.summary:summarise": "summary and rows",
    "gradscope.record.recorder:Recorder.add": "storing",
    "gradscope.observe.look:Look.after_backward": "norms and ledger of the gradients",
    "gradscope.observe.look:Look.at_optimizer": "norms and ledger of the gradients",
    "gradscope.observe.ledger:Ledger.close_step": "norms and ledger of the gradients",
    **{f"gradscope.families.{c}.{method}": part for c in CLASSES for method, part in FAMILY_PARTS.items()},
}
EXPECTED = [name for name in PARTS if not name.startswith(tuple(f"gradscope.families.{c}." for c in CLASSES))]
PEAK_SIZES = {"cpu": (1024, 1 << 24), "cuda": (4096, 1 << 28)}  # large enough to be at the peak


def settled(step: int) -> bool:
    """A schedule that records after the short steps."""
    return step >= WARM_UP


def profile(workload: Workload, loss: str, quantities: str, steps: int) -> Table:
    """Take bare and recorded steps in turn."""
    bare, mine, watches = Training(workload, loss), Training(workload, loss), Stopwatches()
    bare_s: list[float] = []
    mine_s: list[float] = []
    parts: list[tuple[dict[str, float], dict[str, int]]] = []
    with placed(watches, PARTS) as unknown:
        for index in range(-1, steps):
            with without_gc():
                marks = [now()]
                bare.step()
                marks.append(now())
            scope = gradscope.attach(mine.model, every=settled, quantities=quantities, strict=True)
            with scope, without_gc():
                mine.short_steps(WARM_UP)
                watches.clear()
                marks.append(now())
                mine.step()
                marks.append(now())
                taken = dict(watches.seconds), dict(watches.calls)
            if index >= 0:  # the first is the warm-up
                bare_s.append(marks[1] - marks[0])
                mine_s.append(marks[3] - marks[2])
                parts.append(taken)
    table = _table(bare_s, mine_s, parts)
    if quantities == "core":
        peaks = measure_peaks(*PEAK_SIZES[workload.device], device=workload.device)
        _add_bounds(table, least_work(workload, loss), peaks)
    if quantities == "full":
        table.notes.append("Scans and factors that the products need are counted with the scans and factors.")
    missing = [name for name in unknown if name in EXPECTED]
    if missing:
        table.notes.append(f"Not found in the library, so counted with what calls them: {', '.join(missing)}.")
    return table


def _table(bare_s: list[float], mine_s: list[float], parts: list[tuple[dict[str, float], dict[str, int]]]) -> Table:
    bare = statistics.median(bare_s)
    table = Table("One recorded step by part", ("part", "calls", "ms", "share of a bare step"))
    names = dict.fromkeys(PARTS.values())
    rows = [(name, parts[0][1].get(name, 0), statistics.median(s.get(name, 0.0) for s, _ in parts)) for name in names]
    for name, calls, seconds in sorted(rows, key=lambda row: -row[2]):
        if calls:
            table.rows.append((name, str(calls), f"{1e3 * seconds:.2f}", f"{seconds / bare:.1%}"))
    total = statistics.median(sum(s.values()) for s, _ in parts)
    extra = statistics.median(m - b for m, b in zip(mine_s, bare_s, strict=True))
    for name, seconds in (
        ("sum of the parts", total),
        ("recorded less bare step, measured", extra),
        ("not in any part", extra - total),
        ("bare step", bare),
    ):
        table.rows.append((name, "", f"{1e3 * seconds:.2f}", f"{seconds / bare:.1%}"))
    return table


def _add_bounds(table: Table, work: dict[str, Work], peaks: Peaks) -> None:
    """Two more columns: what bounds a part, and how far it is from there."""
    table.columns = (*table.columns, "bounded by", "least, ms", "times that")
    for i, row in enumerate(table.rows):
        cells = ("", "", "")
        if row[0] in work:
            seconds, by = peaks.bound(work[row[0]])
            amount = f"{work[row[0]].operations / 1e9:.2f} GFLOP" if by == "operations" else ""
            amount = amount or f"{work[row[0]].bytes / 1e6:.0f} MB"
            cells = (f"{by}, {amount}", f"{1e3 * seconds:.2f}", f"{float(row[2]) / (1e3 * seconds):.1f}")
        table.rows[i] = (*row, *cells)
    table.rows.append(
        ("peaks here", "", "", "", f"{peaks.operations / 1e9:.0f} GFLOP/s, {peaks.bytes / 1e9:.0f} GB/s", "", "")
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Profile and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="lstm-256")
    parser.add_argument("--loss", choices=("last", "every"), default="last")
    parser.add_argument("--full", action="store_true", help="the full set of quantities")
    parser.add_argument("--steps", type=int, default=10, help="recorded steps (default: 10)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="a GPU is waited for around every part"
    )
    chosen = parser.parse_args(argv)
    torch.set_num_threads(chosen.threads)
    workload = replace(WORKLOADS[chosen.workload], device=chosen.device)
    table = profile(workload, chosen.loss, "full" if chosen.full else "core", chosen.steps)
    header = {**machine.describe(chosen.device), "workload": f"{workload.title}, loss on {chosen.loss}"}
    sys.stdout.write(tables.text(header, [table]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
