"""The training loop, and what its network can do at its end."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.field import births
from benchmarks.field.nets import answer, build, detached
from benchmarks.field.setup import Setup
from benchmarks.field.starts import start
from benchmarks.field.task import Batch, Generator, Task

HELD_OUT_SEED = 987_654
HELD_OUT = 3  # batches
LIMIT = 1e6  # of a loss that is kept
SLOW = 1e-5  # of the learning rate, where a part has a group of its own
BETWEEN = 10  # steps, where something else is done now and then
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adadelta": torch.optim.Adadelta,
    "adamax": torch.optim.Adamax,
    "asgd": torch.optim.ASGD,
}


@dataclass(slots=True)
class Result:
    """What came of a training: score on held-out data (0 no skill, 1 perfect), the loss of every step."""

    score: float = 0.0
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Remedy:
    """What is done against a finding: to the network before training, to its optimizer, to every step's gradients.

    `skips`: no step is made of a loss that is not finite.
    """

    model: Callable[[nn.Module], None] | None = None
    optimizer: Callable[[nn.Module, torch.optim.Optimizer], None] | None = None
    gradients: Callable[[nn.Module], object] | None = None
    skips: bool = False


Watch = Callable[[nn.Module], AbstractContextManager[object]]


def train(task: Task, setup: Setup, seed: int, watch: Watch | None = None, remedy: Remedy | None = None) -> Result:
    """Train, with somebody watching or not."""
    torch.manual_seed(seed)
    remedy, model = remedy or Remedy(), build(setup, task)
    start(model, setup)
    if remedy.model is not None:
        remedy.model(model)
    optimizer = _optimizer(model, setup)
    if setup.replaced:
        setattr(model, setup.replaced, copy.deepcopy(getattr(model, setup.replaced)))
    if remedy.optimizer is not None:
        remedy.optimizer(model, optimizer)
    result, state, g = Result(), None, Generator().manual_seed(1000 + seed)
    with ExitStack() as stack:
        if watch is not None:
            stack.enter_context(watch(model))
        rate = _schedule(optimizer, setup)
        for step in range(setup.steps):
            loss, state = _step(model, task, setup, step, state, g)
            if remedy.skips and not math.isfinite(loss):
                continue
            if setup.unscaled:
                _unscale(model, setup)
            _clip(model, setup, remedy, False)
            if not setup.unscaled:
                _unscale(model, setup)
            if setup.zero_late:
                model.zero_grad()
            optimizer.step()
            _clip(model, setup, remedy, True)
            rate.step(*((loss,) if setup.plateau else ()))
            result.losses.append(loss)
            if setup.between and step % BETWEEN == BETWEEN - 1:
                _pause(model, task, setup)
    result.score = judge(model, task, setup)
    return result


def _step(model: nn.Module, task: Task, setup: Setup, step: int, state: object, g: Generator) -> tuple[float, object]:
    """The gradients of a step, of several micro-batches perhaps."""
    if setup.zero_grad and step % setup.zero_every == 0:
        model.zero_grad(set_to_none=not setup.zeroed)
    elif setup.cleared:
        getattr(model, setup.cleared).zero_grad()
    if setup.clip_early:
        nn.utils.clip_grad_norm_(model.parameters(), setup.clip)
    total = 0.0
    for part in range(setup.accumulate):
        number = step * setup.accumulate + part
        batch = prepare(task.draw(g, setup, number, False, model), task, setup, g)
        now = bool(setup.birth) and step == setup.birth_at
        batch = births.touched(batch, setup.birth, now)
        with torch.autocast("cpu", torch.bfloat16) if setup.autocast else nullcontext():
            answers, state = answer(model, batch, setup, state if task.stateful or setup.carry else None)
        loss = task.loss(answers.float(), batch, setup) * setup.scale / setup.accumulate
        loss = births.spoiled(loss, answers, setup.birth, now)
        if setup.l1 or setup.l2:
            loss = loss + sum(setup.l1 * p.abs().sum() + setup.l2 * p.square().sum() for p in model.parameters())
        if setup.twice:
            (0.5 * loss).backward(retain_graph=True)
        ((0.5 if setup.twice else 1.0) * setup.scaler * loss).backward()
        state, total = detached(state), total + loss.item()
    return max(-LIMIT, min(LIMIT, total)) if math.isfinite(total) else math.nan, state


def prepare(batch: Batch, task: Task, setup: Setup, g: Generator) -> Batch:
    """What the setup makes of a batch."""
    x, y, lengths = batch.x, batch.y, batch.lengths
    if not task.tokens:
        x = x * setup.inputs + setup.offset
    if setup.column != 1:
        x = torch.cat([x[..., :1] * setup.column, x[..., 1:]], -1)
    x = _spoiled(x, task, setup, g)
    if setup.cut and task.answers == "last":
        x, lengths = x[:, -setup.cut :], lengths.clamp_max(setup.cut)
    if setup.pad or setup.front:
        x = torch.cat([x, x.new_zeros(len(x), setup.pad + setup.front, *x.shape[2:])], 1)
    if setup.front:
        T = x.shape[1]
        x = torch.stack([row.roll(T - n, 0) for row, n in zip(x, lengths.tolist(), strict=True)])
        lengths = lengths if setup.form == "packed" else torch.full_like(lengths, T)
    if y.is_floating_point():
        y = y * setup.targets + setup.target_offset
    y = _labels(y, task, setup, g)
    if setup.labels == "sorted":
        order = lengths.argsort(descending=True)
        x, lengths = x[order], lengths[order]
    return replace(batch, x=x, y=y, lengths=lengths)


def _spoiled(x: Tensor, task: Task, setup: Setup, g: Generator) -> Tensor:
    """What goes in, as something in the data's way made it."""
    if setup.ramp:
        x = torch.cat([x[..., :1] + setup.ramp * torch.arange(x.shape[1])[:, None], x[..., 1:]], -1)
    if setup.sentinel:
        x = x.masked_fill(torch.rand(x.shape, generator=g) < setup.sentinel, -9999.0)
    if setup.noise:
        x = x + setup.noise * torch.randn(x.shape, generator=g)
    if setup.unknown:
        x = x.masked_fill(torch.rand(x.shape, generator=g) < setup.unknown, 0)
    if setup.shuffled:
        order = torch.rand(x.shape[:2], generator=g).argsort(1)
        x = x[torch.arange(len(x))[:, None], order]
    return x


def _labels(y: Tensor, task: Task, setup: Setup, g: Generator) -> Tensor:
    if setup.labels == "random":
        drawn = torch.rand(y.shape, generator=g)
        return drawn if y.is_floating_point() else (drawn * task.outputs).long()
    if setup.labels == "rare":
        return (torch.rand(y.shape, generator=g) < 0.03).to(y.dtype)
    return y


def _optimizer(model: nn.Module, setup: Setup) -> torch.optim.Optimizer:
    chosen = [p for name, p in model.named_parameters() if not setup.forgotten or setup.forgotten not in name]
    if setup.slow:
        slow = [p for name, p in model.named_parameters() if setup.slow in name]
        others = [p for name, p in model.named_parameters() if setup.slow not in name]
        chosen = [{"params": others}, {"params": slow, "lr": setup.lr * SLOW}]  # type: ignore[list-item]
    options: dict[str, Any] = {"weight_decay": setup.weight_decay}
    if setup.optimizer in OPTIMIZERS:
        if setup.eps:
            options["eps"] = setup.eps
        return OPTIMIZERS[setup.optimizer](chosen, setup.lr, **options)  # type: ignore[call-arg]
    momentum = setup.momentum if setup.optimizer == "sgd" else 0.0
    return torch.optim.SGD(chosen, setup.lr, momentum=momentum, **options)


def _schedule(optimizer: torch.optim.Optimizer, setup: Setup) -> torch.optim.lr_scheduler.LRScheduler:
    if setup.plateau:
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=setup.plateau)

    def factor(step: int) -> float:
        wave = 0.5 * (1 + math.cos(math.pi * (step % setup.cycle) / setup.cycle)) if setup.cycle else 1.0
        fallen = setup.gamma ** (step // setup.milestone) if setup.milestone else 1.0
        return min(1.0, (step + 1) / max(1, setup.warmup)) * setup.decay**step * wave * fallen

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _clip(model: nn.Module, setup: Setup, remedy: Remedy, late: bool) -> None:
    """Clip before a step or, where the setup says so, too late; what is done against a finding is never late."""
    if late != (setup.clip_late and remedy.gradients is None):
        return
    if remedy.gradients is not None:
        remedy.gradients(model)
    elif setup.clip_early:
        return
    elif setup.clamp:
        for p in model.parameters():
            if p.grad is not None:
                p.grad.clamp_(-setup.clamp, setup.clamp)
    elif setup.clip_value:
        nn.utils.clip_grad_value_(model.parameters(), setup.clip_value)
    elif setup.clip:
        part = getattr(model, setup.clip_part) if setup.clip_part else model
        for parameters in part.parameters() if setup.clip_each else (part.parameters(),):
            nn.utils.clip_grad_norm_(parameters, setup.clip, setup.norm)


def _unscale(model: nn.Module, setup: Setup) -> None:
    if setup.scaler != 1:
        for p in model.parameters():
            if p.grad is not None:
                p.grad.div_(setup.scaler)


@torch.no_grad()
def _pause(model: nn.Module, task: Task, setup: Setup) -> None:
    """What people do between two steps: look at the held-out data, or let a text go on by itself."""
    if setup.between == "validation":
        judge(model, task, setup)
    else:
        model.eval()
        x, state, one = torch.ones(1, 1, dtype=torch.long), None, torch.ones(1, dtype=torch.long)
        for _ in range(30):
            answers, state = model(x, one, state)
            x = answers.argmax(-1)
    model.train()


@torch.no_grad()
def judge(model: nn.Module, task: Task, setup: Setup) -> float:
    """The score on held-out data with true labels, read as the training reads; what is not finite has failed."""
    g, state, scores = Generator().manual_seed(HELD_OUT_SEED), None, []
    model.eval()
    clean = setup.but(labels="true")
    for step in range(HELD_OUT + task.stateful):
        batch = prepare(task.draw(g, clean, step, True, model), task, clean, g)
        answers, state = answer(model, batch, clean, state if task.stateful or setup.carry else None)
        if not answers.isfinite().all():
            return 0.0
        scores.append(task.score(answers.float(), batch))
    return max(-1.0, sum(scores) / len(scores))
