"""Gradients changed by hand are told apart, and those that nobody changed are let be."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from attach.trainings import backward, gradients, model
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from gradscope.attach.modified import Change, compare, present_gradients, snapshot

Gradients = list[Tensor]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def network(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Parameters of two layers of different size, with gradients of different scale."""
    shapes = [(64, 16), (64, 32), (64,), (7,)]
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    for scale, parameter in enumerate(parameters, 1):
        parameter.grad = (torch.randn(parameter.shape) * scale).to(dtype)
    return parameters


def change(act: Callable[[Gradients], object], dtype: torch.dtype = torch.float32) -> Change | None:
    """What is made of `act(gradients)`."""
    parameters = network(dtype)
    reference = snapshot(parameters)
    act(present_gradients(parameters))
    comparison = compare(reference, parameters)
    return comparison.read(comparison.values)


def each(act: Callable[[Tensor], object]) -> Callable[[Gradients], object]:
    """The same for every gradient."""
    return lambda gradients: [act(gradient) for gradient in gradients]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("act", "how"),
    [
        (each(lambda g: None), None),
        (each(lambda g: g.mul_(1.0)), None),
        (each(lambda g: g.mul_(0.3)), "scaled"),
        (each(lambda g: g.div_(3)), "scaled"),
        (each(lambda g: g.data.mul_(7.1)), "scaled"),
        (each(lambda g: g.neg_()), "scaled"),
        (each(lambda g: g.zero_()), "scaled"),
        (each(lambda g: g.data.clamp_(-1, 1)), "clamped"),
        (each(lambda g: g.clamp_(-2.5, 2.5)), "clamped"),
        (each(lambda g: g.add_(torch.randn_like(g))), "changed"),
        (each(lambda g: g.clamp_(-1, 2)), "changed"),
        (each(lambda g: g.mul_(0.1).clamp_(-0.1, 0.1)), "changed"),
        (each(lambda g: g.div_(g.norm())), "changed"),
        (each(lambda g: g.sign_()), "changed"),
        (lambda gradients: gradients[0].mul_(0.5), "changed"),
        (lambda gradients: gradients[1][:32].zero_(), "changed"),
    ],
)
def test_kinds_of_change(act: Callable[[Gradients], object], how: str | None, dtype: torch.dtype) -> None:
    found = change(act, dtype)
    assert (found and found.how) == how


def test_numbers() -> None:
    scaled = change(each(lambda g: g.mul_(-0.25)))
    assert scaled and scaled.coefficient == pytest.approx(-0.25) and math.isnan(scaled.threshold)
    assert scaled.norm_after == pytest.approx(scaled.norm_before / 4)
    clamped = change(each(lambda g: g.data.clamp_(-1.5, 1.5)))
    assert clamped and clamped.threshold == 1.5
    assert clamped.coefficient == pytest.approx(clamped.norm_after / clamped.norm_before)


def test_a_clamp_that_meets_one_element_beside_the_sample() -> None:
    parameters = [nn.Parameter(torch.zeros(1000, 1000))]
    parameters[0].grad = torch.rand(1000, 1000)
    parameters[0].grad[123, 457] = 1e3
    reference = snapshot(parameters)
    parameters[0].grad.data.clamp_(-5, 5)
    comparison = compare(reference, parameters)
    found = comparison.read(comparison.values)
    assert found and (found.how, found.threshold) == ("clamped", 5)


def test_known_factors_explain_themselves() -> None:
    parameters = network()
    reference = snapshot(parameters)
    norm = clip_grad_norm_(parameters, 0.5)
    reference = reference.times(torch.clamp(0.5 / (norm + 1e-6), max=1.0))
    comparison = compare(reference, parameters)
    assert comparison.read(comparison.values) is None
    for gradient in present_gradients(parameters):
        gradient.div_(4)
    comparison = compare(reference, parameters)
    found = comparison.read(comparison.values)
    assert found and found.how == "scaled" and found.coefficient == pytest.approx(0.25)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_gradients(bad: float) -> None:
    parameters = network()
    present_gradients(parameters)[1][3, 3] = bad
    for factor, how in ((1.0, None), (0.5, "scaled")):
        reference = snapshot(parameters)
        for parameter in parameters:
            parameter.grad.mul_(factor)
        comparison = compare(reference, parameters)
        found = comparison.read(comparison.values)
        assert (found and found.how) == how
    reference = snapshot(parameters)
    present_gradients(parameters)[1].nan_to_num_(0.0, 0.0, 0.0)
    comparison = compare(reference, parameters)
    found = comparison.read(comparison.values)
    assert found and found.how == "changed" and math.isfinite(found.norm_after)


def test_gradients_that_come_and_go() -> None:
    parameters = network()
    reference = snapshot(parameters)
    parameters[0].grad = None
    comparison = compare(reference, parameters)
    found = comparison.read(comparison.values)
    assert found and found.how == "changed"
    for parameter in parameters:
        parameter.grad = None
    nothing = snapshot(parameters)
    assert nothing.norm == 0 and len(compare(nothing, parameters).values) == 0


def test_replaced_by_an_equal_gradient_is_no_change() -> None:
    parameters = network()
    reference = snapshot(parameters)
    for parameter, gradient in zip(parameters, present_gradients(parameters), strict=True):
        parameter.grad = gradient.t().contiguous().t() if gradient.dim() > 1 else gradient.clone()
    comparison = compare(reference, parameters)
    assert comparison.read(comparison.values) is None


@pytest.mark.filterwarnings("ignore:Using backward.*create_graph:UserWarning")
def test_mixed_precision_and_double_backward() -> None:
    parameters = [network(dtype)[1] for dtype in DTYPES]
    reference = snapshot(parameters)
    assert len(compare(reference, parameters).values) == 0 and reference.norm.dtype is torch.float64
    net = model()
    torch.autograd.backward(net(torch.randn(3, 2, 3)).square().sum(), create_graph=True)
    weights = list(net.parameters())
    assert not snapshot(weights).sample.requires_grad and not snapshot(weights).norms.requires_grad
    net.zero_grad()


def test_norm_is_that_of_all_gradients() -> None:
    net = model()
    backward(net)
    torch.testing.assert_close(snapshot(list(net.parameters())).norm, torch.nn.utils.get_total_norm(gradients(net)))
