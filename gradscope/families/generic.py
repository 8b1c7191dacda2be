"""Any cell at all: its step Jacobian by automatic differentiation, for every s_{t-1} is known.

Small states (n <= 64) have their Jacobians formed, all timesteps of a piece in one go; larger ones are probed: with
E[v v^T] = I the mean of ||J^T v||^2 is ||J||_F^2, and the spread of the probes its standard error. A diagonal
transition needs neither.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

from gradscope.families.base import SIGMOID_LIMITS, TANH_LIMITS
from gradscope.families.blocks import EXACT, largest_eigenvalue, measure_square_blocks
from gradscope.families.measure import norm, relative, relative_parts
from gradscope.families.products import ITERATIONS, PROBES, SEQUENCES, TIMES, largest_singular, standard_error
from gradscope.families.reach import Anchors, pick_anchors, reach_by_lag
from gradscope.types import Analysis, Gate, Recurrence

ELEMENTS = 1 << 22
LIMITS = {"sigmoid": SIGMOID_LIMITS, "tanh": TANH_LIMITS, "relu": (1e-45, math.inf)}


class Steps(ABC):
    """The step Jacobians J_t = ds_t/ds_{t-1} of a recurrence, m by n; states are joined, [..., n].

    Attributes:
        widths: sizes of the parts of the state.
        exact: whether the sizes are.
    """

    exact: bool = True

    def __init__(self, recurrence: Recurrence) -> None:
        self.recurrence = recurrence
        self.widths = [part.shape[-1] for part in recurrence.returned]
        self.steps, self.batch = recurrence.returned[0].shape[:2]

    @abstractmethod
    def pull(self, t: int, rows: Tensor) -> Tensor:
        """J_t^T v for rows v, [R, B, m] -> [R, B, n]; the last timestep first."""

    @abstractmethod
    def push(self, t: int, rows: Tensor) -> Tensor:
        """J_t v, [R, B, n] -> [R, B, m]."""

    @abstractmethod
    def squares(self, t: int) -> dict[str, Tensor]:
        """Squared Frobenius norms of J_t and its diagonal blocks, [R, B] each, whose mean is meant: R probes or one."""

    @abstractmethod
    def largest(self, times: Sequence[int], columns: Tensor) -> Tensor:
        """Largest singular value of J_t at these timesteps and sequences, [times, columns]."""

    def split(self, rows: Tensor) -> list[Tensor]:
        """The parts of a state."""
        return list(rows.split(self.widths, -1))


class DiagonalSteps(Steps):
    """`s_t = a_t s_{t-1} + b_t`, a_t a vector: real, or complex as pairs."""

    def __init__(self, recurrence: Recurrence) -> None:
        super().__init__(recurrence)
        assert recurrence.transition is not None
        self.a = recurrence.transition
        self.complex = self.a.is_complex()

    def _times(self, t: int, rows: Tensor, a: Tensor) -> Tensor:
        if not self.complex:
            return rows * a
        return torch.view_as_real(torch.view_as_complex(rows.unflatten(-1, (-1, 2)).contiguous()) * a).flatten(-2)

    @override
    def pull(self, t: int, rows: Tensor) -> Tensor:
        return self._times(t, rows, self.a[t].conj())

    @override
    def push(self, t: int, rows: Tensor) -> Tensor:
        return self._times(t, rows, self.a[t])

    @override
    def squares(self, t: int) -> dict[str, Tensor]:
        size = self.a[t].abs().double().square().sum(-1).unsqueeze(0) * (1 + self.complex)
        return {"jacobian": size, "jacobian_h": size}

    @override
    def largest(self, times: Sequence[int], columns: Tensor) -> Tensor:
        return self.a[list(times)][:, columns].abs().amax(-1)


class FormedSteps(Steps):
    """Jacobians formed, a piece of time at once."""

    def __init__(self, recurrence: Recurrence) -> None:
        super().__init__(recurrence)
        size = sum(self.widths) * sum(part.shape[-1] for part in recurrence.given) * max(1, self.batch)
        self.span = max(1, ELEMENTS // size)
        self.piece: tuple[int, Tensor] = (-1, torch.empty(0))

    def at(self, t: int) -> Tensor:
        """J_t, [B, m, n]."""
        start = t // self.span * self.span
        if self.piece[0] != start:
            stop = min(self.steps, start + self.span)
            times = torch.arange(start, stop, device=self.recurrence.lengths.device).repeat_interleave(self.batch)
            columns = torch.arange(self.batch, device=times.device).repeat(stop - start)
            self.piece = start, form_jacobians(self.recurrence, times, columns).unflatten(0, (stop - start, self.batch))
        return self.piece[1][t - start]

    @override
    def pull(self, t: int, rows: Tensor) -> Tensor:
        return torch.einsum("rbm,bmn->rbn", rows, self.at(t))

    @override
    def push(self, t: int, rows: Tensor) -> Tensor:
        return torch.einsum("rbn,bmn->rbm", rows, self.at(t))

    @override
    def squares(self, t: int) -> dict[str, Tensor]:
        squares = self.at(t).double().square()
        found = {"jacobian": squares.sum((1, 2)).unsqueeze(0)}
        start = 0
        for name, width in zip(("jacobian_h", "jacobian_c"), self.widths, strict=False):
            found[name] = squares[:, start : start + width, start : start + width].sum((1, 2)).unsqueeze(0)
            start += width
        return found

    @override
    def largest(self, times: Sequence[int], columns: Tensor) -> Tensor:
        return torch.stack([largest_singular(self.at(t)[columns]) for t in reversed(times)]).flip(0)


class ProbedSteps(Steps):
    """Jacobians never formed: each step is run again, and cotangents are carried through it."""

    exact = False

    def __init__(self, recurrence: Recurrence) -> None:
        super().__init__(recurrence)
        self.columns = torch.arange(self.batch, device=recurrence.lengths.device)
        generator = torch.Generator("cpu").manual_seed(sum(self.widths))
        shape = (PROBES, 1, sum(self.widths))
        signs = torch.randint(0, 2, shape, generator=generator, device="cpu") * 2 - 1
        self.probes = signs.to(recurrence.returned[0]).expand(-1, self.batch, -1)
        self.graph: tuple[int, tuple[Tensor, ...], Tensor] | None = None

    def _graph(self, t: int) -> tuple[tuple[Tensor, ...], Tensor]:
        if self.graph is None or self.graph[0] != t:
            self.graph = t, *run_step(self.recurrence, torch.full_like(self.columns, t), self.columns)
        return self.graph[1:]

    @override
    def pull(self, t: int, rows: Tensor) -> Tensor:
        return carry_back(*self._graph(t), rows)

    @override
    def push(self, t: int, rows: Tensor) -> Tensor:
        return carry_forward(*self._graph(t), rows)

    @override
    def squares(self, t: int) -> dict[str, Tensor]:
        found = {"jacobian": torch.zeros(len(self.probes), self.batch, dtype=torch.float64, device=self.columns.device)}
        start = 0
        for number, width in enumerate(self.widths):
            part = torch.zeros_like(self.probes)
            part[..., start : start + width] = self.probes[..., start : start + width]
            back = self.pull(t, part)
            found["jacobian"] += norm(back).square()
            if number < 2:
                found[("jacobian_h", "jacobian_c")[number]] = norm(back[..., start : start + width]).square()
            start += width
        return found

    @override
    def largest(self, times: Sequence[int], columns: Tensor) -> Tensor:
        chosen = torch.tensor(list(times), device=columns.device).repeat_interleave(len(columns))
        inputs, output = run_step(self.recurrence, chosen, columns.repeat(len(times)))

        def gram(v: Tensor) -> Tensor:
            return carry_back(inputs, output, carry_forward(inputs, output, v.unsqueeze(0)))[0]

        like = torch.cat([p.detach() for p in inputs], -1)
        return largest_eigenvalue(gram, like, ITERATIONS).sqrt().view(len(times), len(columns))


def run_step(recurrence: Recurrence, times: Tensor, columns: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Run the step at some places: the parts of the state given there, with a graph to the new state, joined."""
    with torch.enable_grad():
        inputs = tuple(part[times, columns].detach().requires_grad_() for part in recurrence.given)
        return inputs, torch.cat([r.to(inputs[0].dtype) for r in recurrence.step(times, columns, inputs)], -1)


def carry_back(inputs: tuple[Tensor, ...], output: Tensor, rows: Tensor) -> Tensor:
    """J^T v of rows v, [R, N, m] -> [R, N, n]; each place's Jacobian by itself, for a cell treats rows alone."""
    if not output.requires_grad:
        return rows.new_zeros(*rows.shape[:2], sum(p.shape[-1] for p in inputs))
    try:
        found = torch.autograd.grad(
            output, inputs, rows.to(output.dtype), retain_graph=True, is_grads_batched=True, allow_unused=True
        )
    except RuntimeError:  # an operation that cannot be batched
        single = [torch.autograd.grad(output, inputs, v, retain_graph=True, allow_unused=True) for v in rows]
        found = tuple(None if part[0] is None else torch.stack(part) for part in zip(*single, strict=True))
    blank = (rows.new_zeros(len(rows), *p.shape) for p in inputs)
    return torch.cat([b if g is None else g for g, b in zip(found, blank, strict=True)], -1)


def carry_forward(inputs: tuple[Tensor, ...], output: Tensor, rows: Tensor) -> Tensor:
    """J v of rows v, [R, N, n] -> [R, N, m]: the derivative of u -> J^T u, which is linear."""
    if not output.requires_grad:
        return rows.new_zeros(*rows.shape[:2], output.shape[-1])
    with torch.enable_grad():
        u = torch.zeros_like(output, requires_grad=True)
        back = torch.autograd.grad(output, inputs, u, create_graph=True, allow_unused=True)
        joined = torch.cat([torch.zeros_like(p) if g is None else g for g, p in zip(back, inputs, strict=True)], -1)
    found = [torch.autograd.grad(joined, u, v, retain_graph=True, allow_unused=True)[0] for v in rows]
    return torch.stack([torch.zeros_like(output) if f is None else f for f in found])


def form_jacobians(recurrence: Recurrence, times: Tensor, columns: Tensor) -> Tensor:
    """J at some places, [N, m, n]."""
    inputs, output = run_step(recurrence, times, columns)
    size = output.shape[-1]
    eye = torch.eye(size, dtype=output.dtype, device=output.device).unsqueeze(1).expand(-1, len(output), -1)
    return carry_back(inputs, output.contiguous(), eye).transpose(0, 1)


def steps_of(recurrence: Recurrence) -> Steps:
    """The cheapest exact way to the Jacobians, or probes."""
    if recurrence.transition is not None:
        return DiagonalSteps(recurrence)
    wide = max(sum(p.shape[-1] for p in parts) for parts in (recurrence.given, recurrence.returned))
    return (FormedSteps if wide <= EXACT else ProbedSteps)(recurrence)


def analyse_recurrence(recurrence: Recurrence, *, full: bool = False) -> Analysis:
    """Measure a chain of calls of any cell: see `gradscope.families.analyse`."""
    return _Measuring(recurrence, steps_of(recurrence), full).run()


@dataclass(slots=True)
class _Measuring:
    recurrence: Recurrence
    steps: Steps
    full: bool

    def run(self) -> Analysis:
        r, joint = self.recurrence, torch.cat(self.recurrence.direct, -1)
        anchors = pick_anchors(norm(joint))
        back = self._scan(joint, anchors)
        values, errors = self._sizes()
        sizes = norm(r.totals[0]), norm(r.direct[0]), norm(r.returned[0]) / r.returned[0].shape[-1] ** 0.5
        values = {**dict(zip(("grad_h", "grad_h_direct", "state"), sizes, strict=True)), **values}
        if len(r.returned) > 1:
            values["cell"] = norm(r.returned[1]) / r.returned[1].shape[-1] ** 0.5
        reach, reached = reach_by_lag(anchors, back.carried)
        valid = torch.arange(len(joint), device=r.lengths.device).unsqueeze(1) < r.lengths
        analysis = Analysis(
            layer=0,
            direction="forward",
            lengths=r.lengths,
            values=values,
            measured={},
            errors=errors,
            reach=reach,
            reached=reached,
            gates={name: saturation(x, LIMITS[kind], valid) for name, (x, kind) in r.gates.items()},
            blocks=measure_square_blocks(r.blocks, self.full),
            lyapunov=None,
            residual=self._residual(valid),
            tolerance=r.tolerance,
            gradient_residual=relative(relative_parts(back.total, torch.cat(r.totals, -1), valid)),
            starts=r.starts,
        )
        return self._in_full(analysis) if self.full else analysis

    def _scan(self, joint: Tensor, anchors: Anchors) -> _Back:
        """Carry the total gradient and each anchor's alone back through all steps."""
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
        return _Back(torch.stack(totals[::-1]), torch.stack(carried[::-1]).view(-1, count, batch))

    def _sizes(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Sizes of the Jacobian and its blocks, [T, B] each, and their standard errors where they rest on probes."""
        names = ("jacobian", "jacobian_h", "jacobian_c")
        widths = dict(zip(names, (sum(self.steps.widths), *self.steps.widths), strict=False))
        found: dict[str, list[Tensor]] = {}
        errors: dict[str, list[Tensor]] = {}
        for t in range(self.steps.steps - 1, -1, -1):
            for name, squares in self.steps.squares(t).items():
                found.setdefault(name, []).append((squares.mean(0) / widths[name]).sqrt())
                if not self.steps.exact:
                    errors.setdefault(name, []).append(standard_error(squares, widths[name]))
        return (
            {name: torch.stack(parts[::-1]) for name, parts in found.items()},
            {name: torch.stack(parts[::-1]) for name, parts in errors.items()},
        )

    def _residual(self, valid: Tensor) -> Tensor:
        """How far the cell, run again, is from what it returned."""
        r = self.recurrence
        times, columns = valid.nonzero(as_tuple=True)
        parts = r.step(times, columns, [part[times, columns] for part in r.given])
        differences = [
            relative(relative_parts(mine.to(theirs.dtype), theirs[times, columns]))
            for mine, theirs in zip(parts, r.returned, strict=True)
        ]
        return torch.stack(differences).amax()

    def _in_full(self, a: Analysis) -> Analysis:
        """With the full set: largest singular values, gain and Lyapunov exponent."""
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
        measured &= torch.arange(steps.steps, device=device).unsqueeze(1) < a.lengths
        gain, error, lyapunov = self._products(a.lengths)
        errors = a.errors if steps.exact else {**a.errors, "gain": error}
        values = {**a.values, "jacobian_max": largest, "gain": gain}
        return replace(a, values=values, errors=errors, measured={"jacobian_max": measured}, lyapunov=lyapunov)

    def _products(self, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Size of ds_T/ds_t with its error, [T, B], and ln(largest singular value of ds_T/ds_0) / T, [B]."""
        steps, r = self.steps, self.recurrence
        width = sum(steps.widths)
        few = isinstance(steps, ProbedSteps)
        start = (
            steps.probes if isinstance(steps, ProbedSteps) else torch.eye(width, dtype=r.given[0].dtype).unsqueeze(1)
        )
        start = start.to(r.given[0]).expand(-1, steps.batch, -1)
        links = None if r.links is None else torch.cat(r.links, -1)
        rows, log = torch.zeros_like(start), torch.zeros(steps.batch, dtype=torch.float64, device=lengths.device)
        first, gains, errors = rows, list[Tensor](), list[Tensor]()
        for t in range(steps.steps - 1, -1, -1):
            begins = lengths - 1 == t
            rows = torch.where(begins.unsqueeze(-1), start, rows)
            squares = norm(rows).square()
            total = squares.sum(0)
            gains.append((total / (len(rows) * width if few else width)).sqrt() * log.exp())
            errors.append(standard_error(squares, width) * log.exp() if few else torch.zeros_like(total))
            scale = torch.where(total > 0, (total / len(rows)).sqrt(), 1)
            log = torch.where(begins, 0, log) + scale.log()
            first = rows = (rows / scale.unsqueeze(-1)).to(rows.dtype)
            rows = steps.pull(t, rows)
            rows = rows if links is None else rows * links[t]
        if few:  # one step of subspace iteration: a lower bound, close where the product has a leading direction
            first, log = self._forward(lengths, torch.linalg.qr(first.transpose(0, 1).mT)[0].mT.transpose(0, 1))
        size = largest_singular(first.transpose(0, 1).double())
        spans = lengths - 1
        return (
            torch.stack(gains[::-1]),
            torch.stack(errors[::-1]),
            ((size.log() + log) / spans).masked_fill(spans == 0, math.nan),
        )

    def _forward(self, lengths: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Push tangents of s_0, [R, B, n], to each sequence's last state: the same, and the logarithm of its scale."""
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
    """Total gradients, [T, B, m], and norms of what is left of each anchor's, [T, A, B]."""

    total: Tensor
    carried: Tensor


def _evenly(count: int, most: int) -> Tensor:
    return torch.linspace(0, count - 1, min(most, count), device="cpu").round().long()


def saturation(x: Tensor, limits: tuple[float, float], valid: Tensor) -> Gate:
    """Saturation of one gate from its activations, [T, B, H], where `valid`, [T, B]."""
    low, high = (x < limits[0]).to(x.dtype), (x > limits[1]).to(x.dtype)
    rows = valid.to(x.dtype).flatten()
    units = [(rows @ y.flatten(0, 1)) / rows.sum() for y in (low, high)]
    return Gate(low.mean(-1), high.mean(-1), x.mean(-1), *units)
