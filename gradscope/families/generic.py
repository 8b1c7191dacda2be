"""Measurements of a chain of calls of any cell."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradscope.families.base import RELU_LIMITS, SIGMOID_LIMITS, TANH_LIMITS
from gradscope.families.blocks import measure_square_blocks
from gradscope.families.counting import column
from gradscope.families.jacobians import ProbedSteps, Steps, steps_of
from gradscope.families.norms import norm, relative, relative_parts
from gradscope.families.products import SEQUENCES, TIMES, standard_error
from gradscope.families.reach import Anchors, pick_anchors, reach_by_lag
from gradscope.families.saturation import Saturation
from gradscope.families.work import CORE_WORK, Work
from gradscope.types import Analysis, Block, Gate, Recurrence

WITNESSED = frozenset({"grad_h", "grad_h_direct", "state", "cell"})
LIMITS = {"sigmoid": SIGMOID_LIMITS, "tanh": TANH_LIMITS, "relu": RELU_LIMITS}


NOT_RUN = (
    "gradscope cannot run the cell by itself, so its Jacobians are unknown: {error}; a module that takes all timesteps "
    "at once is no cell: observe it with positions="
)
DIFFERS = (
    "a replay of the cell with the same arguments returns another state than the training (relative difference "
    "{residual:.2g}): the new state depends on more than the arguments, such as the other sequences of the batch "
    "(BatchNorm), the order of calls, hooks inside the cell, or a state that the cell makes if it gets none"
)
NOT_BACK = "torch cannot differentiate the cell twice ({error}); quantities='core' needs only the first derivative"


def analyse_recurrence(recurrence: Recurrence, *, work: Work = CORE_WORK) -> Analysis:
    """Measure a chain of calls of any cell; see `gradscope.families.analyse`."""
    residual = torch.full((), math.nan, device=recurrence.lengths.device)
    try:  # runs the user's code
        residual = _residual(recurrence)
        reason = recurrence.reason
        if not reason and not float(residual) <= recurrence.tolerance:
            reason = DIFFERS.format(residual=float(residual))
    except Exception as error:
        reason = NOT_RUN.format(error=str(error) or type(error).__name__)
    if not reason:
        try:
            return _Measuring(recurrence, steps_of(recurrence), work.parts, residual).run()
        except (RuntimeError, NotImplementedError) as error:
            reason = NOT_BACK.format(error=error)
    return _without_jacobians(recurrence, work.parts, residual, reason)


def _residual(r: Recurrence) -> Tensor:
    """Relative difference of the replayed states from the returned ones."""
    valid = _valid(r)
    times, columns = valid.nonzero(as_tuple=True)
    parts = r.step(times, columns, [part[times, columns] for part in r.previous])
    differences = [
        relative(relative_parts(mine.to(theirs.dtype), theirs[times, columns]))
        for mine, theirs in zip(parts, r.returned, strict=True)
    ]
    return torch.stack(differences).amax()


def _valid(r: Recurrence) -> Tensor:
    return column(len(r.returned[0]), r.lengths.device) < r.lengths


def _widths(r: Recurrence, part: int) -> Tensor | int:
    """Number of units of a part of the state: for each place, [T, B], or one number for all."""
    return r.returned[part].shape[-1] if r.widths is None else r.widths[part]


def _known_values(r: Recurrence) -> dict[str, Tensor]:
    """Values that need no replay of the cell."""
    sizes = norm(r.totals[0]), norm(r.direct[0]), norm(r.returned[0]) / _widths(r, 0) ** 0.5
    values: dict[str, Tensor] = dict(zip(("grad_h", "grad_h_direct", "state"), sizes, strict=True))
    if len(r.returned) > 1:
        values["cell"] = norm(r.returned[1]) / _widths(r, 1) ** 0.5
    return values


def _without_jacobians(r: Recurrence, parts: frozenset[str], residual: Tensor, reason: str) -> Analysis:
    """The analysis of a cell without a replay: known values, NaN for the others, and the reason."""
    values = _known_values(r)
    names = ("jacobian", "jacobian_h", "jacobian_c")[: 1 + min(2, len(r.returned))]
    blank = torch.full_like(values["state"], math.nan)
    values |= dict.fromkeys((*names, *(("jacobian_max", "gain") if "products" in parts else ())), blank)
    valid, anchors = _valid(r), pick_anchors(norm(torch.cat(r.direct, -1)))
    reach, reached = reach_by_lag(anchors, torch.zeros(len(blank), *anchors.times.shape, device=blank.device))
    return Analysis(
        layer=0,
        direction="forward",
        lengths=r.lengths,
        values=values,
        witnessed=WITNESSED,
        measured={},
        errors={},
        reach=reach,
        reached=reached,
        gates=_gates(r, valid, parts),
        blocks=_blocks(r, parts),
        lyapunov=None,
        residual=residual,
        tolerance=r.tolerance,
        reason=reason,
        starts=r.starts,
    )


@dataclass(slots=True)
class _Measuring:
    recurrence: Recurrence
    steps: Steps
    parts: frozenset[str]
    residual: Tensor

    def run(self) -> Analysis:
        r, joint = self.recurrence, torch.cat(self.recurrence.direct, -1)
        anchors, valid = pick_anchors(norm(joint)), _valid(self.recurrence)
        back = self._scan(joint, anchors, valid)
        values, errors = self._sizes() if "sizes" in self.parts else ({}, {})
        reach, reached = reach_by_lag(anchors, back.carried)
        analysis = Analysis(
            layer=0,
            direction="forward",
            lengths=r.lengths,
            values={**_known_values(r), **values},
            witnessed=WITNESSED,
            measured={},
            errors=errors,
            reach=reach,
            reached=reached,
            gates=_gates(r, valid, self.parts),
            blocks=_blocks(r, self.parts),
            lyapunov=None,
            residual=self.residual,
            tolerance=r.tolerance,
            gradient_residual=relative(relative_parts(back.total, torch.cat(r.totals, -1), valid)),
            starts=r.starts,
        )
        return self._with_full_set(analysis) if "products" in self.parts else analysis

    def _scan(self, joint: Tensor, anchors: Anchors, valid: Tensor) -> _Back:
        """Carry the total gradient, and each anchor's alone, back through all steps."""
        r, steps = self.recurrence, self.steps
        count, batch = len(anchors.times), joint.shape[1]
        links = None if r.links is None else torch.cat(r.links, -1)
        carry = joint.new_zeros(1 + count, *joint.shape[1:])
        totals, carried = list[Tensor](), list[Tensor]()
        for t in range(len(joint) - 1, -1, -1):
            starts = (anchors.times == t).unsqueeze(-1)
            scale = torch.where(anchors.sizes > 0, 1 / anchors.sizes, 0).to(joint.dtype).unsqueeze(-1)
            entering = torch.where(starts, joint[t] * scale, 0)
            state = carry + torch.cat([joint[t].unsqueeze(0), entering])
            totals.append(state[0])
            carried.append(norm(state[1:]))
            carry = steps.pull(t, state)
            carry = carry if links is None else carry * links[t]
            carry = carry.masked_fill(~valid[t].unsqueeze(-1), 0)  # a cell may have no derivative in the padding
        return _Back(torch.stack(totals[::-1]), torch.stack(carried[::-1]).view(-1, count, batch))

    def _sizes(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Sizes of the Jacobian and its blocks, [T, B] each, and the standard errors of sizes from probes."""
        names: tuple[str, ...] = ("jacobian", "jacobian_h", "jacobian_c")
        parts = [_widths(self.recurrence, p) for p in range(len(self.steps.widths))]
        steps = [tuple(p if isinstance(p, int) else p[t] for p in parts) for t in range(self.steps.steps)]
        widths: list[dict[str, Any]] = [dict(zip(names, (sum(now), *now), strict=False)) for now in steps]
        sizes: dict[str, list[Tensor]] = {}
        errors: dict[str, list[Tensor]] = {}
        for t in range(self.steps.steps - 1, -1, -1):
            for name, squares in self.steps.squares(t).items():
                sizes.setdefault(name, []).append((squares.mean(0) / widths[t][name]).sqrt())
                if not self.steps.exact:
                    errors.setdefault(name, []).append(standard_error(squares, widths[t][name]))
        return (
            {name: torch.stack(parts[::-1]) for name, parts in sizes.items()},
            {name: torch.stack(parts[::-1]) for name, parts in errors.items()},
        )

    def _with_full_set(self, a: Analysis) -> Analysis:
        """Add the full set: largest singular values, gain and Lyapunov exponent."""
        steps, device = self.steps, a.lengths.device
        times, columns = (
            _evenly(count, most if isinstance(steps, ProbedSteps) else count).to(device)
            for count, most in ((steps.steps, TIMES), (steps.batch, SEQUENCES))
        )
        chosen = times.unsqueeze(1), columns
        largest = a.values["state"].new_full((steps.steps, steps.batch), math.nan)
        largest[chosen] = steps.largest(times.tolist(), columns).to(largest.dtype)
        measured = torch.zeros_like(largest, dtype=torch.bool)
        measured[chosen] = True
        measured &= column(steps.steps, device) < a.lengths
        gain, error, lyapunov = self._products(a.lengths)
        errors = a.errors if steps.exact else {**a.errors, "gain": error}
        values = {**a.values, "jacobian_max": largest, "gain": gain}
        return replace(a, values=values, errors=errors, measured={"jacobian_max": measured}, lyapunov=lyapunov)

    def _products(self, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Size of ds_T/ds_t with its error, [T, B], and ln(largest singular value of ds_T/ds_0) / T, [B]."""
        steps, r = self.steps, self.recurrence
        (start, width), probed = self._start(lengths), isinstance(steps, ProbedSteps)
        links = None if r.links is None else torch.cat(r.links, -1)
        rows, log = torch.zeros_like(start), torch.zeros(steps.batch, dtype=torch.float64, device=lengths.device)
        first, gains, errors = rows, list[Tensor](), list[Tensor]()
        for t in range(steps.steps - 1, -1, -1):
            begins, runs = lengths - 1 == t, lengths > t
            rows = torch.where(begins.unsqueeze(-1), start, rows)
            squares = norm(rows).square() * steps.share
            total = squares.sum(0)
            gains.append((total / (len(rows) * width if probed else width)).sqrt() * log.exp())
            errors.append(standard_error(squares, width) * log.exp() if probed else torch.zeros_like(total))
            scale = torch.where(total > 0, (total / len(rows)).sqrt(), 1)
            log = torch.where(begins, 0, log) + scale.log()
            first = rows = (rows / scale.unsqueeze(-1)).to(rows.dtype)
            rows = steps.pull(t, rows).masked_fill(~runs.unsqueeze(-1), 0)
            rows = rows if links is None else rows * links[t]
        if probed:  # one step of subspace iteration: a lower bound, close if the product has a leading direction
            first, log = self._forward(lengths, torch.linalg.qr(first.transpose(0, 1).mT)[0].mT.transpose(0, 1))
        size, spans = steps.largest_of(first), lengths - 1
        return (
            torch.stack(gains[::-1]),
            torch.stack(errors[::-1]),
            ((size.log() + log) / spans).masked_fill(spans == 0, math.nan),
        )

    def _start(self, lengths: Tensor) -> tuple[Tensor, Tensor | int]:
        """First rows of the products, [R, B, m], and number of units of the last state of each sequence."""
        start = self.steps.start()
        if self.recurrence.widths is None:
            return start, start.shape[-1]
        last = (lengths - 1).unsqueeze(0)
        widths = [w.gather(0, last)[0] for w in self.recurrence.widths]
        there = [
            torch.arange(n, device=last.device) < w.unsqueeze(1) for n, w in zip(self.steps.widths, widths, strict=True)
        ]
        return start * torch.cat(there, -1), torch.stack(widths).sum(0)

    def _forward(self, lengths: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Push tangents of s_0, [R, B, n], to each sequence's last state: scaled tangents and the log of the scale."""
        links = None if self.recurrence.links is None else torch.cat(self.recurrence.links, -1)
        log = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
        for t in range(1, self.steps.steps):
            runs = t < lengths
            pushed = self.steps.push(t, rows if links is None else rows * links[t])
            scale = norm(pushed).square().mean(0).sqrt()
            scale = torch.where(runs & (scale > 0), scale, 1)
            log = log + scale.log()
            rows = torch.where(runs.unsqueeze(-1), (pushed / scale.unsqueeze(-1)).to(rows.dtype), rows)
        return rows, log


@dataclass(frozen=True, slots=True)
class _Back:
    """Total gradients, [T, B, m], and norms of each anchor's remaining gradient, [T, A, B]."""

    total: Tensor
    carried: Tensor


def _gates(r: Recurrence, valid: Tensor, parts: frozenset[str]) -> dict[str, Gate]:
    gates: dict[str, Gate] = {}
    for name, (x, kind) in r.gates.items() if "saturation" in parts else ():
        counted = Saturation([LIMITS[kind]], x)
        counted.add([x.unsqueeze(2)], valid)
        (gates[name],) = counted.finish()
    return gates


def _blocks(r: Recurrence, parts: frozenset[str]) -> dict[str, Block]:
    return measure_square_blocks(r.blocks, "eigenvalues" in parts) if "blocks" in parts else {}


def _evenly(count: int, most: int) -> Tensor:
    return torch.linspace(0, count - 1, min(most, count), device="cpu").round().long()
