"""The recurrent weights themselves: spectral radius, spectral norm and orthogonality of each gate's block of U.

With a projection R the block that is iterated is U_k R, H by H; its eigenvalues are those of R U_k beside zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.families.base import Family
from gradscope.types import Block, Weights

EXACT = 64
SQUARINGS = 12


def measure_blocks(family: Family, weights: Weights, eigenvalues: bool) -> dict[str, Block]:
    """Gate -> its block of `weight_hh`.

    Args:
        family: names the gates.
        weights: the parameters.
        eigenvalues: give the spectrum as well (and the radius exactly, whatever the width).
    """
    blocks = weights.hh.unflatten(0, (len(family.gates), -1))
    if not blocks.isfinite().all():
        return {gate: _unknown(blocks, eigenvalues) for gate in family.gates}
    square = blocks if weights.hr is None else blocks @ weights.hr
    values = torch.linalg.eigvals(square) if eigenvalues or square.shape[-1] <= EXACT else None
    radius = spectral_radius(square) if values is None else values.abs().amax(-1)
    gram = blocks.mT @ blocks
    size = spectral_norm(gram)
    gram.diagonal(dim1=1, dim2=2).sub_(1)
    orthogonality = torch.linalg.matrix_norm(gram) / blocks.shape[-1] ** 0.5
    return {
        gate: Block(radius[k], size[k], orthogonality[k], _ordered(values[k]) if eigenvalues and values is not None else None)
        for k, gate in enumerate(family.gates)
    }


def spectral_radius(matrices: Tensor) -> Tensor:
    """Largest modulus of an eigenvalue, [K], by Gelfand's formula with m = 4,096: ||A^m||^(1/m) by repeated squaring.

    Much cheaper than eigenvalues. The relative error is at most ln(C) / m with ||A^m|| = C rho^m; for the matrices of
    trained networks below 2e-3.
    """
    log = matrices.new_zeros(matrices.shape[0], dtype=torch.float64)
    power = matrices
    for _ in range(SQUARINGS):
        size = torch.linalg.matrix_norm(power)
        power = power / size.clamp(min=torch.finfo(power.dtype).tiny).view(-1, 1, 1)
        log = 2 * (log + size.double().log())
        power = power @ power
    log = log + torch.linalg.matrix_norm(power).double().log()
    return (log / 2**SQUARINGS).exp()


def spectral_norm(gram: Tensor) -> Tensor:
    """Largest singular value of U from U^T U, [K]: exact up to width 64, above by Lanczos to about 1e-6."""
    if gram.shape[-1] <= EXACT:
        return torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0).sqrt()
    return largest_eigenvalue(lambda v: (gram @ v.unsqueeze(-1)).squeeze(-1), gram[:, 0], 25).sqrt()


def largest_eigenvalue(apply: object, like: Tensor, iterations: int) -> Tensor:
    """Largest eigenvalue of symmetric positive operators by Lanczos with full reorthogonalisation.

    Args:
        apply: v -> A v over the last dimension, batched over the leading ones.
        like: a tensor of the shape of v.
        iterations: size of the Krylov space.
    """
    assert callable(apply)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(like.shape[-1], generator=generator, dtype=torch.float64).to(like.device, like.dtype)
    v = (start / start.norm()).expand_as(like)
    tiny = torch.finfo(like.dtype).tiny
    basis, alphas, betas = [v], list[Tensor](), list[Tensor]()
    for _ in range(min(iterations, like.shape[-1])):
        w = apply(basis[-1])
        alphas.append((w * basis[-1]).sum(-1))
        for _ in range(2):  # twice is enough (Kahan, in Parlett 1980)
            known = torch.stack(basis, -1)
            w = w - (known @ (known.mT @ w.unsqueeze(-1))).squeeze(-1)
        beta = w.norm(dim=-1)
        betas.append(beta)
        basis.append(w / beta.clamp(min=tiny).unsqueeze(-1))
    diagonal, off = torch.stack(alphas, -1), torch.stack(betas, -1)[..., :-1]
    off = off.masked_fill(off <= 1e-7 * diagonal[..., :1].abs(), 0)
    matrix = torch.diag_embed(diagonal) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    return torch.linalg.eigvalsh(matrix)[..., -1].clamp(min=0)


def _ordered(values: Tensor) -> Tensor:
    """By descending modulus."""
    return values[values.abs().argsort(descending=True)]


def _unknown(blocks: Tensor, eigenvalues: bool) -> Block:
    nan = blocks.new_full((), torch.nan)
    values = blocks.new_full((blocks.shape[1],), torch.nan).to(torch.complex64) if eigenvalues else None
    return Block(nan, nan, nan, values)
