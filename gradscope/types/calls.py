"""What capture hands to the mathematics: calls of torch's layers and cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Direction = Literal["forward", "reverse"]


class LayerKey(NamedTuple):
    """Which recurrence a row speaks of: the four key columns of the layer tables.

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


@dataclass(frozen=True, slots=True)
class KernelCall:
    """Arguments of one call of torch's fused kernel, or of a cell's, as it was given them.

    Attributes:
        family: `"rnn_tanh"`, `"rnn_relu"`, `"lstm"` or `"gru"`.
        input: [T, B, D], [B, T, D] if `batch_first`, packed [N, D], or [B, D] for a cell.
        batch_sizes: sequences still running at each timestep if packed, [T], else None.
        state: `(h_0,)` or `(h_0, c_0)`, [S, B, .] each; for a cell (h,) or (h, c), [B, H].
        weights: the flat list of parameters; its identity tells whose call it is.
        has_biases: whether the list holds biases.
        num_layers: layers of the stack.
        dropout: probability between the layers, 0 outside training mode.
        bidirectional: two directions a layer.
        batch_first: layout of `input` and of the output.
        cell: one timestep of one layer, called in the user's own loop.
        masks: where the call is run layer by layer, the dropout factors between the layers as they are drawn, in the
            layout of the output, but time first; else None.
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


class Strand(NamedTuple):
    """Rows of a state that come from one earlier call.

    Attributes:
        call: the earlier call, as it was marked.
        rows: for each row of the state the row of the earlier result, -1 where it comes from elsewhere, [B].
        factors: for each part of the state what it was multiplied by, [B, F] or [B, 1]; None where it is as it was.
    """

    call: Any
    rows: Tensor
    factors: tuple[Tensor | None, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """Where the parts of a state come from.

    Attributes:
        strands: one for each earlier call; no row is in two of them, but where `mixed`.
        mixed: a row comes from several calls at once, or its units were mixed on the way: the strands do not tell all.
    """

    strands: tuple[Strand, ...] = ()
    mixed: bool = False


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of one layer in one direction, in torch's layout (G gates, H hidden, D input, P state `h`).

    Attributes:
        ih: `weight_ih`, [G*H, D].
        hh: `weight_hh`, [G*H, P].
        b_ih: `bias_ih`, [G*H], or None.
        b_hh: `bias_hh`, [G*H], or None.
        hr: `weight_hr`, [P, H], where an LSTM projects its output, else None.
    """

    ih: Tensor
    hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    hr: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """What torch's kernel kept of one layer in one direction for its own backward pass.

    Attributes:
        gates: after their nonlinearity, in the order of the recurrence, [G, T, B, H].
        output: of the layer, in the order of the input, [T, B, P]; None of the uppermost, which returned it.
        places: a sample: timesteps in the order of the recurrence, and sequences, [K] each.
        input: the layer's input there, [K, D].
        grad_output: direct loss gradient of `output`; None of the uppermost, or where none entered.
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
        output: what the kernel returned, [T, B, directions * P].
        h_n: [S, B, P].
        c_n: [S, B, H] for an LSTM.
        grad_output: direct loss gradient of `output`, zeros where none entered.
        grad_h_n: direct loss gradient of `h_n`.
        grad_c_n: direct loss gradient of `c_n` for an LSTM; None where none entered.
        dropout: factor on the input of layers 1, 2, ..., [T, B, directions * P] each, one for both directions or one
            for each, forward before reverse; empty without dropout.
        hidden_dropout: the kernel applied a dropout mask that cannot be recovered.
        dropout_read: the masks were read where the kernel keeps them, and are to be believed if the layers confirm it.
        tolerance: largest relative difference that the kernel's arithmetic explains.
        joined: what only a chain of calls has; None for a single call of a fused layer.
        kept: what the kernel kept of each layer and direction, S of them; empty where that is not known.
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
    grad_h_n: Tensor
    grad_c_n: Tensor | None
    dropout: tuple[Tensor, ...] = ()
    hidden_dropout: bool = False
    dropout_read: bool = False
    tolerance: float = 1e-4
    joined: Joined | None = None
    kept: tuple[Kept, ...] = ()


@dataclass(frozen=True, slots=True)
class Joined:
    """What a chain of calls has beside a single call: what happened to the state between them.

    Attributes:
        starts: timestep of the chain at which each sequence begins, [B].
        grad_h: direct loss gradient of every h_t but through the output, [S, T, B, P]; in place of `grad_h_n`.
        grad_c: that of every c_t for an LSTM, [S, T, B, H].
        cells: c_t as it was returned, [T, B, H]; None where the calls are of fused layers.
        given: h_{t-1} and c_{t-1} as they were given to the step, [T, B, .] each; None where they are what the step
            before returned.
        factors: what the loop multiplied them by, [T, B, .] each; None with `given`.
        totals: total loss gradients of h_t and c_t as autograd had them, [T, B, .] each (c_t without the way through
            h_t); None where the calls are of fused layers.
    """

    starts: Tensor
    grad_h: Tensor
    grad_c: Tensor | None
    cells: Tensor | None = None
    given: tuple[Tensor, ...] | None = None
    factors: tuple[Tensor, ...] | None = None
    totals: tuple[Tensor, ...] | None = None
