"""Initialisers of recurrent weights and gate biases, for torch's recurrent modules and for ours.

They work in place, and return their argument.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from gradscope.cells.base import Cell
from gradscope.cells.gru import GRUCell
from gradscope.cells.lstm import LSTMCell
from gradscope.cells.recurrent import Recurrent
from gradscope.cells.rnn import RNNCell
from gradscope.errors import GradscopeError

TORCHS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.RNN: RNNCell.blocks,
    nn.LSTM: LSTMCell.blocks,
    nn.GRU: GRUCell.blocks,
    nn.RNNCell: RNNCell.blocks,
    nn.LSTMCell: LSTMCell.blocks,
    nn.GRUCell: GRUCell.blocks,
}


class Recurrence(NamedTuple):
    """The recurrent parameters of one layer in one direction.

    Attributes:
        gates: names of the gates, in the order of their blocks of rows.
        weight_hh: U, [G * H, H].
        biases: `bias_ih` and `bias_hh`, [G * H] each, or nothing.
    """

    gates: tuple[str, ...]
    weight_hh: Tensor
    biases: tuple[Tensor, ...]


def recurrences(module: nn.Module, caller: str) -> list[Recurrence]:
    """The recurrent parameters of all layers and directions of a module.

    Args:
        module: one of torch's recurrent modules or of ours.
        caller: name of the calling function, for the error.

    Raises:
        GradscopeError: it is none of these, or its weights are not parameters of its own.
    """
    if isinstance(module, Recurrent):
        return [recurrence for cell in module.cells for recurrence in recurrences(cell, caller)]
    of_torch = next((gates for kind, gates in TORCHS.items() if isinstance(module, kind)), None)
    gates = module.blocks if isinstance(module, Cell) else of_torch
    if gates is None:
        raise GradscopeError(
            f"{caller} takes nn.RNN, nn.LSTM, nn.GRU, one of their cells, or a network of gradscope.cells, and got "
            f"{type(module).__name__}: pass the recurrent layer inside it"
        )
    own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    return [_recurrence(own, suffix, gates, module, caller) for suffix in suffixes(module)]


def suffixes(module: nn.Module) -> Iterator[str]:
    """The suffixes of `weight_hh` in the names of the parameters."""
    if not isinstance(module, nn.RNNBase):
        yield ""
        return
    for layer in range(module.num_layers):
        yield f"_l{layer}"
        if module.bidirectional:
            yield f"_l{layer}_reverse"


def _recurrence(
    own: dict[str, nn.Parameter], suffix: str, gates: tuple[str, ...], module: nn.Module, caller: str
) -> Recurrence:
    names = ["weight_hh" + suffix]
    if module.bias:
        names += ["bias_ih" + suffix, "bias_hh" + suffix]
    missing = [name for name in names if name not in own]
    if missing:
        raise GradscopeError(
            f"{caller}: {', '.join(missing)} of {type(module).__name__} is computed from other parameters "
            "(a parametrization, or weights dropped in training): initialise the module before setting it up"
        )
    weight_hh, *biases = (own[name] for name in names)
    return Recurrence(gates, weight_hh, tuple(biases))


Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def orthogonal_(rnn: Module) -> Module:
    """Make every gate's block of `weight_hh` a random orthogonal matrix: all its singular values are 1.

    A linear network then carries gradients back with their norm unchanged (Saxe et al. 2014; Arjovsky et al. 2016).

    Args:
        rnn: `nn.RNN`, `nn.LSTM`, `nn.GRU`, one of their cells, a `Cell` or a `Recurrent`: all layers and directions.

    Raises:
        GradscopeError: it is none of these, or its weights are computed from others.

    >>> cell = orthogonal_(nn.RNNCell(3, 4))
    >>> torch.dist(cell.weight_hh @ cell.weight_hh.T, torch.eye(4)).item() < 1e-5
    True
    """
    for recurrence in recurrences(rnn, "orthogonal_"):
        for block in recurrence.weight_hh.chunk(len(recurrence.gates)):
            exact = torch.promote_types(block.dtype, torch.float32)  # there is no QR in half precision
            block.copy_(nn.init.orthogonal_(torch.empty_like(block, dtype=exact)))
    return rnn


@torch.no_grad()
def identity_(rnn: Module, scale: float = 1.0) -> Module:
    """Start a simple RNN from `weight_hh` = scale * I and biases 0, the IRNN of Le, Jaitly & Hinton (2015).

    Meant for ReLU: without input, the network then carries on the state and the gradient unchanged.

    Args:
        rnn: `nn.RNN`, `nn.RNNCell`, `LinearCell`, `RNNCell`, `LayerNormRNNCell`, or a `Recurrent` of these.
        scale: below 1, gradients decay as scale^k over k steps.

    Raises:
        GradscopeError: it is none of these, or its weights are computed from others.

    >>> identity_(nn.RNNCell(3, 2, nonlinearity="relu"), scale=0.5).weight_hh.tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    layers = recurrences(rnn, "identity_")
    if any(recurrence.gates != ("hidden",) for recurrence in layers):
        raise GradscopeError(
            f"identity_ is for RNNs without gates, and {type(rnn).__name__} has gates: "
            "use orthogonal_ for its weights, or chrono_ (for an LSTM also forget_bias_) for its biases"
        )
    for recurrence in layers:
        nn.init.eye_(recurrence.weight_hh).mul_(scale)
        for bias in recurrence.biases:
            bias.zero_()
    return rnn


@torch.no_grad()
def forget_bias_(lstm: Module, value: float = 1.0) -> Module:
    """Start the forget gate of an LSTM open, at sigmoid(1) = 0.73 rather than 0.5 (Jozefowicz et al. 2015).

    Torch's LSTM adds two biases, so that setting both to `value` gives twice that. Here `value` is their sum.

    Args:
        lstm: `nn.LSTM`, `nn.LSTMCell`, `LSTMCell`, `LayerNormLSTMCell` or a `Recurrent` of these: all layers and
            directions.
        value: sum of `bias_ih` and `bias_hh` of the forget gate.

    Raises:
        GradscopeError: it has no forget gate or no biases, or these are computed from others.

    >>> cell = forget_bias_(nn.LSTMCell(3, 2))
    >>> (cell.bias_ih + cell.bias_hh)[2:4].tolist()
    [1.0, 1.0]
    """
    layers = recurrences(lstm, "forget_bias_")
    if any("forget" not in recurrence.gates for recurrence in layers):
        raise GradscopeError(
            f"forget_bias_ is for LSTMs, and {type(lstm).__name__} has no forget gate: "
            "for a GRU use chrono_, for an RNN orthogonal_ or identity_"
        )
    _require_biases(layers, lstm, "forget_bias_")
    for recurrence in layers:
        set_bias(recurrence, "forget", torch.full_like(bias_block(recurrence, 0, "forget"), value))
    return lstm


@torch.no_grad()
def chrono_(rnn: Module, t_max: float) -> Module:
    """Start gates with memories of 1 to `t_max` steps, spread over the units (Tallec & Ollivier 2018).

    With u drawn from the uniform distribution on [1, t_max - 1], the sums of `bias_ih` and `bias_hh` become

        LSTM: b_f = log u, b_i = -log u;    GRU: b_z = log u, where z = 1 keeps the state, as in torch

    Args:
        rnn: `nn.LSTM`, `nn.GRU`, one of their cells, their counterparts here, or a `Recurrent` of these: all layers and
            directions.
        t_max: longest range of the dependencies to be learnt, in timesteps; at least 2.

    Raises:
        GradscopeError: it has no such gates or no biases, or these are computed from others; `t_max` is below 2.

    >>> cell = chrono_(nn.GRUCell(3, 2), t_max=2)
    >>> (cell.bias_ih + cell.bias_hh)[2:4].tolist()
    [0.0, 0.0]
    """
    if not t_max >= 2:
        raise GradscopeError(f"chrono_: t_max={t_max}; it is a number of timesteps, at least 2")
    layers = recurrences(rnn, "chrono_")
    if not all({"forget", "input"} <= {*recurrence.gates} or "update" in recurrence.gates for recurrence in layers):
        raise GradscopeError(
            f"chrono_ is for LSTMs and GRUs, and {type(rnn).__name__} has no gate that keeps its state: "
            "for an RNN use orthogonal_ or identity_"
        )
    _require_biases(layers, rnn, "chrono_")
    for recurrence in layers:
        keep = "forget" if "forget" in recurrence.gates else "update"
        log_u = torch.empty_like(bias_block(recurrence, 0, keep)).uniform_(1, t_max - 1).log_()
        set_bias(recurrence, keep, log_u)
        if keep == "forget":
            set_bias(recurrence, "input", -log_u)
    return rnn


def bias_block(recurrence: Recurrence, which: int, gate: str) -> Tensor:
    """One gate's part of one of the biases, [H]."""
    return recurrence.biases[which].chunk(len(recurrence.gates))[recurrence.gates.index(gate)]


def set_bias(recurrence: Recurrence, gate: str, total: Tensor) -> None:
    """Make the biases of one gate sum to a total: all of it in `bias_ih`, or half in each if they are one parameter."""
    tied = recurrence.biases[0] is recurrence.biases[1]
    bias_block(recurrence, 1, gate).zero_()
    bias_block(recurrence, 0, gate).copy_(total / 2 if tied else total)


def _require_biases(layers: list[Recurrence], module: nn.Module, caller: str) -> None:
    if not all(recurrence.biases for recurrence in layers):
        raise GradscopeError(f"{caller} sets biases, and {type(module).__name__} has none: build it with bias=True")
