"""Stacks cells into a network with the calling convention of `nn.RNN`, `nn.LSTM` and `nn.GRU`."""

from __future__ import annotations

import inspect
import operator
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import override

from gradscope.cells.layout import Layout, each, opened
from gradscope.cells.skip import skips
from gradscope.cells.unroll import unroll
from gradscope.errors import GradscopeError

OURS = re.compile(r"cells\.(\d+)\.(.+)")
TORCHS = re.compile(r"(.+)_l(\d+)(_reverse)?")


class Recurrent(nn.Module):
    """A recurrent network of any cell, with the calling convention of torch.nn.

    With `RNNCell`, `LSTMCell` or `GRUCell` it is the twin of `nn.RNN`, `nn.LSTM` or `nn.GRU`: the same seed gives the
    same parameters, the same parameters give the same numbers, and each loads the other's `state_dict`. It calls its
    cells once per timestep, as `self.cells[k](x_t, state)`, k = layer * directions + direction, and so is slower.

    Dropout is variational (Gal & Ghahramani 2016), unlike torch's: one mask per sequence and call, the same at every
    timestep, scaled by 1 / (1 - p), in training mode only.

    Args:
        cell: class of the cells, or any function that makes one from (input size, hidden size).
        input_size: D.
        hidden_size: H.
        num_layers: cells on top of each other.
        batch_first: True for batches [B, T, .] instead of [T, B, .].
        bidirectional: True for a second cell in every layer, from the end to the beginning; the layer concatenates both
            outputs.
        dropout: probability between the layers.
        recurrent_dropout: probability on h_{t-1} where it enters U.
        skip: around every layer whose input has the size of its output, `"residual"`: y = x + H(x), or `"highway"`:
            y = H(x) T(x) + x (1 - T(x)). It changes outputs, and not the states in time.
        options: further arguments of every cell, such as `bias`, `nonlinearity`, `reset`, `device`, `dtype`.

    Raises:
        GradscopeError: an argument is unusable, or unusable with this cell.

    >>> from gradscope.cells import GRUCell
    >>> rnn = Recurrent(GRUCell, 3, 4, num_layers=2, bidirectional=True, reset="before")
    >>> output, h_n = rnn(torch.ones(7, 5, 3))
    >>> output.shape, h_n.shape
    (torch.Size([7, 5, 8]), torch.Size([4, 5, 4]))
    """

    def __init__(
        self,
        cell: Callable[..., nn.Module],
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        bidirectional: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        skip: str | None = None,
        **options: Any,
    ) -> None:
        _check(num_layers, dropout, recurrent_dropout)
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.bidirectional = batch_first, bidirectional
        self.dropout, self.recurrent_dropout, self.skip = dropout, recurrent_dropout, skip
        width = hidden_size * self.directions
        sizes = [input_size] + [width] * (num_layers - 1)
        made = (cell(size, hidden_size, **options) for size in sizes for _ in range(self.directions))
        self.cells = nn.ModuleList(made)
        _check_cell(self.cells[0], recurrent_dropout)
        like = next(self.cells.parameters(), torch.empty(0))
        self.skips = skips(skip, sizes, width).to(like)
        self.register_state_dict_post_hook(renamed_on_save)
        self.register_load_state_dict_pre_hook(renamed_on_load)

    @property
    def directions(self) -> int:
        """1 or 2."""
        return 2 if self.bidirectional else 1

    @override
    def forward(self, x: Tensor | PackedSequence, hx: Any = None) -> tuple[Tensor | PackedSequence, Any]:
        """Run over whole sequences; S = layers * directions, in the order of torch.nn.

        Args:
            x: [T, B, D], [B, T, D] if `batch_first`, [T, D], or packed, sorted or not.
            hx: initial states, [S, B, H] ([S, H] without a batch), or a tuple of such tensors; zeros if absent.

        Returns:
            The outputs in the form of `x`, and the last states in the form of `hx`: h_n, or (h_n, c_n).

        Raises:
            GradscopeError: the shapes do not fit.
        """
        sequence, layout = opened(x, self.batch_first)
        if sequence.shape[-1] != self.input_size:
            got = f"an input of {sequence.shape[-1]} features"
            raise GradscopeError(f"Recurrent has input_size={self.input_size}, and got {got}")
        starts = self._starts(sequence[0], layout, hx)
        running = layout.running(sequence.device)
        finals: list[Any] = []
        for layer, skip in enumerate(self.skips):
            outputs: list[Tensor] = []
            for slot in range(layer * self.directions, (layer + 1) * self.directions):
                mask = self._mask(self.recurrent_dropout, sequence, self.hidden_size)
                cell, reverse = self.cells[slot], slot % self.directions == 1
                output, final = unroll(cell, sequence, starts[slot], running=running, reverse=reverse, mask=mask)
                outputs.append(output)
                finals.append(final)
            sequence = skip(sequence, torch.cat(outputs, -1))
            if layer < self.num_layers - 1:
                mask = self._mask(self.dropout, sequence, sequence.shape[-1])
                sequence = sequence if mask is None else sequence * mask
        return layout.restore_output(sequence), layout.restore_state(stacked(finals))

    def _starts(self, x: Tensor, layout: Layout, hx: Any) -> list[Any]:
        """The initial state of every cell: from `hx`, or zeros for an input [B, D]."""
        zeros = [zero_state(cell, x) for cell in self.cells]
        if hx is None:
            return zeros
        expected, got = described(layout.restore_state(stacked(zeros))), described(hx)
        if got != expected:
            raise GradscopeError(f"Recurrent: hx has to be {expected}, and is {got}")
        states = layout.sort_state(hx)
        return [each(states, operator.itemgetter(slot)) for slot in range(len(self.cells))]

    def _mask(self, p: float, like: Tensor, size: int) -> Tensor | None:
        """A dropout mask by sequence and unit, [B, size]: 0 with probability p, else 1 / (1 - p); None if p is 0."""
        return F.dropout(like.new_ones(like.shape[1], size), p) if self.training and p else None

    @override
    def extra_repr(self) -> str:
        """The arguments that differ from the defaults, for `repr`."""
        shown = ("num_layers", "batch_first", "bidirectional", "dropout", "recurrent_dropout", "skip")
        values = ((name, getattr(self, name)) for name in shown)
        changed = [f"{name}={value!r}" for name, value in values if value and (name, value) != ("num_layers", 1)]
        return ", ".join([str(self.input_size), str(self.hidden_size), *changed])


def zero_state(cell: Any, x: Tensor) -> Any:
    """The zero state of a cell for an input [B, D]."""
    if not isinstance(cell, nn.RNNCellBase):
        return cell.initial_state(x)
    zeros = x.new_zeros(2, len(x), cell.hidden_size)
    return (zeros[0], zeros[1]) if isinstance(cell, nn.LSTMCell) else zeros[0]


def stacked(states: list[Any]) -> Any:
    """Stack the states of several cells: [S, B, H], or a tuple."""
    if isinstance(states[0], Tensor):
        return torch.stack(states)
    return tuple(torch.stack(parts) for parts in zip(*states, strict=True))


def described(state: Any) -> str:
    """The form and the shapes of a state."""
    if isinstance(state, Tensor):
        return f"a tensor {list(state.shape)}"
    if isinstance(state, (tuple, list)):
        return f"({', '.join(described(s) for s in state)})"
    return f"a {type(state).__name__}"


def _check(num_layers: int, dropout: float, recurrent_dropout: float) -> None:
    if num_layers < 1:
        raise GradscopeError(f"Recurrent: num_layers={num_layers}; it has to be at least 1")
    for name, p in (("dropout", dropout), ("recurrent_dropout", recurrent_dropout)):
        if not 0 <= p <= 1:
            raise GradscopeError(f"Recurrent: {name}={p}; it is a probability, between 0 and 1")
    if dropout and num_layers == 1:
        message = "Recurrent: dropout acts between layers, and there is only one; recurrent_dropout acts within it"
        warnings.warn(message, stacklevel=3)


def _check_cell(cell: nn.Module, recurrent_dropout: float) -> None:
    name = type(cell).__name__
    if not isinstance(cell, nn.RNNCellBase) and not hasattr(cell, "initial_state"):
        raise GradscopeError(
            f"Recurrent: {name} has no initial state: give it a method initial_state(x) "
            "that returns zeros for an input [B, D], or derive it from gradscope.cells.Cell"
        )
    if recurrent_dropout and "mask" not in inspect.signature(cell.forward).parameters:
        raise GradscopeError(
            f"Recurrent: recurrent_dropout needs a cell with forward(x, state, mask), and {name} takes no mask: "
            "use one of gradscope.cells, or set recurrent_dropout=0"
        )


def to_torch(name: str, directions: int) -> str:
    """The name under which torch.nn saves a parameter of our cells; any other name unchanged."""
    match = OURS.fullmatch(name)
    if not match:
        return name
    layer, reverse = divmod(int(match[1]), directions)
    return f"{match[2]}_l{layer}" + "_reverse" * reverse


def from_torch(name: str, directions: int, layers: int) -> str:
    """The inverse of `to_torch`; the name of a missing layer or direction stays as it is, and torch reports it."""
    match = TORCHS.fullmatch(name)
    if not match or int(match[2]) >= layers or (match[3] and directions == 1):
        return name
    return f"cells.{int(match[2]) * directions + bool(match[3])}.{match[1]}"


def renamed_on_save(module: Any, state_dict: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Rename parameters; a hook after `state_dict`."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[prefix + to_torch(key[len(prefix) :], module.directions)] = state_dict.pop(key)


def renamed_on_load(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename parameters; a hook before `load_state_dict`."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[prefix + from_torch(key[len(prefix) :], module.directions, module.num_layers)] = state_dict.pop(key)
