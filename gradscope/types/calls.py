"""Calls of torch's layers and cells: from capture to the mathematics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Direction = Literal["forward", "reverse"]


class LayerKey(NamedTuple):
    """The recurrence of a row: the four key columns of the layer tables.

    Attributes:
        module: qualified name of the module; `""` if the model itself is the recurrent layer.
        layer: index in the stack, as in `weight_hh_l{k}`.
        direction: `"forward"` or `"reverse"`.
        chain: 0-based index, within the step, of a series of calls linked by their state.
    """

    module: str
    layer: int
    direction: Direction
    chain: int


def in_words(key: LayerKey) -> str:
    """Name a layer in words: `encoder, layer 1, reverse`."""
    chain = f", chain {key.chain}" if key.chain > 0 else ""
    return f"{key.module or 'the model'}, layer {key.layer}{', reverse' if key.direction == 'reverse' else ''}{chain}"


def in_short(key: LayerKey) -> str:
    """Name a layer in short: `encoder[1] reverse`."""
    chain = f" chain {key.chain}" if key.chain > 0 else ""
    return f"{key.module or 'model'}[{key.layer}]{'' if key.direction == 'forward' else ' reverse'}{chain}"


@dataclass(frozen=True, slots=True)
class KernelCall:
    """Arguments of one call of torch's fused kernel, or of a cell's.

    Attributes:
        family: `"rnn_tanh"`, `"rnn_relu"`, `"lstm"` or `"gru"`.
        input: [T, B, D], [B, T, D] if `batch_first`, packed [N, D], or [B, D] for a cell.
        batch_sizes: sequences still running at each timestep if packed, [T], else None.
        state: `(h_0,)` or `(h_0, c_0)`, [S, B, .] each; for a cell (h,) or (h, c), [B, H].
        weights: the flat list of parameters; its identity identifies the layer.
        has_biases: whether the list contains biases.
        num_layers: layers of the stack.
        dropout: probability between the layers, 0 outside training mode.
        bidirectional: two directions a layer.
        batch_first: layout of `input` and of the output.
        cell: one timestep of one layer, called in the user's own loop.
        masks: if the call runs layer by layer, the drawn dropout factors between the layers, in the layout of the
            output, but time first; else None.
    """

    family: str
    input: Tensor
    batch_sizes: Tensor | None
    state: tuple[Tensor, ...]
    weights: list[Tensor]
    has_biases: bool
    num_layers: int
    dropout: float
    bidirectional: bool
    batch_first: bool
    cell: bool = False
    masks: list[Tensor] | None = None

    @property
    def directions(self) -> int:
        """1 or 2."""
        return 1 + self.bidirectional

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self.state[0].shape[0 if self.cell else 1]


class LinkPart(NamedTuple):
    """Rows of a state that come from one earlier call.

    Attributes:
        call: mark of the earlier call.
        rows: for each row of the state the row of the earlier result, -1 if it has another origin, [B].
        factors: for each part of the state its factor, [B, F] or [B, 1]; None if unchanged.
    """

    call: Any
    rows: Tensor
    factors: tuple[Tensor | None, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """The origin of a state.

    Attributes:
        parts: one for each earlier call; no row is in two of them, unless `mixed`.
        mixed: a row comes from several calls at once, or the loop has mixed its units: the parts are incomplete.
    """

    parts: tuple[LinkPart, ...] = ()
    mixed: bool = False


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of one layer in one direction, in torch's layout (G gates, H hidden, D input, P state `h`).

    Attributes:
        ih: `weight_ih`, [G*H, D].
        hh: `weight_hh`, [G*H, P].
        b_ih: `bias_ih`, [G*H], or None.
        b_hh: `bias_hh`, [G*H], or None.
        hr: `weight_hr`, [P, H], if an LSTM projects its output, else None.
    """

    ih: Tensor
    hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    hr: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Saved:
    """Values of one layer in one direction that torch's kernel saved for its own backward pass.

    Attributes:
        gates: gates after their nonlinearity, in the order of the recurrence, [G, T, B, H].
        output: output of the layer, in the order of the input, [T, B, P]; None for the uppermost, which returns it.
        places: a sample: timesteps in the order of the recurrence, and sequences, [K] each.
        input: the layer's input at `places`, [K, D].
        grad_output: direct loss gradient of `output`; None for the uppermost, or if no gradient enters.
    """

    gates: Tensor
    output: Tensor | None
    places: tuple[Tensor, Tensor]
    input: Tensor
    grad_output: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Stack:
    """One call of a fused layer, or a chain of calls, in canonical layout: time first, right-padded with zeros.

    S = layers * directions, in torch's order (layer 0 forward, layer 0 reverse, layer 1 forward, ...).

    Attributes:
        family: `"rnn_tanh"`, `"rnn_relu"`, `"lstm"` or `"gru"`.
        weights: S parameter sets.
        directions: 1 or 2.
        lengths: valid timesteps of each sequence, [B].
        input: [T, B, D].
        h_0: [S, B, P].
        c_0: [S, B, H] for an LSTM.
        output: the kernel's result, [T, B, directions * P].
        h_n: [S, B, P].
        c_n: [S, B, H] for an LSTM.
        grad_output: direct loss gradient of `output`, zeros if none enters.
        grad_h_n: direct loss gradient of `h_n`; None if none enters.
        grad_c_n: direct loss gradient of `c_n` for an LSTM; None if none enters.
        dropout: factor on the input of layers 1, 2, ..., [T, B, directions * P] each, one for both directions or one
            for each, forward before reverse; empty without dropout.
        hidden_dropout: the kernel applied a dropout mask that cannot be recovered.
        dropout_read: the masks come from the kernel's reserve, and are valid if the layers confirm them.
        tolerance: largest relative difference that the kernel's arithmetic explains.
        joined: further values of a chain of calls; None for a single call of a fused layer.
        saved: values that the kernel saved of each layer and direction, S of them; empty if unknown.
    """

    family: str
    weights: tuple[Weights, ...]
    directions: int
    lengths: Tensor
    input: Tensor
    h_0: Tensor
    c_0: Tensor | None
    output: Tensor
    h_n: Tensor
    c_n: Tensor | None
    grad_output: Tensor
    grad_h_n: Tensor | None
    grad_c_n: Tensor | None
    dropout: tuple[Tensor, ...] = ()
    hidden_dropout: bool = False
    dropout_read: bool = False
    tolerance: float = 1e-4
    joined: Joined | None = None
    saved: tuple[Saved, ...] = ()


@dataclass(frozen=True, slots=True)
class Joined:
    """Values of a chain of calls beside those of a single call: changes of the state between the calls.

    Attributes:
        starts: timestep of the chain at which each sequence begins, [B].
        grad_h: direct loss gradient of every h_t, without the path through the output, [S, T, B, P]; replaces
            `grad_h_n`.
        grad_c: the same of every c_t for an LSTM, [S, T, B, H].
        cells: returned c_t, [T, B, H]; None for calls of fused layers.
        previous: input h_{t-1} and c_{t-1}, [T, B, .] each; None if they equal the results of the step before.
        factors: the loop's factors on them, [T, B, .] each; None with `previous`.
        totals: autograd's total loss gradients of h_t and c_t, [T, B, .] each (c_t without the path through h_t); None
            for calls of fused layers.
    """

    starts: Tensor
    grad_h: Tensor
    grad_c: Tensor | None
    cells: Tensor | None = None
    previous: tuple[Tensor, ...] | None = None
    factors: tuple[Tensor, ...] | None = None
    totals: tuple[Tensor, ...] | None = None
