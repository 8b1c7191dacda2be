"""Research tasks that need a long memory, and agents that need one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.field.setup import Setup
from benchmarks.field.task import Batch, Generator, Task, accuracy, classes, explained, full, numbers

SYMBOLS = 6


def adding(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """The sum of two marked numbers, one in either half (Hochreiter and Schmidhuber 1997)."""
    B, T = setup.batch, setup.length
    x = torch.zeros(B, T, 2)
    x[..., 0] = torch.rand(B, T, generator=g)
    rows, first = torch.arange(B), torch.randint(0, T // 2, (B,), generator=g)
    second = torch.randint(T // 2, T, (B,), generator=g)
    x[rows, first, 1] = x[rows, second, 1] = 1
    return Batch(x, (x[rows, first, 0] + x[rows, second, 0])[:, None], full(B, T))


def recall(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """Two symbols at the beginning, noise for the rest, and both must be said at the cues at the end (copy memory)."""
    B, T = setup.batch, setup.length
    symbols = torch.randint(0, SYMBOLS, (B, 2), generator=g)
    x = torch.zeros(B, T, SYMBOLS + 2)
    x[:, :2, :SYMBOLS] = F.one_hot(symbols, SYMBOLS).float()
    x[:, 2:-2, SYMBOLS] = torch.rand(B, T - 4, generator=g)
    x[:, -2:, SYMBOLS + 1] = 1
    counts = torch.zeros(B, T, dtype=torch.bool)
    counts[:, -2:] = True
    y = torch.zeros(B, T, dtype=torch.long)
    y[:, -2:] = symbols
    return Batch(x, y, full(B, T), counts)


# --- agents


@torch.no_grad()
def _play(model: nn.Module, x: Tensor, choose: object) -> Tensor:
    """Actions at every timestep, the state handed on."""
    state, actions = None, []
    for t in range(x.shape[1]):
        answers, state = model.step(x[:, t], state)  # type: ignore[operator]
        actions.append(choose(answers))  # type: ignore[operator]
    return torch.stack(actions, 1)


def maze(g: Generator, setup: Setup, step: int, test: bool, model: nn.Module | None) -> Batch:
    """A corridor: a sign at its beginning says which way to turn at its end (Bakker 2002), with Q-learning."""
    B, T = setup.batch, setup.length
    sign = torch.randint(0, 2, (B,), generator=g)
    x = torch.zeros(B, T, 4)
    x[:, 1:-1, 2] = torch.rand(B, T - 2, generator=g)
    x[:, -1, 3] = 1
    x[torch.arange(B), 0, sign] = 1
    curious = 0.0 if test else max(0.1, 1 - 2 * step / setup.steps)
    wander, chance = torch.randint(0, 2, (B, T), generator=g), torch.rand(B, T, generator=g) < curious
    assert model is not None
    actions = torch.where(chance, wander, _play(model, x, lambda q: q.argmax(-1)))
    reward = (actions[:, -1] == sign).float()
    return Batch(x, actions, full(B, T), torch.ones(B, T, dtype=torch.bool), {"reward": reward})


def q_learning(answers: Tensor, batch: Batch, setup: Setup) -> Tensor:
    """Temporal differences of the batch's own greedy values."""
    values = answers.gather(2, batch.y[..., None])[..., 0]
    best = answers.detach().amax(2)[:, 1:]
    return F.mse_loss(values, torch.cat([0.95 * best, batch.extra["reward"][:, None]], 1))


def turned(answers: Tensor, batch: Batch) -> float:
    """Right turns beyond half of them."""
    return 2 * batch.extra["reward"].mean().item() - 1


CARDS, BACK = 4, 4


def repeat(g: Generator, setup: Setup, step: int, test: bool, model: nn.Module | None) -> Batch:
    """Say which card was shown four cards ago (after POPGym, Morad et al. 2023), with an actor and a critic."""
    B, T = setup.batch, setup.length
    cards = torch.randint(0, CARDS, (B, T), generator=g)
    x = F.one_hot(cards, CARDS).float()

    def choose(answers: Tensor) -> Tensor:
        scores = answers[..., :CARDS]
        return scores.argmax(-1) if test else torch.multinomial(scores.softmax(-1), 1, generator=g)[..., 0]

    assert model is not None
    actions, reward = _play(model, x, choose), torch.zeros(B, T)
    reward[:, BACK:] = (actions[:, BACK:] == cards[:, :-BACK]).float()
    return Batch(x, actions, full(B, T), torch.ones(B, T, dtype=torch.bool), {"reward": reward})


def actor_critic(answers: Tensor, batch: Batch, setup: Setup) -> Tensor:
    """Advantage of what was earned over what was expected; this loss may well be below zero."""
    scores, expected = answers[..., :CARDS].log_softmax(-1), answers[..., CARDS]
    earned = batch.extra["reward"]
    advantage = earned - expected
    said = scores.gather(2, batch.y[..., None])[..., 0]
    entropy = -(scores.exp() * scores).sum(-1).mean()
    return -(said * advantage.detach()).mean() + 0.5 * advantage.square().mean() - 0.02 * entropy


def earned(answers: Tensor, batch: Batch) -> float:
    """Right cards beyond one in four."""
    return (batch.extra["reward"][:, BACK:].mean().item() - 1 / CARDS) / (1 - 1 / CARDS)


def tasks() -> list[Task]:
    memory, agent = "long memory", "reinforcement learning"
    slow = (("chrono", 1.0),)
    return [
        Task(
            "adding", "tuning", memory, 2, 1, 80, adding, numbers, explained,
            usual=Setup("gru", hidden=64, steps=260, lr=0.01, init=slow, batch=24),
        ),
        Task(
            "recall", "held-out", memory, SYMBOLS + 2, SYMBOLS, 60, recall, classes, accuracy, "all",
            usual=Setup("lstm", hidden=64, steps=350, lr=0.01, init=slow),
        ),
        Task(
            "maze", "tuning", agent, 4, 2, 40, maze, q_learning, turned, "all",
            usual=Setup("gru", hidden=64, steps=160, lr=0.006, init=slow),
        ),
        Task(
            "repeat", "held-out", agent, CARDS, CARDS + 1, 40, repeat, actor_critic, earned, "all",
            usual=Setup("gru", hidden=64, steps=200, lr=0.01),
        ),
    ]  # fmt: skip
