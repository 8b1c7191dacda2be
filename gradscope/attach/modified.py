"""Changes of gradients between backward and optimizer by anything but a known clipping call.

    end of backward:     reference = snapshot(weights)
    known clip, unscale: reference = reference.times(factor)
    optimizer step:      comparison = compare(reference, weights)
    flush, on the host:  change = comparison.read(comparison.values.cpu())

A write through `.data` leaves no trace in torch. So this module compares the gradients themselves: the 2-norm of each
and a few hundred of their elements.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gradscope.private import foreach_norm

SAMPLED = 512  # elements, over all gradients together


class Change(NamedTuple):
    """How gradients changed, as numbers.

    Attributes:
        how: `scaled` (all by one factor), `clamped` (elements limited to one bound) or `changed` (otherwise).
        threshold: the bound of `clamped`, else NaN.
        norm_before: expected 2-norm of all gradients together.
        norm_after: observed 2-norm.
        coefficient: the factor of `scaled`, else the ratio of the norms.
    """

    how: Literal["scaled", "clamped", "changed"]
    threshold: float
    norm_before: float
    norm_after: float
    coefficient: float


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A fingerprint of gradients.

    Attributes:
        present: for each parameter, True if it has a gradient.
        norms: the 2-norm of each gradient.
        sample: elements at fixed places of all gradients.
        each: approximate number of elements per gradient.
        lengths: exact number of elements of each gradient.
        rounding: relative and absolute difference due to rounding.
    """

    present: tuple[bool, ...]
    norms: Tensor
    sample: Tensor
    each: int
    lengths: tuple[int, ...]
    rounding: tuple[float, float]

    @property
    def norm(self) -> Tensor:
        """2-norm of all gradients together, 0-dim."""
        return torch.linalg.vector_norm(self.norms)

    def times(self, factor: Tensor | float) -> Reference:
        """The fingerprint after multiplication by a positive factor."""
        return dataclasses.replace(self, norms=self.norms * factor, sample=self.sample * factor)

    def only(self, chosen: Sequence[bool]) -> Reference:
        """The fingerprint of the gradients of some of the parameters."""
        if all(chosen):
            return self
        keeps = [choice for choice, present in zip(chosen, self.present, strict=True) if present]
        norms, samples = self.norms.unbind(), self.sample.split(self.lengths)
        return dataclasses.replace(
            self,
            present=tuple(present for choice, present in zip(chosen, self.present, strict=True) if choice),
            norms=vector(torch.stack, [norm for norm, keep in zip(norms, keeps, strict=True) if keep]),
            sample=vector(torch.cat, [sample for sample, keep in zip(samples, keeps, strict=True) if keep]),
            lengths=tuple(length for length, keep in zip(self.lengths, keeps, strict=True) if keep),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Observed against expected gradients, still on the device: making it does not synchronise.

    Attributes:
        before: the expected gradients.
        now: the observed gradients.
        values: input of `read`, one-dimensional on the device; empty if the outcome is known already.
    """

    before: Reference
    now: Reference
    values: Tensor

    @property
    def known_unchanged(self) -> bool:
        """True if the gradients certainly did not change."""
        return not len(self.values) and self.before.present == self.now.present

    def read(self, values: Tensor) -> Change | None:
        """The change, if any.

        Args:
            values: `self.values` on the host.
        """
        if self.before.present != self.now.present:
            return Change("changed", math.nan, math.nan, math.nan, math.nan)
        if not len(values):
            return None
        norms, sample = len(self.now.norms), len(self.now.sample)
        return _classify(values.double().split([norms, norms, norms, sample, sample]), *self.now.rounding)


def snapshot(parameters: Sequence[Tensor], each: int | None = None) -> Reference:
    """Take the fingerprint of the gradients of parameters; some parameters may have none."""
    every = [_gradient(parameter) for parameter in parameters]
    gradients = [gradient for gradient in every if gradient is not None]
    each = each or SAMPLED // max(1, len(gradients)) + 1
    samples = [_every(gradient, gradient.numel() // each | 1) for gradient in gradients]
    return Reference(
        present=tuple(gradient is not None for gradient in every),
        norms=vector(torch.stack, two_norms(gradients)),
        sample=vector(torch.cat, samples),
        each=each,
        lengths=tuple(map(len, samples)),
        rounding=_rounding(frozenset(gradient.dtype for gradient in gradients)),
    )


def compare(reference: Reference, parameters: Sequence[Tensor]) -> Comparison:
    """Compare the present gradients with a reference."""
    now = snapshot(parameters, reference.each)
    values = _nothing()
    if now.present == reference.present and not _known_identical(reference, now):
        bounds = vector(torch.stack, largest(present_gradients(parameters)))
        values = vector(torch.cat, [reference.norms, now.norms, bounds, reference.sample, now.sample])
    return Comparison(reference, now, values)


def present_gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The non-empty gradients: complex ones as pairs, sharded ones as the local part."""
    return [gradient for gradient in map(_gradient, parameters) if gradient is not None]


def _gradient(parameter: Tensor) -> Tensor | None:
    gradient = parameter.grad
    if gradient is None:
        return None
    mine = local(gradient.detach() if gradient.requires_grad else gradient)
    mine = torch.view_as_real(mine.resolve_conj()) if mine.is_complex() else mine
    return mine if mine.numel() else None


def local(x: Tensor) -> Tensor:
    """The local part of a tensor that is spread over processes (a `DTensor`), without communication."""
    return x if type(x) is Tensor or not hasattr(x, "to_local") else x.to_local()  # type: ignore[attr-defined]


def two_norms(gradients: list[Tensor]) -> list[Tensor]:
    """The 2-norm of each; of 16-bit numbers in 32 bits, which do not overflow."""
    if all(gradient.dtype is torch.float32 for gradient in gradients):
        return list(foreach_norm(gradients, 2)) if gradients else []
    dtype = functools.reduce(torch.promote_types, {gradient.dtype for gradient in gradients}, torch.float32)
    return list(foreach_norm(gradients, 2, dtype=dtype))


def largest(gradients: list[Tensor]) -> list[Tensor]:
    """The largest absolute element of each."""
    if not gradients or gradients[0].device.type != "cpu":
        return list(foreach_norm(gradients, math.inf)) if gradients else []
    bounds = [torch.aminmax(gradient) for gradient in gradients]  # 20 times faster than the infinity norm there
    return [torch.maximum(-low, high) for low, high in bounds]


def vector(join: Callable[[list[Tensor]], Tensor], parts: list[Tensor]) -> Tensor:
    """The parts as one vector, on the device of the first."""
    if len({part.device for part in parts}) > 1:
        parts = [part.to(parts[0].device, non_blocking=True) for part in parts]
    return join(parts) if parts else _nothing()


@functools.cache
def _nothing() -> Tensor:
    return torch.empty(0, device="cpu")


def _every(gradient: Tensor, stride: int) -> Tensor:
    """Every `stride`-th element. An odd stride meets every column of a matrix of even width."""
    return gradient.contiguous().as_strided((-(-gradient.numel() // stride),), (stride,))


def _known_identical(before: Reference, now: Reference) -> bool:
    """True if nothing changed; on the CPU only, where this check is free and spares the rest in most steps."""
    host = now.norms.device.type == "cpu"
    return host and torch.equal(before.norms, now.norms) and torch.equal(before.sample, now.sample)


@functools.cache
def _rounding(types: frozenset[torch.dtype]) -> tuple[float, float]:
    limits = [torch.finfo(dtype) for dtype in types]
    relative = max([1e-5, *(8 * limit.eps for limit in limits)])
    return relative, max([0.0, *(limit.smallest_normal * limit.eps for limit in limits)])


def _classify(values: Sequence[Tensor], rtol: float, atol: float) -> Change | None:
    """The first kind of change that explains every norm and every sampled element; non-finite values must stay so."""
    norms, norms_now, bounds, sample, sample_now = values
    before, now = torch.linalg.vector_norm(norms), torch.linalg.vector_norm(norms_now)
    change = functools.partial(Change, norm_before=float(before), norm_after=float(now))
    finite, sampled = norms.isfinite(), sample.isfinite()
    if torch.equal(finite, norms_now.isfinite()) and torch.equal(sampled, sample_now.isfinite()):
        norms, norms_now, bounds = norms[finite], norms_now[finite], bounds[finite]
        sample, sample_now = sample[sampled], sample_now[sampled]
        close = functools.partial(torch.allclose, rtol=rtol, atol=atol)
        if close(norms_now, norms) and close(sample_now, sample):
            return None
        size = [torch.linalg.vector_norm(torch.cat(each)) for each in ((norms, sample), (norms_now, sample_now))]
        factor = (size[1] / size[0]).copysign(sample @ sample_now)
        if close(norms_now, norms * factor.abs()) and close(sample_now, sample * factor):
            return change("scaled", math.nan, coefficient=float(factor))
        bound = torch.cat([bounds, bounds.new_zeros(1)]).max()
        reached = bounds[~torch.isclose(norms_now, norms, rtol, atol)] == bound
        if reached.all() and (norms_now <= norms * (1 + rtol)).all() and close(sample_now, sample.clamp(-bound, bound)):
            return change("clamped", float(bound), coefficient=float(now / before))
    return change("changed", math.nan, coefficient=float(now / before))
