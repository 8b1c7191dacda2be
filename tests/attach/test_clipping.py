"""Every call of torch's clipping functions is one event, and does what it always did."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from attach.trainings import Ear, backward, gradients, model, observed
from torch import Tensor, nn
from torch.nn.utils import clip_grad, clip_grad_norm_, clip_grad_value_, get_total_norm
from torch.nn.utils import clip_grad_norm_ as imported_long_before
from torch.nn.utils.clip_grad import _clip_grads_with_norm_
from torch.optim import SGD

from gradscope.attach.clipping import CLIPPING, Clip

clip_grads_with_norm_ = nn.utils.clip_grads_with_norm_
FOREACH = (None, True, False)


def clips(call: Callable[[nn.Module], Any], wants: bool = True) -> list[Clip]:
    """What is heard of `call(network)` between backward and step, three times."""

    def train(network: nn.Module) -> None:
        optimizer = SGD(network.parameters(), 0.1)
        for _ in range(3):
            backward(network)
            call(network)
            optimizer.step()

    heard = observed(train, wants).clips
    assert len(heard) in (0, 3)
    return heard


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
@pytest.mark.parametrize("threshold", [1e-3, 1e3])
def test_clip_grad_norm(threshold: float, norm_type: float, foreach: bool | None) -> None:
    truth: list[tuple[Tensor, Tensor]] = []

    def call(network: nn.Module) -> None:
        before = clip_grad_norm_(network.parameters(), threshold, norm_type, foreach=foreach)
        truth.append((before, get_total_norm(gradients(network), norm_type)))

    for clip, (before, after) in zip(clips(call), truth[3:], strict=True):
        assert (clip.how, clip.kind, clip.threshold, clip.norm_type) == (
            "clip_grad_norm_",
            "norm",
            threshold,
            norm_type,
        )
        assert clip.norm_before == float(before)
        assert clip.norm_after == pytest.approx(float(after))
        assert bool(clip.clipped) == (threshold < before) and not clip.nonfinite and len(clip.parameters) == 6


def test_the_coefficient_is_the_one_torch_used() -> None:
    parameter = nn.Parameter(torch.ones(1))
    parameter.grad, ear = torch.tensor([3.7]), Ear()
    handle = CLIPPING.listen(ear)
    clip_grad_norm_(parameter, 0.123)
    handle.remove()
    assert torch.equal(parameter.grad, torch.tensor([3.7]) * ear.clips[0].coefficient)
    assert ear.clips[0].factor == ear.clips[0].coefficient


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("threshold", [1e-3, 1e3])
def test_clip_grad_value(threshold: float, foreach: bool | None) -> None:
    truth: list[Tensor] = []

    def call(network: nn.Module) -> None:
        truth.append(get_total_norm(gradients(network)))
        clip_grad_value_(network.parameters(), threshold, foreach=foreach)
        truth.append(get_total_norm(gradients(network)))

    heard = clips(call)
    for index, clip in enumerate(heard):
        before, after = truth[6 + 2 * index : 8 + 2 * index]
        assert (clip.how, clip.kind, clip.threshold, clip.norm_type) == ("clip_grad_value_", "value", threshold, 2.0)
        assert (clip.norm_before, clip.norm_after) == pytest.approx((float(before), float(after)))
        assert clip.coefficient == pytest.approx(float(after / before))
        assert bool(clip.clipped) == (threshold < 1) and not clip.nonfinite


@pytest.mark.parametrize(
    "function",
    [
        imported_long_before,
        lambda *args: nn.utils.clip_grad_norm_(*args),
        lambda *args: nn.utils.clip_grad.clip_grad_norm_(*args),
        lambda parameters, norm: clip_grad_norm_(parameters=parameters, max_norm=norm),
        lambda parameters, norm: clip_grad_norm_(max_norm=norm, parameters=list(parameters)),
        lambda parameters, norm: clip_grad_norm_(parameters, norm, 2, False, None),
        pytest.param(clip_grad.clip_grad_norm, marks=pytest.mark.filterwarnings("ignore::FutureWarning")),
    ],
)
def test_however_it_is_called(function: Callable[..., Any]) -> None:
    assert [clip.how for clip in clips(lambda net: function(net.parameters(), 1e-3))] == ["clip_grad_norm_"] * 3


@pytest.mark.parametrize("function", [clip_grads_with_norm_, _clip_grads_with_norm_])
def test_clipping_with_a_norm_that_the_caller_measured(function: Callable[..., Any]) -> None:
    def call(network: nn.Module) -> None:
        norm = get_total_norm(gradients(network), math.inf)
        function(network.parameters(), 1e-3, norm)
        norm.zero_()

    for clip in clips(call):
        assert (clip.how, clip.kind) == ("clip_grads_with_norm_", "norm") and math.isnan(clip.norm_type)
        assert clip.clipped and clip.norm_before > 0


@pytest.mark.parametrize("parameters", [list, tuple, iter, set, lambda some: (p for p in some), nn.ParameterList])
def test_whatever_holds_the_parameters(parameters: Callable[[Any], Any]) -> None:
    def call(network: nn.Module) -> None:
        clip_grad_norm_(parameters(list(network.parameters())), 1e-3)
        clip_grad_value_(parameters(list(network.parameters())), 1e-4)

    ear = observed(lambda network: (backward(network), call(network)))
    assert [(clip.how, len(clip.parameters)) for clip in ear.clips] == [("clip_grad_norm_", 6), ("clip_grad_value_", 6)]


def test_a_single_tensor_and_groups_one_by_one() -> None:
    def train(network: Any) -> None:
        backward(network)
        clip_grad_norm_(network[2].weight, 1e-3)
        for layer in network[0], network[2]:
            clip_grad_norm_(layer.parameters(), 1e-4)

    assert [len(clip.parameters) for clip in observed(train).clips] == [1, 4, 2]


def test_a_tensor_as_threshold() -> None:
    threshold = torch.tensor(1e-3)
    for clip in clips(lambda network: clip_grad_norm_(network.parameters(), threshold)):
        assert clip.threshold == float(threshold)


def test_the_returned_norm_belongs_to_the_user() -> None:
    for clip in clips(lambda network: clip_grad_norm_(network.parameters(), 1e-3).fill_(7.0)):
        assert clip.norm_before != 7


def test_nothing_to_clip() -> None:
    def train(network: nn.Module) -> None:
        clip_grad_norm_([], 1.0)
        clip_grad_norm_(network.parameters(), 1.0)  # no gradients yet
        with pytest.raises(RuntimeError):  # torch's own
            clip_grad_value_(network.parameters(), 1.0)

    ear = observed(train)
    assert ear.heard == ["clip_grad_norm_"] * 2
    for clip in ear.clips:
        assert clip.norm_before == 0 and clip.norm_after == 0 and clip.coefficient == 1
        assert not clip.clipped and not clip.nonfinite


def test_gradients_of_zero_are_not_clipped() -> None:
    def train(network: nn.Module) -> None:
        backward(network)
        network.zero_grad(set_to_none=False)
        clip_grad_value_(network.parameters(), 1.0)

    (clip,) = observed(train).clips
    assert clip.coefficient == 1 and not clip.clipped


def test_the_warning_of_an_empty_generator_stays() -> None:
    def warned() -> list[str]:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            clip_grad_norm_((p for p in ()), 1.0)
        return [str(each.message) for each in said]  # torch 2.6 has none

    expected = warned()

    def train(network: nn.Module) -> None:
        assert warned() == expected

    assert observed(train).heard == ["clip_grad_norm_"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_gradients(bad: float) -> None:
    def train(network: Any) -> None:
        backward(network)
        network[2].bias.grad[0] = bad
        clip_grad_norm_(network.parameters(), 1.0)

    (clip,) = observed(train).clips
    assert clip.nonfinite and not math.isfinite(clip.norm_after)


def test_error_if_nonfinite_is_reported_and_raised() -> None:
    def train(network: Any) -> None:
        backward(network)
        network[2].bias.grad[0] = math.inf
        with pytest.raises(RuntimeError, match="non-finite"):
            clip_grad_norm_(network.parameters(), 1.0, error_if_nonfinite=True)
        clip_grad_norm_(network[0].parameters(), 1.0, error_if_nonfinite=True)

    refused, ordinary = observed(train).clips
    assert refused.nonfinite and refused.refused and not refused.clipped
    assert refused.coefficient == 1 and refused.norm_after == math.inf
    assert not ordinary.nonfinite and not ordinary.refused


def test_wrong_calls_raise_what_they_raised_and_are_no_events() -> None:
    def train(network: nn.Module) -> None:
        backward(network)
        for call in (
            lambda: clip_grad_norm_(),
            lambda: clip_grad_norm_(network.parameters()),
            lambda: clip_grad_norm_(3, 1.0),
            lambda: clip_grad_norm_(network.parameters(), 1.0, mistaken=True),
            lambda: clip_grad_value_(network.parameters()),
        ):
            with pytest.raises(TypeError):
                call()
        clip_grad_value_(network.parameters(), 1.0)

    assert observed(train).heard == ["clip_grad_value_"]


def test_what_nobody_wants_is_not_reported() -> None:
    assert clips(lambda network: clip_grad_norm_(network.parameters(), 1e-3), wants=False) == []
    assert clips(lambda network: clip_grad_value_(network.parameters(), 1e-3), wants=False) == []


def test_listeners_are_asked_while_gradients_are_as_they_were() -> None:
    parameter = nn.Parameter(torch.ones(1))
    parameter.grad = torch.tensor([5.0])
    seen: list[Tensor] = []

    class Look(Ear):
        def wants_clip(self, parameters: Sequence[Tensor]) -> bool:
            seen.extend(p.grad.clone() for p in parameters if p.grad is not None)
            return True

    handle = CLIPPING.listen(Look())
    clip_grad_value_([parameter], 1.0)
    handle.remove()
    assert torch.equal(torch.cat(seen), torch.tensor([5.0])) and parameter.grad == 1


def test_sixteen_bit_gradients_do_not_overflow() -> None:
    parameter = nn.Parameter(torch.ones(100, dtype=torch.float16))
    parameter.grad, ear = torch.full((100,), 3e4, dtype=torch.float16), Ear()
    handle = CLIPPING.listen(ear)
    clip_grad_value_([parameter], 1.0)
    handle.remove()
    assert ear.clips[0].norm_before == pytest.approx(3e5, rel=1e-3) and ear.clips[0].clipped


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_code_is_not_disturbed() -> None:
    def train(network: Any) -> None:
        torch._dynamo.reset()
        backward(network)
        weight = network[2].weight
        compiled = torch.compile(lambda: clip_grad_norm_(weight, 1e-3), backend="eager", fullgraph=True)
        compiled()

    try:
        train(model())
    except torch._dynamo.exc.Unsupported:
        pytest.skip("this torch does not compile clipping into one graph")
    assert observed(train).heard == []


def test_leaving_between_question_and_answer() -> None:
    ear = Ear()
    handle = CLIPPING.listen(ear)

    class Evict(Ear):
        def wants_clip(self, parameters: Sequence[Tensor]) -> bool:
            handle.remove()
            return False

    other = CLIPPING.listen(Evict())
    clip_grad_norm_([nn.Parameter(torch.ones(1))], 1.0)
    other.remove()
    assert ear.heard == []


def test_a_function_that_somebody_replaced_is_left_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(parameters: Any, limit: float) -> None:
        clip_grads_with_norm_(parameters, limit, torch.tensor(1.0))

    monkeypatch.setattr(clip_grad, "clip_grad_norm_", theirs)
    heard = observed(
        lambda network: (backward(network), clip_grad.clip_grad_norm_(list(network.parameters()), 0.1))
    ).heard
    assert heard == ["clip_grads_with_norm_"] and clip_grad.clip_grad_norm_ is theirs


def test_no_warning_is_added() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        observed(lambda network: (backward(network), clip_grad_norm_(network.parameters(), 1.0)))
    assert not caught
