"""The recurrent weights themselves: spectral radius, spectral norm and orthogonality of each gate's block of U.

With a projection R the iterated block is U_k R, H by H; its eigenvalues are those of R U_k and zeros.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gradscope.families.base import Family
from gradscope.types import Block, Weights

EXACT = 64
SQUARINGS = 6
DEGREE = 20

LARGE, HUGE = 1e9, 1e150
"""Beyond the first, or below its inverse, the norm of U^T U may leave the range of float32; beyond the second, U^T U
leaves that of float64."""


def measure_blocks(family: Family, weights: Weights, eigenvalues: bool) -> dict[str, Block]:
    """Measure the block of `weight_hh` of each gate, by gate.

    Args:
        family: names the gates.
        weights: the parameters.
        eigenvalues: compute the spectrum as well (and the exact radius at any width).
    """
    blocks = weights.hh.unflatten(0, (len(family.gates), -1))
    return _measure(family.gates, blocks, blocks if weights.hr is None else blocks @ weights.hr, eigenvalues)


def measure_square_blocks(blocks: Mapping[str, Tensor], eigenvalues: bool) -> dict[str, Block]:
    """Measure square blocks of any recurrent weights, by gate; skip other blocks."""
    measured: dict[str, Block] = {}
    for gate, block in blocks.items():
        if block.shape[0] == block.shape[1] and not block.is_complex():
            one = block.unsqueeze(0).to(torch.promote_types(block.dtype, torch.float32))
            measured.update(_measure((gate,), one, one, eigenvalues))
    return measured


def _measure(gates: Sequence[str], blocks: Tensor, square: Tensor, eigenvalues: bool) -> dict[str, Block]:
    """Measure blocks, [G, H, P], and their iterated squares, [G, H, H]."""
    peak = float(blocks.abs().amax()) if blocks.numel() else 0.0
    if not peak < HUGE:
        return {gate: _nan_block(blocks, eigenvalues) for gate in gates}
    if not 1 / LARGE < peak < LARGE:
        blocks, square = blocks.double(), square.double()
    values = torch.linalg.eigvals(square) if eigenvalues or square.shape[-1] <= EXACT else None
    radius = spectral_radius(square) if values is None else values.abs().amax(-1)
    size, orthogonality = singular_values(blocks)
    spectra = [_sorted(v) for v in values] if eigenvalues and values is not None else [None] * len(gates)
    parts = torch.cat([radius, size, orthogonality]).double().unbind()
    rows = zip(parts[: (n := len(gates))], parts[n : 2 * n], parts[2 * n :], spectra, strict=True)
    return {gate: Block(*row) for gate, row in zip(gates, rows, strict=True)}


def spectral_radius(matrices: Tensor) -> Tensor:
    """Largest modulus of an eigenvalue, [K], by Gelfand's formula: (||A^2m|| / ||A^m||)^(1/m), m = 64.

    Seven products, several times cheaper than eigenvalues; within about 3e-3 for recurrent weights. Each square is
    divided by its norm, s_i, before it is squared again: ||A^2^k|| is the product of s_i^2^(k - i).
    """
    power, spare = matrices.clone(), torch.empty_like(matrices)
    sizes: list[Tensor] = []
    for squaring in range(SQUARINGS + 2):
        sizes.append(torch.linalg.vector_norm(power, dim=(1, 2), keepdim=True))
        if squaring <= SQUARINGS:
            power.div_(sizes[-1])
            power, spare = torch.bmm(power, power, out=spare), power
    weights = torch.tensor([0.5**i for i in range(SQUARINGS + 1)] + [0.5**SQUARINGS], dtype=torch.float64)
    logs = torch.cat(sizes, -1).squeeze(1).double().log_()
    return (logs @ weights.to(logs.device)).exp_().nan_to_num_(0)  # 0 / 0: some power of A is 0


def singular_values(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Largest singular value, and ||U^T U - I|| over the root of the width, [K] each.

    The first is exact up to width 64, and within about 1e-3 above for recurrent weights.
    """
    root = blocks.shape[-1] ** 0.5
    if blocks.shape[-1] <= EXACT:
        values = torch.linalg.svdvals(blocks)
        return values[:, 0], torch.linalg.vector_norm(values.square().sub_(1), dim=1) / root
    centred = torch.bmm(blocks.mT, blocks)  # less the mean of its eigenvalues
    diagonal = centred.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(-1)
    diagonal.sub_(mean.unsqueeze(-1))
    spread = torch.linalg.vector_norm(centred, dim=(1, 2)) / root
    size = (mean + _largest_ritz_value(centred, spread)).clamp_(min=0).sqrt_()
    return size, spread.hypot(mean - 1)


def _largest_ritz_value(matrices: Tensor, spread: Tensor) -> Tensor:
    """Largest eigenvalue of symmetric matrices of trace 0, [K], from a Krylov space: one product for each dimension.

    Chebyshev polynomials of the matrix, scaled to a spectrum near [-1, 1], times a start are a basis far from linear
    dependence, without inner products on the way. An eigenvalue outside is at most `spread` times the root of the
    width, so that they stay in range. `spread` is the standard deviation of the eigenvalues, [K].
    """
    count, width = matrices.shape[:2]
    unit = (max(2.0, (width / 900) ** 0.5) * spread).clamp_(min=torch.finfo(spread.dtype).tiny)
    scaled = matrices / unit.view(-1, 1, 1)
    basis = [_start(width, matrices.device, matrices.dtype).unsqueeze(1).expand(count, -1, -1)]
    basis.append(torch.bmm(scaled, basis[0]))
    for _ in range(DEGREE - 1):
        basis.append(torch.baddbmm(basis[-2], scaled, basis[-1], beta=-1, alpha=2))
    columns = torch.linalg.qr(torch.cat(basis, -1).double())[0].to(matrices.dtype)
    projected = torch.bmm(columns.mT, torch.bmm(scaled, columns))
    return torch.linalg.eigvalsh(projected)[:, -1] * unit


@functools.lru_cache(maxsize=16)
def _start(width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A fixed random direction, [width]."""
    start = torch.randn(width, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float64, device="cpu")
    return (start / start.norm()).to(device, dtype)


def largest_eigenvalue(apply: Callable[[Tensor], Tensor], like: Tensor, iterations: int) -> Tensor:
    """Largest eigenvalue of symmetric positive operators by Lanczos.

    The three-term recurrence does not reorthogonalise: rounding then repeats converged eigenvalues, but adds none
    beyond the largest (Paige 1980).

    Args:
        apply: v -> A v over the last dimension, batched over the leading one.
        like: a tensor of the shape of v, [N, n].
        iterations: size of the Krylov space.
    """
    size = min(iterations, like.shape[-1])
    now = _start(like.shape[-1], like.device, like.dtype).expand_as(like)
    before = torch.zeros_like(like)
    alongs: list[Tensor] = []
    lengths: list[Tensor] = [like.new_zeros(like.shape[0], 1)]
    for _ in range(size):
        w = apply(now).addcmul_(lengths[-1], before, value=-1)
        alongs.append((w * now).sum(-1, keepdim=True))
        w.addcmul_(alongs[-1], now, value=-1)
        lengths.append(torch.linalg.vector_norm(w, dim=-1, keepdim=True).clamp_(min=torch.finfo(like.dtype).tiny))
        before, now = now, w.div_(lengths[-1])
    projected = torch.diag_embed(torch.cat(alongs, -1))
    if size > 1:
        projected.diagonal(1, 1, 2).copy_(torch.cat(lengths[1:-1], -1))
    return torch.linalg.eigvalsh(projected, UPLO="U")[..., -1].clamp(min=0)


def _sorted(values: Tensor) -> Tensor:
    """Sort by descending modulus; of a conjugate pair the value above the real axis comes first, on every device."""
    values = values[values.imag.argsort(descending=True, stable=True)]
    return values[values.abs().argsort(descending=True, stable=True)]


def _nan_block(blocks: Tensor, eigenvalues: bool) -> Block:
    nan = blocks.new_full((), torch.nan)
    values = blocks.new_full((blocks.shape[1],), torch.nan).to(torch.complex64) if eigenvalues else None
    return Block(nan, nan, nan, values)
