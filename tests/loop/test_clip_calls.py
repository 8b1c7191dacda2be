"""What clipping calls do in a loop, row by row."""

from __future__ import annotations

import math

import pytest
import torch
from loop.clipped import NORM, TWO, VALUE, clipped
from loop.loops import Loop, observe, size
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_  # long before any attach
from torch.optim import SGD


@pytest.mark.parametrize("every", [1, 10**9])
@pytest.mark.parametrize("foreach", [None, True, False])
def test_by_norm(foreach: bool | None, every: int) -> None:
    """Whether or not the step is recorded."""

    def clip(loop: Loop) -> None:
        loop.clip(clip_grad_norm_, loop.model.parameters(), 1e-3, foreach=foreach)

    outcome = observe(clipped(clip), every=every)
    assert outcome.steps == [(k, "SGD", k % every == 0, False) for k in range(2)]
    assert outcome.clips == [(k, *NORM, 1e-3, True) for k in range(2)]
    assert outcome.rows("clips", "norm_type", "parameters", "nonfinite") == [(2.0, 10, 0)] * 2


def test_a_threshold_that_is_not_reached() -> None:
    def clip(loop: Loop) -> None:
        loop.clip(clip_grad_norm_, loop.model.parameters(), 1e3)

    outcome = observe(clipped(clip))
    assert outcome.clips == [(k, *NORM, 1e3, False) for k in range(2)]
    assert outcome.run.frame("clips")["coefficient"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("order", [math.inf, 1.0, 3.0])
def test_by_other_norms(order: float) -> None:
    """Passed by position, as many do."""

    def clip(loop: Loop) -> None:
        loop.clip(clip_grad_norm_, loop.model.parameters(), 1e-3, order, order=order)

    outcome = observe(clipped(clip))
    assert outcome.clips == [(k, *NORM, 1e-3, True) for k in range(2)]
    assert outcome.run.frame("clips")["norm_type"].tolist() == [order, order]


@pytest.mark.parametrize("foreach", [True, False])
def test_by_value(foreach: bool) -> None:
    def clip(loop: Loop) -> None:
        for value in (1e-4, 1e3):
            loop.clip(clip_grad_value_, loop.model.parameters(), value, foreach=foreach)

    outcome = observe(clipped(clip))
    assert outcome.steps == TWO
    assert outcome.clips == [(k, *VALUE, *limited) for k in range(2) for limited in ((1e-4, True), (1e3, False))]
    assert outcome.rows("clips", "index", "norm_type", "parameters") == [(0, 2.0, 10), (1, 2.0, 10)] * 2


@pytest.mark.parametrize("foreach", [True, False])
def test_with_a_norm_that_was_measured_before(foreach: bool) -> None:
    def clip(loop: Loop) -> None:
        total = nn.utils.get_total_norm([p.grad for p in loop.model.parameters()])
        loop.clip(clip_grads_with_norm_, loop.model.parameters(), 1e-3, total, foreach=foreach)

    outcome = observe(clipped(clip))
    assert outcome.clips == [(k, "norm", "clip_grads_with_norm_", 1e-3, True) for k in range(2)]
    assert outcome.run.frame("clips")["norm_type"].isna().all()


def test_several_groups_each_on_its_own() -> None:
    """Parts of the recurrent layer, of the rest, a single tensor, and a generator."""

    def clip(loop: Loop) -> None:
        first, *rest = loop.model.rnn.parameters()
        loop.clip(clip_grad_norm_, first, 1e-3)
        loop.clip(clip_grad_norm_, rest, 1e3)
        loop.clip(clip_grad_value_, loop.model.head.parameters(), 1e-4)

    outcome = observe(clipped(clip))
    assert outcome.steps == TWO
    expected = [(*NORM, 1e-3, True), (*NORM, 1e3, False), (*VALUE, 1e-4, True)]
    assert outcome.clips == [(k, *row) for k in range(2) for row in expected]
    assert outcome.run.frame("clips")["parameters"].tolist() == [1, 3, 2] * 2


def test_an_iterator_is_used_up_only_once() -> None:
    def clip(loop: Loop) -> None:
        before = size(loop.model.parameters())
        clip_grad_norm_((p for p in loop.model.parameters()), 1e-3)
        loop.sizes.append((before, size(loop.model.parameters())))

    assert observe(clipped(clip)).clips == [(k, *NORM, 1e-3, True) for k in range(2)]


def test_twice_in_a_step() -> None:
    """The second call finds what the first has left."""

    def clip(loop: Loop) -> None:
        for threshold in (1e-2, 1e-3):
            loop.clip(clip_grad_norm_, loop.model.parameters(), threshold)

    outcome = observe(clipped(clip))
    assert outcome.clips == [(k, *NORM, threshold, True) for k in range(2) for threshold in (1e-2, 1e-3)]


def test_another_model_s_clipping() -> None:
    def clip(loop: Loop) -> None:
        other = nn.Linear(2, 2)
        other(torch.ones(2)).sum().backward()
        clip_grad_norm_(other.parameters(), 1e-3)
        clip_grad_value_(other.parameters(), 1e-4)

    outcome = observe(clipped(clip))
    assert outcome.steps == TWO and outcome.clips == []


def test_two_models_clipped_together() -> None:
    def clip(loop: Loop) -> None:
        other = nn.Linear(2, 2)
        other(torch.ones(2)).sum().backward()
        loop.clip(clip_grad_norm_, [*other.parameters(), *loop.model.parameters()], 1e-3)

    outcome = observe(clipped(clip))
    assert outcome.clips == [(k, *NORM, 1e-3, True) for k in range(2)]
    assert outcome.run.frame("clips")["parameters"].tolist() == [12, 12]


def test_in_a_closure() -> None:
    """Every evaluation's call is one; they all belong to one step."""

    def train(loop: Loop) -> None:
        optimizer = torch.optim.LBFGS(loop.model.parameters(), lr=0.01, max_iter=3, tolerance_grad=0)

        def closure() -> torch.Tensor:
            value = loop.evaluate()
            loop.clip(clip_grad_norm_, loop.model.parameters(), 1e-3)
            return value

        loop.step(optimizer, closure)

    outcome = observe(train)
    assert outcome.steps == [(0, "LBFGS", True, False)]
    assert outcome.clips == [(0, *NORM, 1e-3, True)] * 3


@pytest.mark.parametrize("spoilt", [math.inf, math.nan])
@pytest.mark.parametrize("threshold", [1e-3, 1e3])
def test_a_norm_that_is_not_finite(spoilt: float, threshold: float) -> None:
    """What is left then is not finite either, and nobody has changed it by hand."""

    def train(loop: Loop) -> None:
        (loop.loss() * spoilt).backward()
        loop.clip(clip_grad_norm_, loop.model.parameters(), threshold)
        loop.step(SGD(loop.model.parameters(), 0.1))

    outcome = observe(train, noted=True)
    assert outcome.rows("clips", "step", "kind", "how", "threshold", "nonfinite") == [(0, *NORM, threshold, 1)]
    assert outcome.rows("steps", "optimizer", "nonfinite") == [("SGD", 4)]


def test_one_element_that_is_not_finite() -> None:
    """Written by hand, and clipped to nothing and NaN by torch: both are told."""

    def train(loop: Loop) -> None:
        loop.backward()
        loop.model.rnn.weight_hh_l0.grad[0, 0] = math.inf
        loop.clip(clip_grad_norm_, loop.model.parameters(), 1.0)
        loop.sizes.append((0.0, math.nan))
        loop.step(SGD(loop.model.parameters(), 0.1))

    outcome = observe(train, noted=True)
    assert outcome.rows("clips", "kind", "how", "nonfinite") == [(*NORM, 1), ("modified", "changed", 0)]
    assert outcome.rows("steps", "optimizer", "nonfinite") == [("SGD", 1)]
    (note,) = outcome.notes
    assert note[1].startswith("gradients are not finite at the optimizer: weight_hh_l0 (input); its weights were")


def test_a_refused_call() -> None:
    """`error_if_nonfinite` raises, the gradients stay, and the loop skips the batch."""

    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for attempt in range(3):
            optimizer.zero_grad()
            (loop.loss() * (math.inf if attempt == 1 else 1.0)).backward()
            before = size(loop.model.parameters())
            try:
                clip_grad_norm_(loop.model.parameters(), 1e-3, error_if_nonfinite=True)
            except RuntimeError:
                loop.sizes.append((before, before))
                continue
            loop.sizes.append((before, size(loop.model.parameters())))
            loop.step(optimizer)

    outcome = observe(train, noted=True)
    assert outcome.steps == TWO
    assert outcome.clips == [(0, *NORM, 1e-3, True), (1, *NORM, 1e-3, False), (1, *NORM, 1e-3, True)]
    assert outcome.run.frame("clips")["nonfinite"].tolist() == [0, 1, 0]
