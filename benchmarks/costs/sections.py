"""The sections of the report: measure, and say it as a table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from costs.default import SHORT_S, Default, apart, measure_default
from costs.growth import BASE, SIZES, measure_growth
from costs.jacobians import REBUILT, measure_jacobians
from costs.memory import measure_memory
from costs.peers import COCKPIT, measure_peers
from costs.rounds import Ratio
from costs.scans import GRID, measure_scans
from costs.start import LAYERS, measure_start
from costs.steps import bare_by_loss, measure_steps
from costs.tables import Table
from costs.targets import (
    ALLOWANCE_S,
    CHEAP_RECORD_S,
    CHEAPER,
    MEMORY,
    OPERATIONS,
    SHARE,
    START_ATTACH,
    START_IMPORT,
    allowed_s,
    default_verdicts,
    idle_goal,
    records,
    target,
    verdict,
)
from costs.workloads import Workload

NOT_MEASURED = "-"


@dataclass(frozen=True, slots=True)
class Budget:
    """Seconds for each measurement of one workload.

    Attributes:
        default: attached, and as many bare, where the number of steps is not given.
        slice: of these, at a stretch.
        steps: fixed intervals.
        peers: other people's tools.
        jacobians: `vmap(jacrev)`.
        memory: pairs of processes.
        growth: of the cost with one size, for each of three.
        starts: processes.
        small: the workloads are reduced, in processes of their own as well.
    """

    default: float = 25.0
    slice: float = 0.5
    steps: float = 36.0
    peers: float = 15.0
    jacobians: float = 8.0
    memory: int = 1
    growth: float = 10.0
    starts: int = 7
    small: bool = False

    def times(self, share: float) -> Budget:
        """Less time, or more, for what is measured in seconds."""
        longer = {f.name: share * getattr(self, f.name) for f in fields(self) if f.type == "float"}
        return replace(self, **longer)


QUICK = Budget(default=0.6, slice=0.1, steps=0.5, peers=0.5, jacobians=0.3, memory=1, growth=0.1, starts=1, small=True)

COLUMNS = ("variant", "loss on the last step", "loss on every step", "target", "verdict")


def default_section(workloads: Sequence[Workload], budget: Budget) -> Iterator[Table]:
    """What a user gets by default; rows are added as they are measured."""
    columns = ("training", "steps", "recorded", "extra time in all", "by its own clock", "an idle step adds")
    table = Table("What a user gets by default", (*columns, "ratio of an idle step", "tensor operations", "verdict"))
    yield table
    found = dict[Workload, Default]()
    for workload in workloads:
        sys.stderr.write(f"measuring default: {workload.title}\n")
        measure = measure_default if budget.small else apart
        one = found[workload] = measure(workload, budget.default, budget.slice)
        wanted = idle_goal(workload)
        table.rows.append(_default_row(workload, one, wanted))
    table.notes += [
        "The command is the one that a user types: `attach(model, logdir=...)`, in a process of its own, with "
        "Python's usual garbage collection. Bare and attached training take turns; in the bare one's turn torch is "
        "as before, and the scope's clock stands still. *Extra time* is the whole time by which the attached one "
        "took longer, with attaching, closing and the libraries that the first record loads; ± two standard errors. "
        f"Goals: {SHARE:.1%} and {ALLOWANCE_S:g} s; as many records as the contract promises, or, at more than "
        f"{1e3 * CHEAP_RECORD_S:g} ms each, as this time pays.",
        "gradscope neither records an *idle step* nor looks at it. Its cost: the differences of the medians of each "
        f"pair of slices, as median and range. If a step takes more than {1e3 * SHORT_S:g} ms, we measure the cost "
        "at T = 1, B = 1, where a scope does the same work, each such step after an untimed one in full size, which "
        "leaves nothing in the caches; the ratio is to the step in full size. *Tensor operations*: operations that "
        "torch dispatches beyond the bare step, in the idle step with most of them; goal: none but `detach` and "
        f"reading a number (`item`), at most {OPERATIONS}.",
    ]
    if after := {operation: n for one in found.values() for operation, n in one.after_record.items()}:
        table.notes.append(f"An idle step that follows a recorded one adds up to: {_operations(after)}.")
    wrong = [workload.title for workload, one in found.items() if abs(one.clock - 1) > 0.05]
    if wrong:
        table.notes.append(f"Not to be trusted, for the scope's clock took another time: {'; '.join(wrong)}.")


def _default_row(workload: Workload, found: Default, wanted: float | None) -> tuple[str, ...]:
    error, looked = 2 * found.extra_error_s, f", {found.looked:,} more looked at" if found.looked else ""
    return (
        workload.title,
        f"{found.steps:,} of {1e3 * found.bare_s / found.steps:.3g} ms",
        f"{found.recorded} (goal {records(found)}; one costs {1e3 * found.record_s:.3g} ms){looked}",
        f"{found.extra_s:.2f} s ± {error:.2f} (goal {allowed_s(found):.2f})",
        f"{found.own_s:.2f} s: attaching {found.attach_s:.2f}, closing {found.close_s:.2f}",
        f"{1e6 * found.added:.0f} us",
        spread(found.idle) + (f" (goal {wanted:g})" if wanted else ""),
        _operations(found.operations),
        default_verdicts(found, wanted),
    )


def _operations(counted: Mapping[str, int]) -> str:
    names = {"_local_scalar_dense": "item"}
    return ", ".join(f"{n} {names.get(name, name)}" for name, n in sorted(counted.items())) or "none"


def steps_section(workload: Workload, budget: Budget) -> Table:
    """Fixed intervals."""
    table = Table(f"Fixed intervals: {workload.title}", COLUMNS)
    for name, by_loss in measure_steps(workload, budget.steps).items():
        wanted = target(name, workload)
        verdicts = {loss: verdict(ratio, wanted) for loss, ratio in by_loss.items()}
        said = verdicts["last"]
        if "every" in verdicts and wanted is not None:
            said += f"; every: {verdicts['every']}"
        cells = [spread(by_loss[loss]) if loss in by_loss else NOT_MEASURED for loss in ("last", "every")]
        table.rows.append((name, *cells, "" if wanted is None else f"{wanted:g}", said))
    if workload.device != "cpu":
        return table
    slower = bare_by_loss(workload)
    table.notes.append(
        f"A bare step with the loss on the last step takes {slower.median:.2f} times as long as one with the loss on "
        f"every step here ({slower.low:.2f} to {slower.high:.2f}). It has less work: so far more than 1 means that "
        "the gradient becomes subnormal on its way back, and this processor is slow with subnormal numbers."
    )
    return table


def peers_section(workload: Workload, budget: Budget) -> Table:
    """Other people's tools, every step."""
    table = Table(f"Others, every step: {workload.title}", ("variant", "loss on the last step"))
    for name, found in measure_peers(workload, budget.peers).items():
        table.rows.append((name, spread(found) if isinstance(found, Ratio) else found))
    table.notes.append(COCKPIT)
    return table


def jacobians_section(workload: Workload, budget: Budget) -> Table:
    """`vmap(jacrev)` against the closed form."""
    found = measure_jacobians(workload, budget.jacobians)
    ways = [found.factors, found.many, *([] if found.whole is None else [found.whole])]
    heads = ("vmap(jacrev), 16 pairs at once, costs", "256 at once", "all at once")[: len(ways)]
    columns = ("closed form", *heads, "target", "verdict")
    table = Table(f"Frobenius sizes of all step Jacobians: {workload.title}", columns)
    for name, factor in found.factors.items():
        cells = [f"{r.median:,.0f} times as much ({r.low:,.0f} to {r.high:,.0f})" for r in (way[name] for way in ways)]
        short = CHEAPER - factor.median
        said = (
            ("", "") if name == REBUILT else (f">= {CHEAPER:,.0f}", f"missed by {short:,.0f}" if short > 0 else "met")
        )
        table.rows.append((name, *cells, *said))
    table.notes.append(
        f"For {found.pairs:,} pairs (t, b): {found.training_steps:,.0f} training steps by vmap(jacrev), "
        f"{found.closed_steps:.3f} by the closed form. We ran vmap(jacrev) on {found.sampled} random pairs, 16 in "
        "one call, and scaled the time by the number of pairs; there the two differ by at most "
        f"{found.difference:.1e}. 16 is the fastest number, and the target refers to it; with more pairs in one vmap "
        "each takes longer, because their Jacobians no longer fit into a cache."
    )
    return table


def memory_section(workloads: list[Workload], budget: Budget) -> Table:
    """Peak memory of all workloads."""
    columns = ("workload", "one copy", "over the step's peak", "verdict", "over optimizer.step's peak", "verdict")
    table = Table(f"Peak extra memory of a recorded step, in copies of the analysed gates, target {MEMORY:g}", columns)
    unreset = False
    for workload in workloads:
        found = measure_memory(workload, small=budget.small, repeats=budget.memory)
        unreset |= not found.reset
        cells = [(f"{x:.2f}", _within(x)) for x in (found.step, found.analysis)]
        table.rows.append((workload.title, f"{found.copy / 2**20:.1f} MiB", *cells[0], *cells[1]))
    table.notes.append(
        "The peak of the resident set (on a GPU, of torch's allocations there) of a recorded step less that of a "
        "bare one, each in a process of its own whose allocator returns freed memory at once. The first number is "
        "the additional memory that a machine needs. The second is the analysis alone, with its copies: it runs "
        "within optimizer.step, when backward has freed the graph. One copy is (T, 16, 4H) float32 of one layer and "
        "direction, for any family and any number of layers."
    )
    if unreset:
        table.notes.append("The system does not let peaks be reset here: both columns are peaks of the whole process.")
    return table


def growth_section(budget: Budget, device: str) -> Table:
    """Whether the cost is linear."""
    table = Table(
        "Growth of what recording a step costs: LSTM, D 64, H 128, T 128, all of B 16 analysed",
        ("with", "sizes", "cost, relative", "power of the size", "off a straight line by at most"),
    )
    for what in SIZES:
        found = measure_growth(what, budget.growth, replace(BASE, device=device))
        costs = ", ".join(f"{c:.2f}" for c in found.costs)
        sizes = ", ".join(map(str, found.sizes))
        table.rows.append((what, sizes, costs, f"{found.power:.2f}", f"{found.straight:.0%}"))
    table.notes.append(
        "Recorded less bare step, the loss on every step, core set, medians. A power below 1 is the part of the cost "
        "that does not depend on the size: rows, spectra of the weights, calls of Python."
    )
    return table


def start_section(budget: Budget, device: str) -> Table:
    """Import and attach."""
    found = measure_start(budget.starts)
    table = Table("To begin with", ("what", "takes", "target", "verdict"))
    for name, seconds, wanted in (
        ("import gradscope, beside import torch", found.ours, START_IMPORT),
        (f"attach to {LAYERS} recurrent layers", found.attach, START_ATTACH),
    ):
        over = seconds - wanted
        said = "met" if over <= 0 else f"missed by {1e3 * over:.0f} ms"
        table.rows.append((name, f"{1e3 * seconds:.1f} ms", f"{1e3 * wanted:.0f} ms", said))
    table.notes.append(
        f"Medians of {budget.starts}; torch itself took {found.torch:.2f} s to import here, and closing the scope "
        f"{1e3 * found.close:.1f} ms. These targets are the only ones in absolute time."
    )
    return table


def spread(ratio: Ratio) -> str:
    """A ratio and its range."""
    digits = 4 if abs(ratio.median - 1) < 0.01 else 3
    return f"{ratio.median:.{digits}f} ({ratio.low:.3f} to {ratio.high:.3f})"


def _within(copies: float) -> str:
    return "met" if copies <= MEMORY else f"missed by {copies - MEMORY:.2f}"


PER_WORKLOAD: dict[str, Callable[[Workload, Budget], Table]] = {
    "steps": steps_section,
    "peers": peers_section,
    "jacobians": jacobians_section,
}


def scans_section(budget: Budget, device: str) -> Table:
    """Two ways to do the reverse scan."""
    found = measure_scans(GRID[:2] if budget.small else GRID, device)
    widths = list(dict.fromkeys(hidden for _, _, hidden in found))
    table = Table(
        "The reverse scan of an LSTM: the vendor's kernel over our loop", ("T, rows", *(f"H {h}" for h in widths))
    )
    for steps, rows in dict.fromkeys(point[:2] for point in found):
        cells = [found.get((steps, rows, hidden)) for hidden in widths]
        table.rows.append((f"{steps}, {rows}", *("" if c is None else f"{c:.2f}" for c in cells)))
    table.notes.append(
        "The time of the kernel's forward pass on the pre-activations, and of autograd's gradient of them, over "
        "that of our loop; above 1 the loop is faster. The kernel multiplies by an identity of 4 H by 4 H in place "
        "of W_ih, and its backward pass computes gradients of weights that nobody needs. Its results still lack "
        "dL/dh_t and dL/dc_t: another product with U, and another loop over timesteps."
    )
    return table


ONCE: dict[str, Callable[[Budget, str], Table]] = {
    "growth": growth_section,
    "scans": scans_section,
    "start": start_section,
}
SECTIONS = ("default", *PER_WORKLOAD, *ONCE, "memory")


def applies(section: str, workload: Workload) -> bool:
    """The peers and `vmap(jacrev)` are measured on single LSTM layers."""
    return section not in ("peers", "jacobians") or (workload.family == "lstm" and workload.recurrences == 1)
