"""Work of other kinds than in the other rooms: nested brackets, a sine, events in time, sorting, sensors, a bandit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.field.setup import Setup
from benchmarks.field.task import Batch, Generator, Task, accuracy, bits, classes, explained, full, nats, notes, numbers

PAIRS, DEEP, LETTERS = 3, 5, 4  # kinds of brackets, how deep they nest, letters between them


def brackets(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """At every symbol of a nested text: which kind of bracket is the innermost that is open, if any."""
    B, T = setup.batch, setup.length
    drawn = torch.rand(B, T, 2, generator=g).tolist()
    x, y = torch.zeros(B, T, dtype=torch.long), torch.zeros(B, T, dtype=torch.long)
    for row in range(B):
        stack: list[int] = []
        said, asked = [], []
        for move, kind in drawn[row]:
            if move < 0.35 and len(stack) < DEEP:
                stack.append(1 + int(kind * PAIRS))
                said.append(stack[-1])
            elif move < 0.65 and stack:
                said.append(PAIRS + stack.pop())
            else:
                said.append(1 + 2 * PAIRS + int(kind * LETTERS))
            asked.append(stack[-1] if stack else 0)
        x[row], y[row] = torch.tensor(said), torch.tensor(asked)
    return Batch(x, y, full(B, T), torch.ones(B, T, dtype=torch.bool))


def sine(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """How fast and how high a noisy sine goes; recordings differ in length."""
    B, T = setup.batch, setup.length
    rate, height, phase = (torch.rand(B, 1, generator=g) for _ in range(3))
    turns = 0.02 * 10**rate * torch.arange(T) + phase
    lengths = torch.randint(T // 2, T + 1, (B,), generator=g)
    x = (0.4 + height) * torch.sin(2 * math.pi * turns) + 0.2 * torch.randn(B, T, generator=g)
    x = x * (torch.arange(T) < lengths[:, None])
    return Batch(x[..., None], 3.4 * (torch.cat([rate, height], 1) - 0.5), lengths)


MARKS, AGO = 5, 4


def waits(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """How long until the next event: it depends on what this one is, and on what the fourth before it was."""
    B, T = setup.batch, setup.length
    marks = torch.randint(0, MARKS, (B, T + AGO), generator=g)
    mean = torch.linspace(-1, 1, MARKS)[marks[:, AGO:]] + torch.tensor([0.9, -0.6, 0.3, -0.9, 0.6])[marks[:, :-AGO]]
    logs = mean + 0.3 * torch.randn(B, T, generator=g)
    before = torch.cat([torch.zeros(B, 1), logs[:, :-1]], 1)
    x = torch.cat([before[..., None], nn.functional.one_hot(marks[:, AGO:], MARKS).float()], -1)
    return Batch(x, logs[..., None], full(B, T), torch.ones(B, T, dtype=torch.bool))


def likelihood(answers: Tensor, batch: Batch, setup: Setup) -> Tensor:
    """Negative, of a wait whose rate is the exponential of the answer; it may be below zero."""
    return (answers.exp() * batch.y.exp() - answers).mean()


def foreseen(answers: Tensor, batch: Batch) -> float:
    """Share of the variance of a wait's logarithm that the rate explains."""
    return explained(-answers, batch)


KNOWN, ITEMS, OTHERS = 8, 6, 12


def sorting(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """Six digits somewhere among letters, to be said in their order."""
    B, T = setup.batch, setup.length
    x = torch.randint(KNOWN, KNOWN + OTHERS, (B, T), generator=g) + 1
    digits = torch.randint(0, KNOWN, (B, ITEMS), generator=g)
    places = torch.rand(B, T, generator=g).argsort(1)[:, :ITEMS].sort(1).values
    y = digits.sort(1).values
    return Batch(x.scatter(1, places, digits + 1), y, full(B, T), torch.ones(B, ITEMS, dtype=torch.bool))


CHANNELS = 5


def sensors(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """Which of five sensors of one process have had a fault so far: one that has jumps away for three samples."""
    B, T = setup.batch, setup.length
    noise = torch.randn(B, T, 1 + CHANNELS, generator=g)
    state, course = torch.zeros(B, 1 + CHANNELS), []
    for t in range(T):
        state = 0.9 * state + 0.45 * noise[:, t]
        course.append(state)
    found = torch.stack(course, 1)
    x = 0.5 * found[..., :1] + 0.25 * found[..., 1:]
    at = torch.randint(3, 2 * T, (B, 1, CHANNELS), generator=g)  # behind the end as often as not
    since = torch.arange(T)[:, None] - at
    way = torch.randint(0, 2, (B, 1, CHANNELS), generator=g) * 2 - 1
    x = x + 4.0 * way * ((since >= 0) & (since < 3))
    return Batch(x, (since >= 0).float(), full(B, T), torch.ones(B, T, dtype=torch.bool))


GOOD = 0.9


def bandit(g: Generator, setup: Setup, step: int, test: bool, model: nn.Module | None) -> Batch:
    """Two arms, one of them good, another one in every episode: the agent sees what it did and what it got."""
    B, T = setup.batch, setup.length
    good, luck = torch.randint(0, 2, (B,), generator=g), torch.rand(B, T, generator=g)
    x, actions, reward, state = torch.zeros(B, T, 4), torch.zeros(B, T, dtype=torch.long), torch.zeros(B, T), None
    assert model is not None
    with torch.no_grad():
        for t in range(T):
            x[:, t, 3] = 1
            answers, state = model.step(x[:, t], state)  # type: ignore[operator]
            actions[:, t] = torch.multinomial(answers.float().softmax(-1), 1, generator=g)[:, 0]
            reward[:, t] = (luck[:, t] < torch.where(actions[:, t] == good, GOOD, 1 - GOOD)).float()
            if t + 1 < T:
                x[torch.arange(B), t + 1, actions[:, t]] = 1
                x[:, t + 1, 2] = 2 * reward[:, t] - 1
    return Batch(x, actions, full(B, T), torch.ones(B, T, dtype=torch.bool), {"reward": reward})


def reinforce(answers: Tensor, batch: Batch, setup: Setup) -> Tensor:
    """What was done is made likelier by how much more came of it than of the others at that time."""
    reward, later, sums = batch.extra["reward"], torch.zeros(len(batch.y)), []
    for t in reversed(range(reward.shape[1])):
        later = reward[:, t] + 0.8 * later
        sums.append(later)
    later = torch.stack(sums[::-1], 1)
    advantage = (later - later.mean(0)) / (later.std() + 1e-6)
    scores = answers.log_softmax(-1)
    said = scores.gather(2, batch.y[..., None])[..., 0]
    entropy = -(scores.exp() * scores).sum(-1).mean()
    return -(said * advantage).mean() - 0.01 * entropy


def won(answers: Tensor, batch: Batch) -> float:
    """Reward beyond that of a coin, of what it can be beyond it."""
    return (batch.extra["reward"].mean().item() - 0.5) / (GOOD - 0.5)


def tasks() -> list[Task]:
    half = "held-out"
    return [
        Task(
            "brackets", half, "formal language", 1 + 2 * PAIRS + LETTERS, PAIRS + 1, 60, brackets, classes, accuracy,
            "all", tokens=True, usual=Setup("lstm", hidden=64, embed=24, steps=200, lr=0.01, batch=24),
        ),
        Task(
            "sine", half, "regression of signals", 1, 2, 100, sine, numbers, explained,
            usual=Setup("gru", hidden=64, steps=200, lr=0.006, batch=24),
        ),
        Task(
            "waits", half, "events in time", 1 + MARKS, 1, 60, waits, likelihood, foreseen, "all",
            usual=Setup("gru", hidden=64, steps=180, lr=0.008, batch=24),
        ),
        Task(
            "sorting", half, "seq2seq", KNOWN + OTHERS + 1, KNOWN, 30, sorting, classes, nats, "pair", tokens=True,
            symbols=KNOWN + 1, usual=Setup("gru", hidden=96, embed=32, steps=220, lr=0.008),
        ),
        Task(
            "sensors", half, "detection of faults", CHANNELS, CHANNELS, 80, sensors, notes, bits, "all",
            usual=Setup("lstm", hidden=64, steps=250, lr=0.012, batch=24, init=(("forget", 2.0),)),
        ),
        Task(
            "bandit", half, "reinforcement learning", 4, 2, 30, bandit, reinforce, won, "all",
            usual=Setup("gru", hidden=48, steps=180, lr=0.01, batch=48),
        ),
    ]  # fmt: skip
