"""Notes on the loop: what receives no gradient, what is left over from an earlier step, what nobody steps."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

import gradscope
from gradscope.observe.following import DETACHED
from gradscope.types.notes import (
    CLIPPED_LATE,
    DECAY,
    DISABLED,
    FROZEN,
    NO_GRADIENT,
    OUTWEIGHS,
    PENALTY,
    STALE,
    UNOPTIMIZED,
)


class Pair(nn.Module):
    """An encoder whose state the decoder is given, or not; read out by layers in a Python list."""

    def __init__(self, given: bool) -> None:
        super().__init__()
        self.given = given
        self.encoder, self.decoder = nn.GRU(3, 4), nn.GRU(3, 4)
        self.heads = [nn.Linear(4, 2)]

    def forward(self, x: Tensor) -> Tensor:
        state = self.encoder(x)[1]
        return self.heads[0](self.decoder(x, state if self.given else None)[0])


def notes(model: nn.Module, steps: int = 12, *, zero: bool = True) -> list[tuple[int, str, str]]:
    optimizer = SGD(model.parameters(), 0.01)
    with gradscope.attach(model, every=1, strict=True) as scope:
        for _ in range(steps):
            if zero:
                optimizer.zero_grad()
            model(torch.randn(5, 2, 3)).square().mean().backward()
            optimizer.step()
    return list(scope.run.frame("notes")[["step", "module", "reason"]].itertuples(index=False, name=None))


def test_a_module_that_is_called_and_gets_no_gradient() -> None:
    silent = [(step, module) for step, module, reason in notes(Pair(given=False)) if reason == NO_GRADIENT]
    assert silent == [(step, "encoder") for step in range(12)]
    assert not [reason for _, _, reason in notes(Pair(given=True)) if reason == NO_GRADIENT]


class Within(nn.Module):
    """A recurrence whose call is within `no_grad`, in training mode or not, beside another or not."""

    def __init__(self, *, training: bool, beside: bool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = nn.GRU(3, 4), nn.GRU(3, 4), nn.Linear(4, 2)
        self.encoder.train(training)
        self.beside = beside

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            state = self.encoder(x)[0]
        return self.head(state + self.decoder(x)[0] if self.beside else state)


@pytest.mark.parametrize(("training", "beside"), [(True, False), (False, False), (True, True)])
def test_a_module_that_is_called_with_gradients_disabled(training: bool, beside: bool) -> None:
    """Validation, and target networks, have such calls beside others."""
    model = Within(training=training, beside=beside)
    found = [(step, module) for step, module, reason in notes(model) if reason == DISABLED]
    assert found == ([(step, "encoder") for step in range(12)] if training and not beside else [])


def test_a_module_whose_parameters_require_no_gradient() -> None:
    model = Within(training=True, beside=False)
    model.encoder.requires_grad_(False)
    model.forward = lambda x: model.head(model.encoder(x)[0])
    assert [(step, module) for step, module, reason in notes(model) if reason == FROZEN] == [
        (step, "encoder") for step in range(12)
    ]


@pytest.mark.parametrize("given", [True, False])
def test_burn_in_ends_the_gradient_within_the_step(given: bool) -> None:
    """The state of a call with gradients disabled begins the next."""
    model = Pair(given=True)

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            state = model.encoder(x)[1]
        return model.encoder(x, state if given else None)[0]

    model.forward = forward
    found = [(step, module) for step, module, reason in notes(model, 3) if reason == DETACHED]
    assert found == ([(step, "encoder") for step in range(3)] if given else [])


def test_parameters_that_no_optimizer_steps() -> None:
    """Once, by shape, for the model does not know their names."""
    found = [reason for _, _, reason in notes(Pair(given=True)) if reason.startswith(UNOPTIMIZED)]
    assert found == [UNOPTIMIZED + "2x4, 2"] or found == [UNOPTIMIZED + "2, 2x4"]
    mended = Pair(given=True)
    mended.head = mended.heads[0]
    assert not [reason for _, _, reason in notes(mended) if reason.startswith(UNOPTIMIZED)]


def test_an_optimizer_without_the_recurrent_layers_counts_if_no_other_steps() -> None:
    """From its 33rd step on, each a step of the run, whose tables name what it leaves out."""
    model = Pair(given=True)
    model.head = model.heads[0]
    optimizer = SGD(model.head.parameters(), 0.01)
    with gradscope.attach(model, every=1, strict=True) as scope:
        for _ in range(45):
            optimizer.zero_grad()
            model(torch.randn(5, 2, 3)).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    steps, clips, rows = (scope.run.frame(table) for table in ("steps", "clips", "notes"))
    assert steps["step"].tolist() == clips["step"].tolist() == [*range(13)]
    assert steps["recorded"].all() and (steps["loss"] < 1).all() and scope.run.frame("layers")["chain"].eq(0).all()
    (found,) = [reason for reason in rows["reason"] if reason.startswith(UNOPTIMIZED)]
    assert "encoder.weight_hh_l0" in found and "head" not in found


def test_an_optimizer_that_steps_the_layers_later_is_waited_for() -> None:
    """As a generator is that learns after every fifth step of its critic."""
    model = Pair(given=True)
    model.head = model.heads[0]
    critic, generator = SGD(model.head.parameters(), 0.01), SGD(model.encoder.parameters(), 0.01)
    with gradscope.attach(model, every=1, strict=True) as scope:
        for step in range(60):
            model(torch.randn(5, 2, 3)).square().mean().backward()
            (generator if step % 5 == 4 else critic).step()
            model.zero_grad()
    assert len(scope.run.frame("steps")) == 12


def test_clipping_of_gradients_that_no_pass_has_left() -> None:
    model = nn.GRU(3, 4)
    optimizer = SGD(model.parameters(), 0.01)
    with gradscope.attach(model, every=1, strict=True) as scope:
        for _ in range(3):
            loss = model(torch.randn(5, 2, 3))[0].square().mean()
            for parameter, gradient in zip(
                model.parameters(), torch.autograd.grad(loss, [*model.parameters()]), strict=True
            ):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    assert CLIPPED_LATE not in scope.run.frame("notes")["reason"].tolist()


def test_clipping_before_each_of_two_steps_of_one_pass() -> None:
    model = Pair(given=True)
    parts = model.encoder, model.decoder
    optimizers = [SGD(part.parameters(), 0.01) for part in parts]
    with gradscope.attach(model, every=1, strict=True) as scope:
        for _ in range(3):
            model.zero_grad()
            model(torch.randn(5, 2, 3)).square().mean().backward()
            for part, optimizer in zip(parts, optimizers, strict=True):
                nn.utils.clip_grad_norm_(part.parameters(), 1.0)
                optimizer.step()
    assert CLIPPED_LATE not in scope.run.frame("notes")["reason"].tolist()


@pytest.mark.parametrize("when", ["before the step", "after the step", "after each of two passes"])
def test_clipping_after_the_step(when: str) -> None:
    model = Pair(given=True)
    optimizer = SGD(model.parameters(), 0.01)
    clip = lambda: nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # noqa: E731
    with gradscope.attach(model, every=1) as scope, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(4):
            for _ in range(2 if "two" in when else 1):
                model(torch.randn(5, 2, 3)).square().mean().backward()
                if when != "after the step":
                    clip()
            optimizer.step()
            if when == "after the step":
                clip()
            model.zero_grad()
    late = [row.step for row in scope.run.frame("notes").itertuples() if row.reason == CLIPPED_LATE]
    assert late == ([1, 2, 3] if when == "after the step" else []) and len(warned) == bool(late)


@pytest.mark.parametrize("zero", [True, False])
def test_gradients_of_an_earlier_step(zero: bool) -> None:
    model = Pair(given=True)
    model.head = model.heads[0]
    stale = [(step, reason) for step, _, reason in notes(model, 4, zero=zero) if reason.startswith(STALE)]
    assert [step for step, _ in stale] == ([] if zero else [1, 2, 3])
    assert all("norm" in reason and "after the pass" in reason for _, reason in stale)


@pytest.mark.parametrize(
    ("kind", "decay", "told"),
    [(AdamW, 20.0, True), (AdamW, 0.01, False), (SGD, 0.5, True), (SGD, 1e-4, False), (Adam, 20.0, False)],
)
def test_a_decay_that_takes_much_of_the_weights_at_every_step(kind: type[Optimizer], decay: float, told: bool) -> None:
    """Once. What Adam makes of its decay depends on the gradient."""
    model = nn.GRU(3, 4)
    optimizer = kind(model.parameters(), lr=0.01, weight_decay=decay)
    with gradscope.attach(model, every=1, strict=True) as scope:
        for _ in range(3):
            model(torch.randn(5, 2, 3))[0].square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    frame = scope.run.frame("notes")
    found = frame[frame.reason.str.startswith(DECAY)]
    how = f"{100 * 0.01 * decay:.2f}% of the recurrent weights ({kind.__name__}, lr=0.01, weight_decay={decay:g})"
    assert found.reason.tolist() == ([DECAY + how] if told else [])


@pytest.mark.parametrize(
    ("kind", "decay", "scale", "told"),
    [
        (Adam, 0.5, 1.0, True),
        (SGD, 0.5, 1.0, True),
        (RMSprop, 0.5, 1.0, True),
        (AdamW, 0.5, 1.0, False),
        (Adam, 0.5, 1e4, False),
        (Adam, 1e-4, 1e-4, False),
        (Adam, 0.5, 0.0, False),
    ],
)
def test_a_decay_that_is_larger_than_the_gradient_of_the_loss(
    kind: type[Optimizer], decay: float, scale: float, told: bool
) -> None:
    """With the norms of both. Decoupled decay is no part of the gradient, and usual decay is not examined."""
    model, expected = nn.GRU(3, 4), list[str]()
    optimizer = kind([{"params": model.parameters(), "weight_decay": decay}], lr=1e-9)
    with gradscope.attach(model, every=1, strict=True) as scope:
        for _ in range(3):
            optimizer.zero_grad()
            (scale * model(torch.randn(5, 2, 3))[0].square().mean()).backward()
            norms = [math.hypot(*(x.norm().item() for x in xs)) for xs in _weights_and_gradients(model)]
            how = f"({kind.__name__}, weight_decay={decay:g})"
            expected.append(f"{OUTWEIGHS}norm {decay * norms[0]:.3g}, loss gradient {norms[1]:.3g} {how}")
            optimizer.step()
    frame = scope.run.frame("notes")
    assert frame[frame.reason.str.startswith(OUTWEIGHS)].reason.tolist() == (expected if told else [])


@pytest.mark.parametrize(
    ("power", "weight", "how"),
    [
        (2, 0.1, "squares"),
        (2, 0.002, ""),
        (2, -0.1, ""),  # makes them grow
        (1, 0.01, "sizes"),
        (1, 0.0005, ""),
    ],
)
def test_a_penalty_of_the_weights_that_is_a_large_part_of_their_gradient(power: int, weight: float, how: str) -> None:
    """Found by the direction of the gradient alone; the norms are those of the two terms of the loss."""
    model, expected = nn.GRU(5, 16, num_layers=2), list[tuple[float, float]]()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    optimizer = SGD(model.parameters(), lr=1e-9)
    with gradscope.attach(model, every=1, strict=True) as scope:
        for _ in range(3):
            optimizer.zero_grad()
            x = torch.randn(5, 2, 5)
            terms = (
                3 * model(x)[0].square().mean(),
                weight * sum(x.abs().pow(power).sum() / power for x in model.parameters()),
            )
            each = [torch.autograd.grad(term, matrices, retain_graph=True) for term in terms]
            rest, added = (math.hypot(*(g.norm().item() for g in gradients)) for gradients in each)
            expected.append((added, rest))
            sum(terms, torch.zeros(())).backward()
            optimizer.step()
    frame = scope.run.frame("notes")
    found = frame[frame.reason.str.startswith(PENALTY)].reason
    assert len(found) == (3 if how else 0)
    for reason, (added, rest) in zip(found, expected, strict=False):
        assert reason.endswith(f"(of their {how})")
        norms = [float(part.split()[-1]) for part in reason.removesuffix(f" (of their {how})").split(",")]
        assert norms == pytest.approx([added, rest], rel=0.2)


@pytest.mark.parametrize("model", [nn.RNN(3, 8), nn.RNN(8, 16), nn.RNN(16, 64), nn.GRU(16, 64)], ids=str)
def test_a_loss_that_shrinks_the_weights_by_itself_has_no_penalty(model: nn.RNNBase) -> None:
    """The gradient of the input's weights points along them, that of the recurrent ones less."""
    optimizer = SGD(model.parameters(), lr=1e-9)
    with gradscope.attach(model, every=1, strict=True) as scope:
        model(torch.randn(20, 8, model.input_size))[0].square().mean().backward()
        optimizer.step()
    assert not scope.run.frame("notes").reason.str.startswith(PENALTY).any()


def _weights_and_gradients(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    return list(model.parameters()), [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_loss_that_was_told_to_require_gradient(at_once: bool) -> None:
    """As after argmax: the pass runs, nothing is below it; the layer has received nothing, and the loss is known."""
    model, losses = nn.GRU(3, 4), list[float]()
    optimizer = SGD(model.parameters(), 0.01)
    with gradscope.attach(model, every=2, strict=True) as scope:
        for _ in range(4):
            answers = model(torch.randn(5, 2, 3))[0].argmax(-1)
            numbers = answers.float()
            loss = numbers.mean().requires_grad_() if at_once else numbers.requires_grad_().square().mean()
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    frame = scope.run.frame("notes")
    assert frame[frame.reason == NO_GRADIENT].step.tolist() == [0, 2]
    assert scope.run.frame("steps").loss.tolist() == losses


def test_steps_without_any_gradient_are_not_recorded_one_after_the_other() -> None:
    """By default: looking at a step costs what it costs, with or without a gradient to show for it."""
    model = nn.GRU(3, 4)
    optimizer = SGD(model.parameters(), 0.01)
    with gradscope.attach(model, strict=True) as scope:
        for _ in range(200):
            model(torch.randn(5, 2, 3))[0].argmax(-1).float().mean().requires_grad_().backward()
            optimizer.step()
    looked = scope.run.frame("notes").step.tolist()
    assert looked[:16] == list(range(16)) and len(looked) < 100
