"""One training of the fault set, watched, with a held-out score at its end."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gradscope
from benchmarks.faults import store
from benchmarks.faults.cases import Case
from benchmarks.faults.interventions import Loop
from benchmarks.faults.nets import Net, State, start_soundly
from benchmarks.faults.tasks import TASKS, Data, Task

BATCH = 32
RECORDED = 20  # steps of each training
HELD_OUT = 384
HELD_OUT_SEED = 987_654


@dataclass(frozen=True, slots=True)
class Cure:
    """What is done against a finding.

    Attributes:
        model: done to the model before training; gives what to put in the encoder's place, or None.
        gradients: done between backward and optimizer instead of the loop's own clipping.
        loop: another loop.
    """

    model: Callable[[Net], None] | None = None
    gradients: Callable[[Net], object] | None = None
    loop: Callable[[Loop], Loop] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it.

    Attributes:
        score: on held-out data, 0 without memory, 1 perfect.
        norms: at the recorded steps, the gradients' norm of each weight matrix from the first to the last.
        zeros: the share of gradient elements that were exactly zero at these steps.
    """

    score: float
    norms: list[list[float]] = field(default_factory=list)
    zeros: list[float] = field(default_factory=list)


def build(case: Case) -> Net:
    """The network with which a case begins, its fault included."""
    torch.manual_seed(case.seed)
    task = TASKS[case.task]
    net = Net(case.family, case.form, task.D, task.outputs)
    if case.cover is None or not case.cover.default_init:
        start_soundly(net)
    if case.kind is not None and case.kind.harm is not None:
        case.kind.harm(net, case.strength)
    if case.cover is not None and case.cover.harm is not None:
        case.cover.harm(net)
    return net


def train(case: Case, folder: Path | None, cure: Cure | None = None, change: dict[str, Any] | None = None) -> Result:
    """Train a case, and keep what was recorded in `folder`; `change` replaces settings of its loop."""
    cure, loop, task = cure or Cure(), replace(case.loop(), **(change or {})), TASKS[case.task]
    loop = cure.loop(loop) if cure.loop else loop
    net = build(case)
    if cure.model is not None:
        cure.model(net)
    optimizer, data = _optimizer(net, loop), torch.Generator().manual_seed(1000 + case.seed)
    result, state, every = Result(0.0), None, max(1, loop.steps // RECORDED)
    scope = gradscope.attach(net, every=every) if folder is not None else None
    try:
        for step in range(loop.steps):
            batch = prepare(task.draw(data, BATCH, False), task, loop, data)
            optimizer.zero_grad()
            answers, state = scores(net, batch, loop, state)
            loss = task.loss(answers, batch) * loop.scale
            if loop.unsafe_loss and step >= loop.steps // 3:
                nothing = (answers * 0).sum()
                loss = loss + (nothing.clamp(min=1e-8) if loop.safe_roots else nothing).sqrt()
            loss.backward()
            if step % every == 0:
                _note_norms(result, net)
            _clip(net, loop, cure)
            optimizer.step()
    finally:
        if scope is not None:
            scope.close()
    if scope is not None and folder is not None:
        store.keep_run(folder, scope.run)
    return replace(result, score=judge(net, task, loop))


def judge(net: Net, task: Task, loop: Loop) -> float:
    """The score on held-out data, read as the training reads its own."""
    g = torch.Generator().manual_seed(HELD_OUT_SEED)
    clean = replace(loop, noise=0.0, stateful=False)
    with torch.no_grad():
        batch = prepare(task.draw(g, HELD_OUT, True), task, clean, g)
        return max(-1.0, task.score(scores(net, batch, clean, None)[0], batch))


def prepare(data: Data, task: Task, loop: Loop, g: torch.Generator) -> Data:
    """What the loop makes of a batch: padding, noise, or only the last answer."""
    if loop.padded:
        T, B = data.counts.shape
        answer = data.y.gather(0, (data.lengths - 1).unsqueeze(0))
        counts = torch.zeros(T + loop.padded, B, dtype=torch.bool)
        counts[-1] = True
        x = torch.cat([data.x, data.x.new_zeros(loop.padded, *data.x.shape[1:])])
        data = Data(x, torch.full((B,), len(x)), answer.expand(len(x), B), counts)
    if loop.noise:
        wrong = torch.rand(data.y.shape, generator=g) < loop.noise
        random = torch.randint(0, task.outputs, data.y.shape, generator=g) if task.outputs > 1 else None
        other = torch.rand(data.y.shape, generator=g) - 0.5 if random is None else random
        data = replace(data, y=torch.where(wrong, other, data.y))
    if loop.last_only:
        place = torch.arange(len(data.counts)).unsqueeze(1).expand_as(data.counts)
        last = place.masked_fill(~data.counts, -1).amax(0)
        data = replace(data, counts=data.counts & (place == last))
    return data


def scores(net: Net, batch: Data, loop: Loop, state: State) -> tuple[Tensor, State]:
    """Answers as the loop gets them, and the state for the next batch."""
    if loop.stateful:
        return net.windows(batch.x, len(batch.x), state)
    if loop.window is not None:
        return net.windows(batch.x, loop.window)
    return net(batch.x, batch.lengths), None


def _optimizer(net: Net, loop: Loop) -> torch.optim.Optimizer:
    factor = loop.scale if loop.rescaled else 1.0
    if loop.optimizer == "sgd":
        return torch.optim.SGD(net.parameters(), loop.lr / factor, momentum=0.9)
    return torch.optim.Adam(net.parameters(), loop.lr, eps=1e-8 * factor)


def _clip(net: Net, loop: Loop, cure: Cure) -> None:
    factor = loop.scale if loop.rescaled else 1.0
    if cure.gradients is not None:
        cure.gradients(net)
    elif loop.value is not None:
        nn.utils.clip_grad_value_(net.parameters(), loop.value * factor)
    elif loop.clip is not None:
        nn.utils.clip_grad_norm_(net.parameters(), loop.clip * factor)


def _note_norms(result: Result, net: Net) -> None:
    gradients = [p.grad for p in net.parameters() if p.dim() > 1 and p.grad is not None]
    result.norms.append([g.norm().item() for g in gradients])
    result.zeros.append(sum(int((g == 0).sum()) for g in gradients) / max(1, sum(g.numel() for g in gradients)))


def watch(case: Case, folder: Path, **options: Any) -> dict[str, Any]:
    """Train with the run in `folder`, and give what is kept beside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = train(case, folder, **options)
        except gradscope.GradscopeError as error:
            return {"unobservable": str(error)}
    return {"score": result.score, "norms": result.norms, "zeros": result.zeros}
