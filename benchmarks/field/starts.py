"""How recurrent weights begin: as the literature advises, or as it happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.field import cells
from benchmarks.field.setup import Setup

GATES = {
    "lstm": ("input", "forget", "candidate", "output"),
    "gru": ("reset", "update", "candidate"),
    "rnn": ("hidden",),
}


@dataclass(frozen=True, slots=True)
class Recurrence:
    """The weights of one layer and direction: of the input, of the state, and the biases that there are."""

    family: str
    w_ih: Tensor
    w_hh: Tensor
    biases: tuple[Tensor, ...]

    def gate(self, parameter: Tensor, name: str) -> Tensor:
        """The rows that belong to a gate."""
        gates = GATES[self.family]
        return parameter.chunk(len(gates))[gates.index(name)]

    def set_bias(self, name: str, value: Tensor | float) -> None:
        """Make the biases of a gate sum to a value, where there is such a gate."""
        if name in GATES[self.family]:
            for bias in self.biases:
                self.gate(bias, name).zero_()
            self.gate(self.biases[0], name).add_(value)


def recurrences(model: nn.Module) -> Iterator[Recurrence]:
    """Of every layer and direction."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            yield from _torchs(module)
        elif isinstance(module, cells.Peephole):
            yield Recurrence("lstm", module.x2h.weight, module.h2h.weight, (module.x2h.bias,))
        elif isinstance(module, cells.Elman):
            yield Recurrence("rnn", module.i2h.weight, module.h2h.weight, (module.i2h.bias, module.h2h.bias))


def _torchs(module: nn.Module) -> Iterator[Recurrence]:
    named = dict(module.named_parameters(recurse=False))
    family = next(known for known in ("lstm", "gru", "rnn") if known in type(module).__name__.lower())
    for suffix in [name.removeprefix("weight_hh") for name in named if name.startswith("weight_hh")]:
        w_ih, w_hh, b_ih, b_hh = (named[f"{one}{suffix}"] for one in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        yield Recurrence(family, w_ih, w_hh, (b_ih, b_hh))


def _blocks(one: Recurrence) -> Iterator[Tensor]:
    yield from one.w_hh.chunk(len(GATES[one.family]))


def _chrono(one: Recurrence, share: float, T: int) -> None:
    """Memories of up to `share` of the sequence (Tallec and Ollivier 2018)."""
    units = len(one.w_hh) // len(GATES[one.family])
    memory = torch.empty(units).uniform_(1, max(2.0, share * T)).log()
    if one.family == "lstm":
        one.set_bias("forget", memory)
        one.set_bias("input", -memory)
    else:
        one.set_bias("update", memory)


def _orthogonal(one: Recurrence, gain: float, T: int) -> None:
    for block in _blocks(one):
        nn.init.orthogonal_(block, gain)


def _identity(one: Recurrence, gain: float, T: int) -> None:
    """Le, Jaitly and Hinton 2015."""
    for block in _blocks(one):
        nn.init.eye_(block).mul_(gain)
    for bias in one.biases:
        bias.zero_()


def _normal(one: Recurrence, std: float, T: int) -> None:
    """Every weight from one normal distribution, biases 0: what many a script does to all parameters."""
    for weight in (one.w_ih, one.w_hh):
        weight.normal_(0, std)
    for bias in one.biases:
        bias.zero_()


def _recurrence(one: Recurrence, factor: float, T: int) -> None:
    one.w_hh.mul_(factor)


def _shift(one: Recurrence, value: float, T: int) -> None:
    """Every weight moved by the same amount, as if from a distribution that is not about 0."""
    for weight in (one.w_ih, one.w_hh):
        weight.add_(value)


def _uniform(one: Recurrence, bound: float, T: int) -> None:
    """Every weight and bias between a bound and its negative."""
    for parameter in (one.w_ih, one.w_hh, *one.biases):
        parameter.uniform_(-bound, bound)


def _positive(one: Recurrence, bound: float, T: int) -> None:
    """Every weight from 0 to a bound: `torch.rand` where `torch.randn` or something smaller was meant."""
    for weight in (one.w_ih, one.w_hh):
        weight.uniform_(0, bound)


def _turned(one: Recurrence, share: float, T: int) -> None:
    """The same memories as `_chrono`'s, with the wrong sign."""
    _chrono(one, share, T)
    for name in ("forget", "input", "update"):
        if name in GATES[one.family]:
            for bias in one.biases:
                one.gate(bias, name).neg_()


def _quarter(one: Recurrence, value: float, T: int) -> None:
    """What sets an LSTM's forget gates, whatever network it is."""
    many = len(one.biases[0])
    for bias in one.biases:
        bias[many // 4 : many // 2] = value


def _inputs(one: Recurrence, factor: float, T: int) -> None:
    one.w_ih.mul_(factor)


def _bias(one: Recurrence, value: float, T: int) -> None:
    one.biases[0].fill_(value)


def _gate(name: str) -> Start:
    return lambda one, value, T: one.set_bias(name, value)


Start = Callable[[Recurrence, float, int], None]
STARTS: dict[str, Start] = {
    "chrono": _chrono,
    "orthogonal": _orthogonal,
    "identity": _identity,
    "normal": _normal,
    "recurrence": _recurrence,
    "inputs": _inputs,
    "shift": _shift,
    "uniform": _uniform,
    "bias": _bias,
    "positive": _positive,
    "turned": _turned,
    "quarter": _quarter,
    **{name: _gate(name) for name in ("input", "forget", "output", "reset", "update")},
}


@torch.no_grad()
def start(model: nn.Module, setup: Setup) -> None:
    """Do all that the setup says."""
    for name, value in setup.init:
        for one in recurrences(model):
            STARTS[name](one, value, setup.length)
