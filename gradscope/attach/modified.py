"""Gradients that change between backward and optimizer by something other than a known clipping call.

    end of backward:     reference = snapshot(weights)
    known clip, unscale: reference = reference.times(factor)
    optimizer step:      comparison = compare(reference, weights)
    flush, on the host:  change = comparison.read(comparison.values.cpu())

A write through `.data` leaves no trace in torch, so the gradients themselves are looked at: the 2-norm of each and a
few hundred of their elements.
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
        norm_before: 2-norm of all gradients together, as they should have been.
        norm_after: as they were.
        coefficient: the factor of `scaled`, else the ratio of the norms.
    """

    how: Literal["scaled", "clamped", "changed"]
    threshold: float
    norm_before: float
    norm_after: float
    coefficient: float


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What some gradients look like.

    Attributes:
        present: which of the parameters have a gradient.
        norms: the 2-norm of each gradient.
        sample: elements at fixed places of all gradients.
        each: about how many of every gradient.
        lengths: exactly how many.
        rounding: relative and absolute difference that rounding explains.
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
        """What they look like after multiplication by a positive factor."""
        return dataclasses.replace(self, norms=self.norms * factor, sample=self.sample * factor)

    def only(self, chosen: Sequence[bool]) -> Reference:
        """What those of some of the parameters look like."""
        if all(chosen):
            return self
        kept = [choice for choice, present in zip(chosen, self.present, strict=True) if present]
        norms, samples = self.norms.unbind(), self.sample.split(self.lengths)
        return dataclasses.replace(
            self,
            present=tuple(present for choice, present in zip(chosen, self.present, strict=True) if choice),
            norms=vector(torch.stack, [norm for norm, keep in zip(norms, kept, strict=True) if keep]),
            sample=vector(torch.cat, [sample for sample, keep in zip(samples, kept, strict=True) if keep]),
            lengths=tuple(length for length, keep in zip(self.lengths, kept, strict=True) if keep),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Gradients and what they should have been, not yet looked at: nothing waits for the device.

    Attributes:
        before: what they should have been.
        now: what they are.
        values: what `read` needs, one-dimensional on the device; empty where the outcome is known already.
    """

    before: Reference
    now: Reference
    values: Tensor

    @property
    def known_unchanged(self) -> bool:
        """Whether it is certain already that nothing happened."""
        return not len(self.values) and self.before.present == self.now.present

    def read(self, values: Tensor) -> Change | None:
        """What happened, if anything.

        Args:
            values: the comparison's own, brought to the host.
        """
        if self.before.present != self.now.present:
            return Change("changed", math.nan, math.nan, math.nan, math.nan)
        if not len(values):
            return None
        norms, sample = len(self.now.norms), len(self.now.sample)
        return _classify(values.double().split([norms, norms, norms, sample, sample]), *self.now.rounding)


def snapshot(parameters: Sequence[Tensor], each: int | None = None) -> Reference:
    """Look at the gradients of parameters, some of which may have none."""
    gradients = present_gradients(parameters)
    each = each or SAMPLED // max(1, len(gradients)) + 1
    samples = [_every(gradient, gradient.numel() // each | 1) for gradient in gradients]
    return Reference(
        present=tuple(gradient is not None for gradient in map(_gradient, parameters)),
        norms=vector(torch.stack, two_norms(gradients)),
        sample=vector(torch.cat, samples),
        each=each,
        lengths=tuple(map(len, samples)),
        rounding=_rounding(frozenset(gradient.dtype for gradient in gradients)),
    )


def compare(reference: Reference, parameters: Sequence[Tensor]) -> Comparison:
    """Look at the gradients again, where they should still be as in `reference`."""
    now = snapshot(parameters, reference.each)
    values = torch.empty(0, device="cpu")
    if now.present == reference.present and not _known_identical(reference, now):
        bounds = vector(torch.stack, largest(present_gradients(parameters)))
        values = vector(torch.cat, [reference.norms, now.norms, bounds, reference.sample, now.sample])
    return Comparison(reference, now, values)


def glance(parameters: Sequence[Tensor]) -> Tensor:
    """A copy of a few elements of the gradients: much less than `snapshot`, and blind to what spares just these."""
    gradients = present_gradients(parameters)
    each = SAMPLED // max(1, len(gradients)) + 1
    return vector(torch.cat, [_every(gradient, gradient.numel() // each | 1) for gradient in gradients])


def explain(glanced: Tensor, now: Tensor, norm_now: float) -> Change | None:
    """What happened between two glances, as far as they tell: `scaled` or `changed`."""
    if glanced.shape == now.shape and torch.allclose(glanced, now, rtol=0, atol=0, equal_nan=True):
        return None  # what is not a number is not even equal to itself
    if glanced.shape == now.shape and glanced.any():
        factor = float(glanced.double() @ now.double() / glanced.double().square().sum())
        if math.isfinite(factor) and factor and torch.allclose(now, glanced * factor, rtol=1e-5, atol=0):
            return Change("scaled", math.nan, norm_now / abs(factor), norm_now, factor)
    return Change("changed", math.nan, math.nan, norm_now, math.nan)


def present_gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients that are there, less those without elements: complex ones as pairs, of sharded ones this part."""
    return [gradient for gradient in map(_gradient, parameters) if gradient is not None]


def _gradient(parameter: Tensor) -> Tensor | None:
    gradient = parameter.grad
    if gradient is None:
        return None
    mine = local(gradient.detach())
    mine = torch.view_as_real(mine.resolve_conj()) if mine.is_complex() else mine
    return mine if mine.numel() else None


def local(x: Tensor) -> Tensor:
    """What this process has of a tensor that is spread over several (a `DTensor`); nobody is asked for the rest."""
    return x if type(x) is Tensor or not hasattr(x, "to_local") else x.to_local()  # type: ignore[attr-defined]


def two_norms(gradients: list[Tensor]) -> list[Tensor]:
    """2-norm of each; of 16-bit numbers in 32 bits, where it does not overflow."""
    if all(gradient.dtype is torch.float32 for gradient in gradients):
        return list(foreach_norm(gradients, 2)) if gradients else []
    dtype = functools.reduce(torch.promote_types, {gradient.dtype for gradient in gradients}, torch.float32)
    return list(foreach_norm(gradients, 2, dtype=dtype))


def largest(gradients: list[Tensor]) -> list[Tensor]:
    """Largest absolute element of each."""
    if not gradients or gradients[0].device.type != "cpu":
        return list(foreach_norm(gradients, math.inf)) if gradients else []
    bounds = [torch.aminmax(gradient) for gradient in gradients]  # 20 times faster than the infinity norm there
    return [torch.maximum(-low, high) for low, high in bounds]


def vector(join: Callable[[list[Tensor]], Tensor], parts: list[Tensor]) -> Tensor:
    """The parts as one vector, on the device of the first."""
    if len({part.device for part in parts}) > 1:
        parts = [part.to(parts[0].device, non_blocking=True) for part in parts]
    return join(parts) if parts else torch.empty(0, device="cpu")


def _every(gradient: Tensor, stride: int) -> Tensor:
    """Elements `stride` apart: an odd stride, so that every column of a matrix of even width is met."""
    return gradient.contiguous().as_strided((-(-gradient.numel() // stride),), (stride,))


def _known_identical(before: Reference, now: Reference) -> bool:
    """On the host it can be said at once, at no cost, which saves the rest in most steps."""
    host = now.norms.device.type == "cpu"
    return host and torch.equal(before.norms, now.norms) and torch.equal(before.sample, now.sample)


@functools.cache
def _rounding(types: frozenset[torch.dtype]) -> tuple[float, float]:
    limits = [torch.finfo(dtype) for dtype in types]
    relative = max([1e-5, *(8 * limit.eps for limit in limits)])
    return relative, max([0.0, *(limit.smallest_normal * limit.eps for limit in limits)])


def _classify(values: Sequence[Tensor], rtol: float, atol: float) -> Change | None:
    """The first kind of change that explains every norm and every sampled element; what is not finite must stay so."""
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
