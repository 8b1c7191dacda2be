"""The sections of the report: measure, and say it as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from costs.default import measure_default
from costs.jacobians import CLOSED, measure_jacobians
from costs.memory import measure_memory
from costs.peers import COCKPIT, measure_peers
from costs.rounds import Ratio
from costs.steps import measure_steps
from costs.tables import Table
from costs.targets import CHEAPER, DEFAULT, MEMORY, target, verdict
from costs.workloads import Workload

NOT_MEASURED = "-"


@dataclass(frozen=True, slots=True)
class Budget:
    """Seconds for each measurement of one workload.

    Attributes:
        default: attached, and as many bare.
        slice: of these, at a stretch.
        steps: fixed intervals.
        peers: other people's tools.
        jacobians: `vmap(jacrev)`.
        memory: pairs of processes.
        small: the workloads are reduced, in processes of their own as well.
    """

    default: float = 30.0
    slice: float = 5.0
    steps: float = 36.0
    peers: float = 15.0
    jacobians: float = 8.0
    memory: int = 1
    small: bool = False


QUICK = Budget(default=0.6, slice=0.15, steps=0.5, peers=0.5, jacobians=0.3, memory=1, small=True)

COLUMNS = ("variant", "loss on the last step", "loss on every step", "target", "verdict")


def default_section(workload: Workload, budget: Budget) -> Table:
    """The default beside its bare training."""
    found = measure_default(workload, budget.default, budget.slice)
    wanted = target(DEFAULT, workload)
    table = Table(f"Default: {workload.title}", COLUMNS)
    row = (DEFAULT, spread(found.ratio), NOT_MEASURED, f"{wanted:g}", verdict(found.ratio, wanted))
    table.rows.append(row)
    table.notes.append(
        f"Ratio of the whole times (range: of {found.ratio.rounds} pairs of slices); {found.recorded} of {found.steps} "
        f"steps recorded. By the scope's own clock it costs {found.own_share:.2%} of the bare time. Attaching took "
        f"{found.attach_s:.2f} s and closing {found.close_s:.2f} s, once a run, not in the ratio."
    )
    if abs(found.clock - 1) > 0.05:
        table.notes.append(
            f"Not to be trusted: by the scope's clock the training took {found.clock:.2f} times what it did."
        )
    return table


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
    columns = ("closed form", "vmap(jacrev) costs", "target", "verdict")
    table = Table(f"Frobenius sizes of all step Jacobians: {workload.title}", columns)
    for name, factor in found.factors.items():
        cell = f"{factor.median:,.0f} times as much ({factor.low:,.0f} to {factor.high:,.0f})"
        short = CHEAPER - factor.median
        said = ("", "") if name != CLOSED else (f">= {CHEAPER:,.0f}", f"missed by {short:,.0f}" if short > 0 else "met")
        table.rows.append((name, cell, *said))
    table.notes.append(
        f"For {found.pairs:,} pairs (t, b): {found.training_steps:,.0f} training steps by vmap(jacrev), "
        f"{found.closed_steps:.3f} by the closed form. vmap(jacrev) was run on {found.sampled} random pairs, "
        f"16 at once, and scaled per pair; there the two differ by at most {found.difference:.1e}."
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
        "Peak resident set of a recorded step less that of a bare one, each in a process of its own whose allocator "
        "hands freed memory back at once. The first is what a machine has to have more. The second is the analysis "
        "alone, with what was copied for it: it runs within optimizer.step, when backward has freed the graph. One "
        "copy is (T, 16, 4H) float32 of one layer and direction, whatever the family and however many there are."
    )
    if unreset:
        table.notes.append("The system does not let peaks be reset here: both columns are peaks of the whole process.")
    return table


def spread(ratio: Ratio) -> str:
    """A ratio and its range."""
    digits = 4 if abs(ratio.median - 1) < 0.01 else 3
    return f"{ratio.median:.{digits}f} ({ratio.low:.3f} to {ratio.high:.3f})"


def _within(copies: float) -> str:
    return "met" if copies <= MEMORY else f"missed by {copies - MEMORY:.2f}"


PER_WORKLOAD: dict[str, Callable[[Workload, Budget], Table]] = {
    "default": default_section,
    "steps": steps_section,
    "peers": peers_section,
    "jacobians": jacobians_section,
}
SECTIONS = (*PER_WORKLOAD, "memory")


def applies(section: str, workload: Workload) -> bool:
    """The peers and `vmap(jacrev)` are measured on single LSTM layers."""
    return section not in ("peers", "jacobians") or (workload.family == "lstm" and workload.recurrences == 1)
