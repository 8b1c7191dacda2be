"""Finds U and the biases of a recurrent module, and their blocks by gate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

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
    gates = module.blocks if isinstance(module, Cell) else gates_of(module)
    if gates is None:
        raise GradscopeError(
            f"{caller} takes nn.RNN, nn.LSTM, nn.GRU, one of their cells, or a network of gradscope.cells, and got "
            f"{type(module).__name__}: pass the recurrent layer inside it"
        )
    own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    return [_recurrence(own, suffix, gates, module, caller) for suffix in suffixes(module)]


def gates_of(module: nn.Module) -> tuple[str, ...] | None:
    """The gates of one of torch's recurrent modules."""
    return next((gates for kind, gates in TORCHS.items() if isinstance(module, kind)), None)


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
