"""What is done to a sound training to make it faulty, or to make it look faulty: to its network or to its loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from benchmarks.faults.nets import Net, set_gate_bias

ALL = ("rnn_tanh", "rnn_relu", "lstm", "gru")
ELMAN = ("rnn_tanh", "rnn_relu")
UNPACKED = ("fused", "cells", "stacked")


@dataclass(frozen=True, slots=True)
class Loop:
    """How a network is trained.

    Attributes:
        optimizer: `"adam"` or `"sgd"`, the second with momentum 0.9.
        lr: learning rate.
        clip: `max_norm` of all gradients; None for no clipping.
        value: clip by value instead.
        steps: optimizer steps.
        scale: what the loss is multiplied by.
        rescaled: whether lr, clip and epsilon go with the scale, so that the training stays the same.
        window: read in windows of so many steps, the state detached in between.
        padded: so many steps of padding behind, at the end of which the answer is read.
        stateful: every batch goes on from the detached state of the last.
        noise: share of the targets that are drawn at random.
        last_only: only the last of a sequence's answers counts.
        unsafe_loss: from a third of the training on the loss adds the square root of 0, whose gradient is infinite.
        safe_roots: roots are kept away from zero.
    """

    optimizer: str = "adam"
    lr: float = 0.005
    clip: float | None = 1.0
    value: float | None = None
    steps: int = 360
    scale: float = 1.0
    rescaled: bool = False
    window: int | None = None
    padded: int = 0
    stateful: bool = False
    noise: float = 0.0
    last_only: bool = False
    unsafe_loss: bool = False
    safe_roots: bool = False


Harm = Callable[[Net, float], None]
Change = Callable[[Loop, float], Loop]


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: of the intervention.
        code: the finding that must be there.
        causes: the findings that may come first.
        strengths: how strongly, one after the other over the cases.
        families: that it is done to.
        forms: that it is done to.
        harm: to the network before training.
        change: to the loop.
        base: of the loop, for the healthy twin as well.
        last_answer: only where the answer is asked at the end.
        more: configurations beyond the usual number, where few are confirmed.
    """

    name: str
    code: str
    strengths: tuple[float, ...]
    families: tuple[str, ...] = ALL
    forms: tuple[str, ...] = ("fused", "cells", "packed", "bidirectional", "stacked")
    harm: Harm | None = None
    change: Change | None = None
    base: Change | None = None
    causes: tuple[str, ...] = ()
    last_answer: bool = False
    more: int = 0

    @property
    def first(self) -> tuple[str, ...]:
        """Codes of which one must come first."""
        return self.causes or (self.code,)


@torch.no_grad()
def scale_recurrence(net: Net, factor: float) -> None:
    for _, w_hh, _, _ in net.recurrences():
        w_hh.mul_(factor)


@torch.no_grad()
def large_recurrence(net: Net, gain: float) -> None:
    """Random orthogonal times a gain; gates begin with their default biases."""
    for _, w_hh, _, _ in net.recurrences():
        for block in w_hh.split(w_hh.shape[1]):
            torch.nn.init.orthogonal_(block, gain)


@torch.no_grad()
def scale_everything(net: Net, factor: float) -> None:
    for w_ih, w_hh, _, _ in net.recurrences():
        w_ih.mul_(factor)
        w_hh.mul_(factor)


@torch.no_grad()
def sink_biases(net: Net, value: float) -> None:
    for _, _, b_ih, b_hh in net.recurrences():
        b_ih.fill_(value)
        b_hh.zero_()


def gate_bias(gate: str) -> Harm:
    return lambda net, value: set_gate_bias(net, gate, value)


def large_steps(loop: Loop, strength: float) -> Loop:
    """Plain gradient descent at a learning rate that needs its clipping."""
    return replace(loop, optimizer="sgd", lr=strength, clip=0.1)


def small_steps(loop: Loop, strength: float) -> Loop:
    return replace(loop, optimizer="sgd", lr=SGD_LR, clip=1.0)


SGD_LR = 0.03
LARGE = ("saturated_gate", "exploding_gradient")  # weights so large do both
FAULTS = (
    Fault("small recurrence", "vanishing_gradient", (0.02, 0.1), ELMAN, harm=scale_recurrence),
    Fault(
        "answer read from padding",
        "misread_output",
        (40, 60),
        ("rnn_tanh", "lstm"),
        ("fused", "cells", "stacked"),
        change=lambda loop, steps: replace(loop, padded=int(steps)),
        last_answer=True,
    ),
    Fault("large recurrence", "exploding_gradient", (4, 8), ("rnn_tanh",), harm=large_recurrence),
    Fault("large recurrence, ReLU", "exploding_gradient", (2.2, 3), ("rnn_relu",), harm=large_recurrence),
    Fault(
        "large recurrence, gated",
        "exploding_gradient",
        (8, 14),
        ("lstm", "gru"),
        harm=large_recurrence,
        causes=LARGE,
    ),
    Fault("forget gate shut", "saturated_gate", (-8, -12), ("lstm",), harm=gate_bias("forget")),
    Fault("input gate shut", "saturated_gate", (-20, -30), ("lstm",), harm=gate_bias("input")),
    Fault("output gate shut", "saturated_gate", (-14, -20), ("lstm",), harm=gate_bias("output")),
    Fault("update gate never keeps", "saturated_gate", (-8, -12), ("gru",), harm=gate_bias("update")),
    Fault("update gate always keeps", "saturated_gate", (18, 24), ("gru",), harm=gate_bias("update")),
    Fault(
        "weights saturate the gates",
        "saturated_gate",
        (40, 80),
        ("lstm", "gru", "rnn_tanh"),
        harm=scale_everything,
        causes=LARGE,
    ),
    Fault("biases saturate the state", "saturated_gate", (4, 7), ("rnn_tanh",), harm=sink_biases),
    Fault("dead ReLU", "dead_units", (-3, -6), ("rnn_relu",), harm=sink_biases),
    Fault(
        "clipped far too tightly",
        "excessive_clipping",
        (1e-4, 1e-3),
        ("rnn_tanh", "rnn_relu", "lstm"),
        base=small_steps,
        change=lambda loop, norm: replace(loop, clip=norm),
    ),
    Fault(
        "clipped below Adam's epsilon",
        "excessive_clipping",
        (1e-10, 1e-9),
        change=lambda loop, norm: replace(loop, clip=norm),
    ),
    Fault(
        "value clipped far too tightly",
        "excessive_clipping",
        (1e-6, 1e-5),
        ("rnn_tanh", "rnn_relu", "lstm"),
        base=small_steps,
        change=lambda loop, value: replace(loop, clip=None, value=value),
    ),
    Fault(
        "no clipping where it is needed",
        "missing_clipping",
        (0.1, 0.2),
        ("rnn_tanh", "lstm"),
        base=large_steps,
        change=lambda loop, _: replace(loop, clip=None),
        causes=("missing_clipping", "exploding_gradient"),
    ),
    Fault(
        "states overflow",
        "nonfinite_gradient",
        (20, 60),
        ("rnn_relu",),
        harm=large_recurrence,
        change=lambda loop, _: replace(loop, clip=None),
        causes=("exploding_gradient", "nonfinite_gradient"),
    ),
    Fault(
        "loss without a finite gradient",
        "nonfinite_gradient",
        (1.0,),
        change=lambda loop, _: replace(loop, unsafe_loss=True),
    ),
    Fault(
        "state detached by mistake",
        "detached_state",
        (1, 2),
        forms=UNPACKED,
        base=lambda loop, _: replace(loop, last_only=True),  # what is asked all along is learnt without the way back
        more=4,
        change=lambda loop, window: replace(loop, window=int(window)),
    ),
)


@dataclass(frozen=True, slots=True)
class Control:
    """A sound training that simple thresholds take for a faulty one."""

    name: str
    families: tuple[str, ...] = ALL
    harm: Callable[[Net], None] | None = None
    change: Callable[[Loop], Loop] | None = None
    default_init: bool = False
    forms: tuple[str, ...] = ("fused", "stacked")
    tasks: tuple[tuple[str, str], ...] = ()  # instead of those of its part
    more: int = 0


def chrono(net: Net) -> None:
    """Memories from one to about thirty steps, spread over the units."""
    set_gate_bias(net, "forget", 0)
    with torch.no_grad():
        for _, _, b_ih, _ in net.recurrences():
            u = torch.empty_like(net.gate(b_ih, "forget")).uniform_(1, 30).log()
            net.gate(b_ih, "forget").copy_(u)
            net.gate(b_ih, "input").copy_(-u)


CONTROLS = (
    Control("open forget gate", ("lstm",), lambda net: set_gate_bias(net, "forget", 5)),
    Control("wide-open forget gate", ("lstm",), lambda net: set_gate_bias(net, "forget", 8)),
    Control("chrono", ("lstm",), chrono),
    Control("slow update gate", ("gru",), lambda net: set_gate_bias(net, "update", 4)),
    Control("growing gradients", ("rnn_tanh",), lambda net: large_recurrence(net, 1.15)),
    Control("growing gradients, ReLU", ("rnn_relu",), lambda net: scale_recurrence(net, 1.05)),
    Control("last answer only", change=lambda loop: replace(loop, last_only=True)),
    Control("tiny loss", change=lambda loop: replace(loop, scale=1e-4)),
    Control("huge loss, clipped", change=lambda loop: replace(loop, scale=1e4)),
    Control("huge loss, not clipped", change=lambda loop: replace(loop, scale=1e4, clip=None)),
    Control("tight clipping under Adam", change=lambda loop: replace(loop, clip=0.01)),
    Control("no clipping, none needed", change=lambda loop: replace(loop, clip=None)),
    Control("torch's own start", default_init=True),
    Control("noisy targets", change=lambda loop: replace(loop, noise=0.15)),
    Control(
        "most of the loss stays",
        default_init=True,
        tasks=(("tuning", "language"), ("held-out", "dialect")),
        more=6,
    ),
    Control("state carried from batch to batch", change=lambda loop: replace(loop, stateful=True), forms=("fused",)),
)
