"""Plain values that travel between the rooms: they hold data, and know nobody.

attach -> capture: `torch.Tensor` arguments of one kernel call
capture -> families: `Stack`, one call in canonical layout
families -> record: `Analysis`, one layer in one direction
record -> show: `Batch`, the rows of one optimizer step
diagnose -> show: `Finding`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

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
        dropout: factor on the input of layers 1, 2, ..., [T, B, directions * P] each; empty without dropout.
        hidden_dropout: the kernel applied a dropout mask that cannot be recovered.
        tolerance: largest relative difference that the kernel's arithmetic explains.
        joined: what only a chain of calls has; None for a single call of a fused layer.
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
    tolerance: float = 1e-4
    joined: Joined | None = None


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


@dataclass(frozen=True, slots=True)
class Positions:
    """One call of a module that turns a sequence into a sequence.

    Attributes:
        output: what came out, the whole batch, [T, B, F].
        gradient: its loss gradient, [T, B, F].
        columns: which sequences are analysed, [n].
        run: runs the call again: the sequence that came in, with a graph to what comes out, [T, B, F]; None where no
            argument is such a sequence.
        dim: which dimension of what came in is time.
        tolerance: largest relative difference that the arithmetic explains.
    """

    output: Tensor
    gradient: Tensor
    columns: Tensor
    run: Callable[[], tuple[Tensor, Tensor]] | None
    dim: int
    tolerance: float


GateKind = Literal["sigmoid", "tanh", "relu"]


@dataclass(frozen=True, slots=True)
class CellSpec:
    """How to observe a cell of one's own: `gradscope.attach(model, cells={MyCell: CellSpec(...)})`.

    Nothing has to be said of a cell with the signature `forward(x, state) -> state` or `-> (output, state)`, the state
    a tensor [B, ...] or a tuple of them: `CellSpec()` is enough.

    Attributes:
        state: name of the argument of `forward` that is the state; by default the second.
        result: takes the new state, a tensor or a tuple of tensors, out of what `forward` returns; by default the part
            of it that has the form of the state.
        gates: the gates, after their nonlinearity: a function of the cell and of the arguments of `forward`, which
            gives them by name, [B, H] each; or name -> the submodule whose output it is, by its qualified name.
        kinds: name of a gate -> `"sigmoid"`, `"tanh"` or `"relu"`, which says when a unit counts as saturated; by
            default tanh for `candidate` and `hidden`, sigmoid for the others.
        blocks: name of a recurrent weight matrix -> the gates in the order of their blocks of rows, for the tables
            `weights` and `spectra`.
        transition: where one step is `state -> a * state + b`, with b independent of the state: a function of the cell
            and of the arguments of `forward` that gives a, [B, ...] like the (only) state, real or complex.
    """

    state: str | None = None
    result: Callable[[Any], Any] | None = None
    gates: Callable[..., Mapping[str, Tensor]] | Mapping[str, str] | None = None
    kinds: Mapping[str, GateKind] = field(default_factory=dict[str, GateKind])
    blocks: Mapping[str, Sequence[str]] = field(default_factory=dict[str, "Sequence[str]"])
    transition: Callable[..., Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A chain of calls of a cell that is not torch's, in canonical layout: time first, right-padded.

    Parts of the state are given as real tensors, [T, B, ...]; a complex one as pairs, [T, B, ..., 2].

    Attributes:
        step: runs the cell again: timesteps and sequences, [N] each, and the parts of the state there, [N, ...]; gives
            the parts of the new state.
        lengths: valid timesteps of each sequence, [B].
        starts: timestep of the chain at which each begins, [B].
        given: parts of the state as they were given.
        returned: as they were returned.
        direct: loss gradients that enter the returned parts from outside.
        totals: their total loss gradients, as autograd had them.
        links: what the loop multiplied each part by before it was given; None where it was given as returned.
        gates: name -> activations, [T, B, H], and kind.
        blocks: gate -> square block of a recurrent weight matrix.
        transition: a, [T, B, ...] like the state, where a step is `state -> a * state + b`.
        tolerance: largest relative difference that the arithmetic explains.
    """

    step: Callable[[Tensor, Tensor, Sequence[Tensor]], list[Tensor]]
    lengths: Tensor
    starts: Tensor
    given: tuple[Tensor, ...]
    returned: tuple[Tensor, ...]
    direct: tuple[Tensor, ...]
    totals: tuple[Tensor, ...]
    links: tuple[Tensor, ...] | None
    gates: Mapping[str, tuple[Tensor, GateKind]]
    blocks: Mapping[str, Tensor]
    transition: Tensor | None
    tolerance: float


@dataclass(frozen=True, slots=True)
class Gate:
    """Saturation of one gate of H units.

    Attributes:
        low: fraction of units below the lower limit, [T, B].
        high: fraction of units above the upper limit, [T, B].
        mean: mean activation over the units, [T, B].
        unit_low: fraction of the valid (t, sequence) at which a unit is below, [H].
        unit_high: the same above, [H].
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    unit_low: Tensor
    unit_high: Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """One gate's block of `weight_hh`: 0-dim tensors, and the complex eigenvalues where asked for."""

    spectral_radius: Tensor
    spectral_norm: Tensor
    orthogonality: Tensor
    eigenvalues: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Analysis:
    """What one layer in one direction did in one call, on the device, in the order of the input.

    Attributes:
        layer: index in the stack.
        direction: of the recurrence.
        lengths: valid timesteps of each sequence, [B].
        values: quantity -> [T, B]; NaN where it was not measured, inf and NaN also where the training had them.
        measured: quantity -> [T, B] booleans, for those that are measured at some (t, b) only.
        errors: quantity -> [T, B] standard errors, for those that rest on probes.
        reach: [lags, B], the median over anchors.
        reached: [lags, B] booleans: some anchor reaches back that far.
        gates: gate -> saturation.
        blocks: gate -> block of `weight_hh`.
        lyapunov: [B], NaN where there is but one timestep; None if not asked for.
        residual: relative difference between the rebuilt states and the kernel's, 0-dim.
        tolerance: largest relative difference that the kernel's arithmetic explains.
        sketch: the rebuilt dL/dU times a fixed matrix, [G * H, 8]; None unless it was asked for.
        gradient_residual: relative difference between the rebuilt dL/dU and the one that was accumulated, 0-dim;
            None where they cannot be compared.
        reason: why the values cannot be given; empty if they can.
        starts: timestep at which each sequence begins, [B]; None where all begin at 0. Everything above is from there.
    """

    layer: int
    direction: Direction
    lengths: Tensor
    values: Mapping[str, Tensor]
    measured: Mapping[str, Tensor]
    errors: Mapping[str, Tensor]
    reach: Tensor
    reached: Tensor
    gates: Mapping[str, Gate]
    blocks: Mapping[str, Block]
    lyapunov: Tensor | None
    residual: Tensor
    tolerance: float
    sketch: Tensor | None = None
    gradient_residual: Tensor | None = None
    reason: str = ""
    starts: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """A block of rows of one table, by column.

    A scalar holds for every row of the block; text is always a scalar. Arrays are one-dimensional
    and of equal length; a block of scalars alone is one row.
    """

    table: str
    columns: Mapping[str, Any]

    def __len__(self) -> int:
        return next((len(c) for c in self.columns.values() if hasattr(c, "__len__") and not isinstance(c, str)), 1)


@dataclass(frozen=True, slots=True)
class Batch:
    """All rows of one optimizer step: what a sink is given."""

    step: int
    rows: tuple[Rows, ...]


Severity = Literal["info", "warning", "critical"]


@dataclass(frozen=True, slots=True)
class Remedy:
    """Something to try against a finding.

    Attributes:
        title: what it does, in a few words.
        code: what to type, in the names of the user's own model.
        apply: does it to the module that the finding is about, in place, or gives what to put in its place; None where
            code cannot do it.
    """

    title: str
    code: str
    apply: Callable[[nn.Module], nn.Module | None] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a run says about its training.

    Attributes:
        code: `"vanishing_gradient"`, `"exploding_gradient"`, `"saturated_gate"`, `"dead_units"`,
            `"excessive_clipping"`, `"missing_clipping"`, `"nonfinite_gradient"`, `"detached_state"` or `"healthy"`.
        severity: how bad it is.
        layer_key: which recurrence; None where it is about the whole model.
        title: one line.
        explanation: why it is probable, with the numbers that it rests on.
        evidence: these numbers by name, and where they are from: `gate`, `steps`, `timesteps` where they apply.
        remedies: the most promising first.
    """

    code: str
    severity: Severity
    layer_key: LayerKey | None
    title: str
    explanation: str
    evidence: Mapping[str, Any]
    remedies: tuple[Remedy, ...] = ()
