"""How a loss or its gradient stops being a number: at one step, as it happens in practice."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.field.task import Batch


def _missing(batch: Batch) -> Batch:
    """A missing value in the data."""
    x = batch.x.clone()
    x[0, x.shape[1] // 2] = float("nan")
    return replace(batch, x=x)


def _transcript(batch: Batch) -> Batch:
    """One transcript belongs to another recording: too long for this one, so that its CTC loss is infinite."""
    y = batch.y.repeat(1, 1 + batch.x.shape[1] // batch.y.shape[1])
    lengths = batch.extra["lengths"].clone()
    y[0], lengths[0] = 3, y.shape[1]
    return replace(batch, y=y, extra={**batch.extra, "lengths": lengths})


def _constant(batch: Batch) -> Batch:
    """One sequence that stands still, divided by its own standard deviation."""
    x = batch.x.clone()
    still = x[0] * 0
    x[0] = still / still.std(0)
    return replace(batch, x=x)


def _change(batch: Batch) -> Batch:
    """Relative changes of a series that was 0 at one place."""
    x = batch.x.clone()
    x[0, 1] = 1.0 / (x[0, 1] * 0)
    return replace(batch, x=x)


def _count(batch: Batch) -> Batch:
    """The logarithm of a count of zero."""
    x = batch.x.clone()
    x[0, x.shape[1] // 3] = (x[0, 0] * 0).log()
    return replace(batch, x=x)


def _empty(loss: Tensor, answers: Tensor) -> Tensor:
    """The mean over a mask that holds nothing."""
    kept = answers.new_zeros(answers.shape)
    return loss + (answers * kept).sum() / kept.sum()


def _log(loss: Tensor, answers: Tensor) -> Tensor:
    """The logarithm of a probability that has become 0."""
    probability = torch.softmax(answers.flatten()[:2] * 0 + answers.new_tensor([0.0, 200.0]), 0)[0]
    return loss - 0.01 * torch.log(probability)


def _root(loss: Tensor, answers: Tensor) -> Tensor:
    """A distance of two things that are the same: the loss is finite, its gradient is not."""
    first = answers.flatten()[:4]
    return loss + (first - first.detach()).square().sum().sqrt()


def _masked(loss: Tensor, answers: Tensor) -> Tensor:
    """Attention over a row of padding alone."""
    padding = torch.full((4,), -torch.inf)
    return loss + 0.01 * (padding.softmax(0) * answers.flatten()[:4]).sum()


def _exp(loss: Tensor, answers: Tensor) -> Tensor:
    """The exponential of a log-variance that has run away."""
    return loss + 0.01 * torch.exp(answers.flatten()[0] * 0 + 100)


def _alone(loss: Tensor, answers: Tensor) -> Tensor:
    """Something divided by the deviation of the only one in a batch."""
    one = answers.flatten()[:1]
    return loss + 0.01 * ((one - one.mean()) / (one.std() + 1e-8)).sum()


def _where(loss: Tensor, answers: Tensor) -> Tensor:
    """A square root below 0, kept out by `where`: the loss does not see it, its gradient does."""
    first = answers.flatten()[:4]
    below = first - first.detach() - 1
    return loss + torch.where(below > 0, below.sqrt(), torch.zeros_like(below)).sum()


def _half(loss: Tensor, answers: Tensor) -> Tensor:
    """Shares of squares that are too large for half precision."""
    squares = (answers.flatten()[:4] * 0 + 300).half().square()
    return loss + 0.01 * (squares / squares.sum()).float().sum()


def _entropy(loss: Tensor, answers: Tensor) -> Tensor:
    """p log p of a probability that has become 0."""
    p = torch.softmax(answers.flatten()[:2] * 0 + answers.new_tensor([0.0, 200.0]), 0)
    return loss + 0.01 * (p * p.log()).sum()


def _angle(loss: Tensor, answers: Tensor) -> Tensor:
    """The angle between a vector and itself: its cosine is 1, where the arc's slope is infinite."""
    one = answers.flatten()[:4]
    return loss + 0.01 * torch.acos((one * 0 + 0.5).square().sum())


def _norm(loss: Tensor, answers: Tensor) -> Tensor:
    """A vector of zeros, divided by its length."""
    zeros = answers.flatten()[:4] * 0
    return loss + 0.01 * (zeros / zeros.norm()).sum()


BATCHES = {
    "change": _change,
    "constant": _constant,
    "count": _count,
    "missing": _missing,
    "ctc": _transcript,
    "ctc masked": _transcript,
}
LOSSES = {
    "alone": _alone,
    "angle": _angle,
    "empty": _empty,
    "entropy": _entropy,
    "exp": _exp,
    "half": _half,
    "log": _log,
    "masked": _masked,
    "norm": _norm,
    "root": _root,
    "where": _where,
}


def touched(batch: Batch, birth: str, now: bool) -> Batch:
    """The batch, with what is wrong in it at this step."""
    return BATCHES[birth](batch) if now and birth in BATCHES else batch


def spoiled(loss: Tensor, answers: Tensor, birth: str, now: bool) -> Tensor:
    """The loss, with what is wrong with it at this step."""
    return LOSSES[birth](loss, answers) if now and birth in LOSSES else loss
