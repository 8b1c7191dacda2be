"""Measure what gradscope costs, here and now, as ratios to the same training without it.

Every figure is a ratio, measured side by side in this process: bare and variants take turns, block by block, round
after round; medians of the ratios of each round, with their range. Absolute times say more about the machine than us.

    python benchmarks/bench.py                            everything, about 15 minutes
    python benchmarks/bench.py --quick                    a minute, small sizes: whether it works, not what it costs
    python benchmarks/bench.py --workloads lstm-256 --sections steps memory
    python benchmarks/bench.py --flush-denormal --sections steps    as on a processor that is not slow with subnormals
    python benchmarks/bench.py --device cuda              on a GPU, which is waited for before the clock is read
    python benchmarks/bench.py --write                    the same as Markdown to docs/benchmarks.md as well, where each
                                                          kind of device has a part of its own; of a choice of
                                                          workloads or sections, only these tables are renewed

Run it on a machine that does nothing else: the load is printed before and after. Interrupted with Ctrl-C, it tells
what it has measured by then.

workloads  lstm-256, lstm-128, bilstm, gru-256, rnn-784
sections   default    attach(model, logdir) over whole runs of small trainings and these workloads: records, extra time
           steps      every=1, 16, 64 and never; core and full; the loss on the last step and on every step
           peers      LSTMCell loop, output hook, TensorBoard histograms, wandb.watch (where installed)
           jacobians  vmap(jacrev) against the closed form
           growth     what recording costs over the timesteps, the sequences and the layers
           scans      the reverse scan by our loop and by the vendor's kernel
           start      import, and attaching to fifty layers
           memory     peak resident set, in processes of their own
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from costs import machine, short, tables
from costs.sections import ONCE, PER_WORKLOAD, QUICK, SECTIONS, Budget, applies, default_section, memory_section
from costs.tables import Table
from costs.workloads import USUAL, WORKLOADS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

READING = f"""
# What gradscope costs

{short.BEGIN}
{short.END}

These are ratios: the time of a training step with gradscope over that of the same step without it. To measure them on
your machine:

    make bench                                   # as text
    .venv/bin/python benchmarks/bench.py --write # and to this page
    .venv/bin/python benchmarks/profile_step.py  # where the time of a recorded step goes

Bare trainings and variants take turns in one process, each with a fresh model from the same seed, after a warm-up, with
the garbage collector off. Every figure is the median over the rounds of the ratio to the bare block of the same round,
with the smallest and the largest in brackets. A scope is attached before its block and closed after it, outside of the
timing. No scope is attached anywhere during a bare block; only in *What a user gets by default* does one scope live
through the whole run.

* **composed**: separate measurements of recorded steps, and of steps of an attached scope that records nothing; the
  ratio at interval N is (recorded + (N - 1) other) / N. **whole blocks**: a direct measurement of 16 steps, the first
  of which is recorded.
* **noise**: two standard errors of the median, where they reach across the target.

Ratios differ between machines if the bare step does. If its gradient vanishes, the bare step takes ten times as long on
processors that are slow with subnormal numbers; the recording avoids such numbers, and its ratio looks low. A note
under each table of fixed intervals gives the size of this effect; where it is large, read the figures with the loss on
every step.
"""


READING_GPU = """
## On a GPU

These are the same trainings on one GPU, with cuDNN's kernels: `benchmarks/bench.py --device cuda --write`. At the ends
of a block, and not between its steps, the benchmark waits for the device before it reads the clock. The targets are
those for a processor.
"""


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and short runs, to see that it works")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.parent.name}/{PAGE.name} as well")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual time: less of it, and wider ranges")
    parser.add_argument("--threads", type=int, help="torch threads (default: 2, and 1 with --quick)")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="W")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="S")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the training is (default: cpu)")
    parser.add_argument(
        "--flush-denormal",
        action="store_true",
        help="subnormal numbers as 0, which some processors are slow with",
    )
    chosen = parser.parse_args(argv)
    chosen.threads = chosen.threads or (1 if chosen.quick else 2)
    if chosen.write and chosen.quick:
        parser.error("--quick says nothing about cost: leave it out to --write")
    return chosen


def measure(chosen: argparse.Namespace) -> Iterator[Table]:
    """The sections, workload by workload."""
    budget = QUICK if chosen.quick else Budget().times(chosen.share)
    workloads = [replace(WORKLOADS[key], device=chosen.device) for key in chosen.workloads]
    usual = [replace(workload, device=chosen.device) for workload in USUAL]
    if chosen.quick:
        workloads, usual = ([workload.smaller() for workload in some] for some in (workloads, usual))
    if "default" in chosen.sections:
        yield from default_section([*usual, *workloads], budget)
    for workload in workloads:
        for name in chosen.sections:
            if name in PER_WORKLOAD and applies(name, workload):
                say(f"measuring {name}: {workload.title}")
                yield PER_WORKLOAD[name](workload, budget)
    for name in ONCE:
        if name in chosen.sections and (name != "start" or chosen.device == "cpu"):
            say(f"measuring {name}")
            yield ONCE[name](budget, chosen.device)
    if "memory" in chosen.sections:
        say("measuring memory")
        yield memory_section(workloads[:1] if chosen.quick else workloads, budget)


def missed(found: Sequence[Table]) -> Table:
    """Every verdict that is not `met`."""
    table = Table("Targets missed", ("where", "what", "verdict"))
    for source in found:
        for row in source.rows:
            said = [cell for cell in row if "missed by" in cell]
            if said:
                table.rows.append((source.title, row[0], "; ".join(said)))
    if not table.rows:
        table.rows.append(("none", "", ""))
    return table


def write(header: dict[str, str], found: list[Table], device: str, *, whole: bool) -> None:
    """Put the part of this kind of device in its place on the page; only these tables, unless they are all."""
    before, mark, behind = PAGE.read_text(encoding="utf-8").partition(short.ON_A_GPU)
    if not whole:
        missing, titles = found[-1], {table.title for table in found}
        old = before if device == "cpu" else behind
        rows = [row for row in tables.rows_of(old, missing.title) if row[0] not in {*titles, "none"}]
        missing.rows = rows + [row for row in missing.rows if not rows or row[0] != "none"]
        for table in found[:-1]:
            table.notes.append(f"Measured by itself: {'; '.join(f'{name} {value}' for name, value in header.items())}.")
    if device == "cpu":
        before = tables.markdown(header, found, READING) if whole else tables.renewed(before, found)
        before += "\n" * bool(mark)
    else:
        part = tables.markdown(header, found, READING_GPU, level=3) if whole else tables.renewed(behind, found, 3)
        mark, behind = short.ON_A_GPU, "\n\n" + part.lstrip()
        before = before.rstrip() + "\n\n"
    PAGE.write_text(short.summarised(before + mark + behind), encoding="utf-8")


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write if asked to."""
    chosen = arguments(argv)
    if chosen.flush_denormal:
        torch.set_flush_denormal(True)  # the threads of torch, which are not there yet, take it over from this one
    torch.set_num_threads(chosen.threads)
    warnings.simplefilter("ignore", UserWarning)  # torch's, of dropout and the like
    header = machine.describe(chosen.device)
    before, began = machine.load(), time.perf_counter()
    if chosen.flush_denormal:
        header["subnormal"] = "taken as 0 (torch.set_flush_denormal)"
    if chosen.quick:
        header["quick"] = "small sizes, short runs: these figures say nothing about cost"
    found: list[Table] = []
    try:
        found.extend(measure(chosen))
    except KeyboardInterrupt:
        header["stopped"] = "before the end: what had been measured by then"
    found.append(missed(found))
    header["took"] = f"{time.perf_counter() - began:.0f} s"
    if before is not None:
        header["load"] = (
            f"{before:.1f} before, {machine.load():.1f} after (the run itself makes about {chosen.threads})"
        )
        if before > chosen.threads:
            header["beware"] = "the machine did other things at the same time, so that ranges are wide"
    sys.stdout.write(tables.text(header, found) + "\n")
    if chosen.write:
        everything = set(chosen.sections) == set(SECTIONS) and set(chosen.workloads) == set(WORKLOADS)
        write(header, found, chosen.device, whole=everything and "stopped" not in header)
        say(f"written to {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
