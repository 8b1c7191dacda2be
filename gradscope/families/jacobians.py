"""The step Jacobians of any recurrence, by automatic differentiation at the known states s_{t-1}.

For small states (n <= 64) the Jacobians of all timesteps of a piece are formed at once. For larger states random probes
measure them: with E[v v^T] = I the mean of ||J^T v||^2 is ||J||_F^2, and the spread of the probes its standard error. A
diagonal transition needs neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from gradscope.families.blocks import EXACT, largest_eigenvalue
from gradscope.families.norms import norm
from gradscope.families.products import ITERATIONS, PROBES, largest_singular
from gradscope.types import Recurrence

ELEMENTS = 1 << 22


class Steps(ABC):
    """The step Jacobians J_t = ds_t/ds_{t-1} of a recurrence, m by n; a state is one row of its joined parts, [..., n].

    Attributes:
        widths: sizes of the parts of the state.
        exact: True if the Frobenius norms are exact.
        share: factor on the squares of the rows from `start`, carried back.
    """

    exact: bool = True
    share: int = 1

    def __init__(self, recurrence: Recurrence) -> None:
        self.recurrence = recurrence
        self.widths = [part.shape[-1] for part in recurrence.returned]
        self.steps, self.batch = recurrence.returned[0].shape[:2]

    @abstractmethod
    def pull(self, t: int, rows: Tensor) -> Tensor:
        """J_t^T v for rows v, [R, B, m] -> [R, B, n]; callers begin with the last timestep."""

    @abstractmethod
    def push(self, t: int, rows: Tensor) -> Tensor:
        """J_t v, [R, B, n] -> [R, B, m]."""

    @abstractmethod
    def squares(self, t: int) -> dict[str, Tensor]:
        """Squared Frobenius norms of J_t and its diagonal blocks, [R, B] each: the mean over R probes, or one row."""

    @abstractmethod
    def largest(self, times: Sequence[int], columns: Tensor) -> Tensor:
        """Largest singular value of J_t at these timesteps and sequences, [times, columns]."""

    def start(self) -> Tensor:
        """Rows for a product of Jacobians, [R, B, m]: carried back they show the product."""
        eye = torch.eye(
            sum(self.widths), dtype=self.recurrence.previous[0].dtype, device=self.recurrence.previous[0].device
        )
        return eye.unsqueeze(1).expand(-1, self.batch, -1)

    def largest_of(self, rows: Tensor) -> Tensor:
        """Largest singular value of the product from the rows of `start`, carried back, [B]."""
        return largest_singular(rows.transpose(0, 1).double())


class DiagonalSteps(Steps):
    """`s_t = a_t s_{t-1} + b_t`, a_t a vector: real, or complex as pairs."""

    def __init__(self, recurrence: Recurrence) -> None:
        super().__init__(recurrence)
        assert recurrence.transition is not None
        self.a = recurrence.transition
        self.complex = self.a.is_complex()
        links = [] if recurrence.links is None else recurrence.links
        self.alone = not self.complex or all(bool((f[..., ::2] == f[..., 1::2]).all()) for f in links)
        self.share = 1 + (self.complex and self.alone)

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

    @override
    def start(self) -> Tensor:
        if not self.alone:
            return super().start()
        row = torch.ones_like(self.recurrence.previous[0][:1])  # the product is diagonal
        if self.complex:
            row[..., 1::2] = 0
        return row

    @override
    def largest_of(self, rows: Tensor) -> Tensor:
        if not self.alone:
            return super().largest_of(rows)
        row = rows[0].double()
        return (norm(row.unflatten(-1, (-1, 2))) if self.complex else row.abs()).amax(-1)


class FormedSteps(Steps):
    """Formed Jacobians, a piece of timesteps at once."""

    def __init__(self, recurrence: Recurrence) -> None:
        super().__init__(recurrence)
        size = sum(self.widths) * sum(part.shape[-1] for part in recurrence.previous) * max(1, self.batch)
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
        sizes = {"jacobian": squares.sum((1, 2)).unsqueeze(0)}
        start = 0
        for name, width in zip(("jacobian_h", "jacobian_c"), self.widths, strict=False):
            sizes[name] = squares[:, start : start + width, start : start + width].sum((1, 2)).unsqueeze(0)
            start += width
        return sizes

    @override
    def largest(self, times: Sequence[int], columns: Tensor) -> Tensor:
        return torch.stack([largest_singular(self.at(t)[columns]) for t in reversed(times)]).flip(0)


class ProbedSteps(Steps):
    """Jacobians by probes: replays each step and carries cotangents through, without forming a Jacobian."""

    exact = False

    def __init__(self, recurrence: Recurrence) -> None:
        super().__init__(recurrence)
        self.columns = torch.arange(self.batch, device=recurrence.lengths.device)
        generator = torch.Generator("cpu").manual_seed(sum(self.widths))
        shape = (PROBES, 1, sum(self.widths))
        signs = torch.randint(0, 2, shape, generator=generator, device="cpu") * 2 - 1
        self.probes = signs.to(recurrence.returned[0]).expand(-1, self.batch, -1)
        self.graph: tuple[int, tuple[Tensor, ...], Tensor] | None = None

    @override
    def start(self) -> Tensor:
        return self.probes

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
        sizes = {"jacobian": torch.zeros(len(self.probes), self.batch, dtype=torch.float64, device=self.columns.device)}
        start = 0
        for number, width in enumerate(self.widths):
            part = torch.zeros_like(self.probes)
            part[..., start : start + width] = self.probes[..., start : start + width]
            back = self.pull(t, part)
            sizes["jacobian"] += norm(back).square()
            if number < 2:
                sizes[("jacobian_h", "jacobian_c")[number]] = norm(back[..., start : start + width]).square()
            start += width
        return sizes

    @override
    def largest(self, times: Sequence[int], columns: Tensor) -> Tensor:
        chosen = torch.tensor(list(times), device=columns.device).repeat_interleave(len(columns))
        inputs, output = run_step(self.recurrence, chosen, columns.repeat(len(times)))

        def gram(v: Tensor) -> Tensor:
            return carry_back(inputs, output, carry_forward(inputs, output, v.unsqueeze(0)))[0]

        like = torch.cat([p.detach() for p in inputs], -1)
        return largest_eigenvalue(gram, like, ITERATIONS).sqrt().view(len(times), len(columns))


def run_step(recurrence: Recurrence, times: Tensor, columns: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Run the step at some places: the input parts of the state, with a graph to the joined new state."""
    with torch.enable_grad():
        inputs = tuple(part[times, columns].detach().requires_grad_() for part in recurrence.previous)
        return inputs, torch.cat([r.to(inputs[0].dtype) for r in recurrence.step(times, columns, inputs)], -1)


def carry_back(inputs: tuple[Tensor, ...], output: Tensor, rows: Tensor) -> Tensor:
    """J^T v of rows v, [R, N, m] -> [R, N, n]; places do not mix, for a cell treats each sequence alone."""
    if not output.requires_grad:
        return rows.new_zeros(*rows.shape[:2], sum(p.shape[-1] for p in inputs))
    try:
        gradients = torch.autograd.grad(
            output, inputs, rows.to(output.dtype), retain_graph=True, is_grads_batched=True, allow_unused=True
        )
    except RuntimeError:  # vmap does not support some operation
        single = [torch.autograd.grad(output, inputs, v, retain_graph=True, allow_unused=True) for v in rows]
        gradients = tuple(None if part[0] is None else torch.stack(part) for part in zip(*single, strict=True))
    blank = (rows.new_zeros(len(rows), *p.shape) for p in inputs)
    return torch.cat([b if g is None else g for g, b in zip(gradients, blank, strict=True)], -1)


def carry_forward(inputs: tuple[Tensor, ...], output: Tensor, rows: Tensor) -> Tensor:
    """J v of rows v, [R, N, n] -> [R, N, m]: the derivative of u -> J^T u, which is linear."""
    if not output.requires_grad:
        return rows.new_zeros(*rows.shape[:2], output.shape[-1])
    with torch.enable_grad():
        u = torch.zeros_like(output, requires_grad=True)
        back = torch.autograd.grad(output, inputs, u, create_graph=True, allow_unused=True)
        joined = torch.cat([torch.zeros_like(p) if g is None else g for g, p in zip(back, inputs, strict=True)], -1)
    tangents = [torch.autograd.grad(joined, u, v, retain_graph=True, allow_unused=True)[0] for v in rows]
    pushed = torch.stack([torch.zeros_like(output) if x is None else x for x in tangents])
    _check_transposed(rows[:1], pushed[:1], carry_back(inputs, output, pushed[:1] + 1))
    return pushed


def _check_transposed(v: Tensor, pushed: Tensor, back: Tensor) -> None:
    """Check that <J v + 1, J v> equals <J^T (J v + 1), v>.

    J v may lack a handwritten derivative that is marked `once_differentiable`, without an error from torch.

    Raises:
        RuntimeError: they differ.
    """
    there, here = ((pushed + 1) * pushed).sum(), (back * v).sum()
    rounding = 1e-3 * (((pushed + 1) * pushed).abs().sum() + (back * v).abs().sum())
    if bool((there - here).abs() > rounding):
        raise RuntimeError("a handwritten backward pass allows only the first derivative")


def form_jacobians(recurrence: Recurrence, times: Tensor, columns: Tensor) -> Tensor:
    """J at some places, [N, m, n]."""
    inputs, output = run_step(recurrence, times, columns)
    size = output.shape[-1]
    eye = torch.eye(size, dtype=output.dtype, device=output.device).unsqueeze(1).expand(-1, len(output), -1)
    return carry_back(inputs, output.contiguous(), eye).transpose(0, 1)


def steps_of(recurrence: Recurrence) -> Steps:
    """The cheapest exact method for the Jacobians, or probes."""
    if recurrence.transition is not None:
        return DiagonalSteps(recurrence)
    wide = max(sum(p.shape[-1] for p in parts) for parts in (recurrence.previous, recurrence.returned))
    return (FormedSteps if wide <= EXACT else ProbedSteps)(recurrence)
