"""The full set: singular values of single step Jacobians, and of their products.

The values are exact for small states (n <= 64); larger ones are measured by Lanczos at chosen (t, b), and by probes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.families.base import Family, State, Trace
from gradscope.families.blocks import EXACT, largest_eigenvalue
from gradscope.families.counting import column
from gradscope.families.measure import pieces
from gradscope.families.norms import norm

PROBES = 8
TIMES, SEQUENCES = 32, 4
ITERATIONS = 18


@dataclass(frozen=True, slots=True)
class Products:
    """Jacobians and their products, in the order of the recurrence.

    Attributes:
        jacobian_max: largest singular value of ds_t/ds_{t-1}, [T, B].
        measured: True where `jacobian_max` is measured, [T, B].
        gain: ||ds_T/ds_t||_F / sqrt(n), [T, B].
        error: standard error of `gain`, [T, B]; 0 if `gain` is exact.
        lyapunov: ln(largest singular value of ds_T/ds_0) / T, [B].
    """

    jacobian_max: Tensor
    measured: Tensor
    gain: Tensor
    error: Tensor
    lyapunov: Tensor


def measure_products(family: Family, trace: Trace, lengths: Tensor) -> Products:
    """Measure the full set.

    Args:
        family: the layer's equations.
        trace: the rebuilt layer.
        lengths: valid timesteps of each sequence, [B].
    """
    exact = sum(state_widths(family, trace)) <= EXACT
    largest, measured = (_exact_maxima if exact else _sampled_maxima)(family, trace, lengths)
    carried = _carry_back(family, trace, lengths, _identity(family, trace) if exact else _probes(family, trace))
    return Products(largest, measured, carried.gain, carried.error, _lyapunov(family, trace, lengths, carried, exact))


def state_widths(family: Family, trace: Trace) -> tuple[int, ...]:
    """Size of h, and of c if there is one."""
    return (trace.previous.shape[-1], trace.gates.shape[-1])[: 1 + family.cell]


def _split(rows: Tensor, widths: tuple[int, ...]) -> State:
    return rows.split(list(widths), -1)


def _identity(family: Family, trace: Trace) -> State:
    """The unit cotangents, [n, 1, .]."""
    widths = state_widths(family, trace)
    eye = torch.eye(sum(widths), dtype=trace.gates.dtype, device=trace.gates.device)
    return _split(eye.unsqueeze(1), widths)


def _probes(family: Family, trace: Trace) -> State:
    """Random signs, E[v v^T] = I, from a separate generator: [8, 1, .]."""
    widths = state_widths(family, trace)
    generator = torch.Generator("cpu").manual_seed(sum(widths))
    signs = torch.randint(0, 2, (PROBES, 1, sum(widths)), generator=generator, device="cpu") * 2 - 1
    return _split(signs.to(trace.gates.device, trace.gates.dtype), widths)


def _exact_maxima(family: Family, trace: Trace, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Largest singular value at every (t, b), from the Jacobians themselves."""
    eye, weights = _identity(family, trace), trace.layer.weights
    maxima: list[Tensor] = []
    for start, stop in pieces(trace.layer, len(family.gates)):
        factors = family.piece(trace, start, stop).factors
        points = (stop - start) * trace.gates.shape[1]
        everywhere = tuple(e.expand(-1, points, -1) for e in eye)
        rows = family.pull(weights, tuple(f.flatten(0, 1) for f in factors), everywhere)
        maxima.append(largest_singular(torch.cat(rows, -1).transpose(0, 1)).view(stop - start, -1))
    steps = column(trace.gates.shape[0], lengths.device)
    return torch.cat(maxima[::-1]), steps < lengths


def largest_singular(matrices: Tensor) -> Tensor:
    """Largest singular value of each matrix of a batch; NaN if the matrix is not finite."""
    broken = ~matrices.isfinite().all(-1).all(-1)
    gram = (matrices @ matrices.mT).masked_fill(broken[..., None, None], 0)
    return torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).sqrt().masked_fill(broken, torch.nan)


def _sampled_maxima(family: Family, trace: Trace, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Lanczos on J^T J at up to 32 evenly spaced timesteps of up to 4 sequences, all at once."""
    steps, batch = trace.gates.shape[:2]
    device = lengths.device
    times = torch.linspace(0, steps - 1, min(TIMES, steps), device=device).round().long()
    columns = torch.linspace(0, batch - 1, min(SEQUENCES, batch), device=device).round().long()
    parts = [family.piece(trace, t, t + 1).factors for t in times.tolist()]
    factors = tuple(torch.cat(f)[:, columns].flatten(0, 1) for f in zip(*parts, strict=True))
    weights, widths = trace.layer.weights, state_widths(family, trace)

    def gram(v: Tensor) -> Tensor:
        pushed = family.push(weights, factors, _split(v, widths))
        return torch.cat([s[0] for s in family.pull(weights, factors, tuple(p.unsqueeze(0) for p in pushed))], -1)

    like = factors[0].new_empty(len(times) * len(columns), sum(widths))
    maxima = largest_eigenvalue(gram, like, ITERATIONS).sqrt().view(len(times), len(columns))
    largest = maxima.new_full((steps, batch), torch.nan)
    largest[times.unsqueeze(1), columns] = maxima
    measured = torch.zeros_like(largest, dtype=torch.bool)
    measured[times.unsqueeze(1), columns] = True
    return largest, measured & (column(steps, device) < lengths)


@dataclass(frozen=True, slots=True)
class _Carried:
    """Cotangents carried from each sequence's last state to its first, as `state * exp(log)`."""

    gain: Tensor
    error: Tensor
    state: State
    log: Tensor


def _carry_back(family: Family, trace: Trace, lengths: Tensor, start_with: State) -> _Carried:
    """Carry rows v back through the recurrence; their mean squared norm is ||ds_T/ds_t||_F^2 if E[v v^T] = I.

    Products over- and underflow, so the rows of each sequence are rescaled at every step; `log` sums the logarithms.
    """
    weights, batch = trace.layer.weights, trace.gates.shape[1]
    rows, width = start_with[0].shape[0], sum(state_widths(family, trace))
    exact = rows == width
    state: State = tuple(v.new_zeros(rows, batch, v.shape[-1]) for v in start_with)
    first, log = state, torch.zeros(batch, dtype=torch.float64, device=lengths.device)
    gains: list[Tensor] = []
    errors: list[Tensor] = []
    for start, stop in pieces(trace.layer, len(family.gates)):
        factors = list(zip(*(f.unbind(0) for f in family.piece(trace, start, stop).factors), strict=True))
        for t in range(stop - 1, start - 1, -1):
            begins = (lengths - 1 == t).unsqueeze(-1)
            state = tuple(torch.where(begins, v, s) for v, s in zip(start_with, state, strict=True))
            squares = torch.stack([norm(s).square() for s in state]).sum(0)
            total = squares.sum(0)
            scale = (total / rows).sqrt()
            gains.append((total / (width if exact else rows * width)).sqrt() * log.exp())
            errors.append(torch.zeros_like(scale) if exact else standard_error(squares, width) * log.exp())
            scale = torch.where(scale > 0, scale, 1)
            state = tuple((s / scale.unsqueeze(-1)).to(s.dtype) for s in state)
            log = torch.where(begins.squeeze(-1), 0, log) + scale.log()
            first = state
            state = _linked(trace, t, family.pull(weights, factors[t - start], state))
    return _Carried(torch.stack(gains[::-1]), torch.stack(errors[::-1]), first, log)


def _linked(trace: Trace, t: int, state: State) -> State:
    """Multiply by the loop's factor between s_{t-1} and the input of step t."""
    links = trace.layer.links
    return state if links is None else tuple(s * link[t] for s, link in zip(state, links, strict=True))


def standard_error(squares: Tensor, width: int | Tensor) -> Tensor:
    """Standard error of sqrt(mean(squares) / width), to first order; `squares` are [rows, B]."""
    mean = squares.mean(0)
    return squares.std(0) / len(squares) ** 0.5 / (2 * (mean * width).sqrt()).clamp(min=1e-300)


def _lyapunov(family: Family, trace: Trace, lengths: Tensor, carried: _Carried, exact: bool) -> Tensor:
    """Lyapunov exponent from the rows carried back to s_0.

    Exact rows are the product itself. With probes, one step of subspace iteration orthogonalises the rows and carries
    them forward again; the largest singular value of the result is a lower bound, close if the product has a leading
    direction.
    """
    rows = torch.cat(carried.state, -1).transpose(0, 1)  # [B, rows, n]
    log = carried.log
    if not exact:
        rows, log = _carry_forward(family, trace, lengths, torch.linalg.qr(rows.mT)[0].mT)
    size = largest_singular(rows.double())
    spans = lengths - 1
    return ((size.log() + log) / spans).masked_fill(spans == 0, torch.nan)


def _carry_forward(family: Family, trace: Trace, lengths: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Push tangents of s_0, [B, rows, n], to each sequence's last state: scaled tangents and the log of the scale."""
    weights, widths = trace.layer.weights, state_widths(family, trace)
    state = _split(rows.transpose(0, 1), widths)
    log = torch.zeros(rows.shape[0], dtype=torch.float64, device=rows.device)
    for start, stop in reversed(list(pieces(trace.layer, len(family.gates)))):
        factors = list(zip(*(f.unbind(0) for f in family.piece(trace, start, stop).factors), strict=True))
        for t in range(max(start, 1), stop):
            runs = t < lengths
            pushed = family.push(weights, factors[t - start], _linked(trace, t, state))
            scale = torch.stack([norm(s).square() for s in pushed]).sum(0).mean(0).sqrt()
            scale = torch.where(runs & (scale > 0), scale, 1)
            log = log + scale.log()
            keep = runs.unsqueeze(-1)
            state = tuple(
                torch.where(keep, (p / scale.unsqueeze(-1)).to(s.dtype), s) for p, s in zip(pushed, state, strict=True)
            )
    return torch.cat(state, -1).transpose(0, 1), log
