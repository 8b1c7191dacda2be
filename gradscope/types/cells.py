"""Calls of modules that are not torch's: from capture to the mathematics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

GateKind = Literal["sigmoid", "tanh", "relu"]


@dataclass(frozen=True, slots=True)
class CellSpec:
    """A description of a user's own cell: `gradscope.attach(model, cells={MyCell: CellSpec(...)})`.

    `CellSpec()` is enough for a cell with the signature `forward(x, state) -> state` or `-> (output, state)`, where the
    state is a tensor [B, ...] or a tuple of tensors, or with `forward(x, h, c) -> (h, c)`.

    Attributes:
        state: name of the state's argument, or names of its parts, such as `("h_0", "c_0")`; by default arguments with
            names of a hidden and a cell state, else the second argument.
        result: position of the new state in the result: a key or index, several in the order of `state`, such as
            `("h_n", "c_n")`, or a function that extracts a tensor or a tuple of tensors; by default the part that has
            the form of the state and enters the next call.
        gates: the gates, after their nonlinearity: a function of the cell and of the arguments of `forward` that
            returns them by name, [B, H] each; or name -> the submodule whose output the gate is, by qualified name.
        kinds: name of a gate -> `"sigmoid"`, `"tanh"` or `"relu"`, which sets the limits of saturation; by default tanh
            for `candidate` and `hidden`, sigmoid for the others.
        blocks: name of a recurrent weight matrix -> the gates in the order of their blocks of rows, for the tables
            `weights` and `spectra`.
        transition: for a step `state -> a * state + b`, with b independent of the state: a function of the cell and of
            the arguments of `forward` that returns a, [B, ...] like the (only) state, real or complex.
        method: the method of one step; all rules for `forward` hold for this method.
    """

    state: str | Sequence[str] | None = None
    result: Callable[[Any], Any] | str | int | Sequence[str | int] | None = None
    gates: Callable[..., Mapping[str, Tensor]] | Mapping[str, str] | None = None
    kinds: Mapping[str, GateKind] = field(default_factory=dict[str, GateKind])
    blocks: Mapping[str, Sequence[str]] = field(default_factory=dict[str, "Sequence[str]"])
    transition: Callable[..., Tensor] | None = None
    method: str = "forward"


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A chain of calls of a cell that is not torch's, in canonical layout: time first, right-padded.

    Parts of the state are real tensors, [T, B, ...]; a complex part is a tensor of pairs, [T, B, ..., 2].

    Attributes:
        step: replays the cell: from timesteps and sequences, [N] each, and the parts of the state there, [N, ...],
            to the parts of the new state.
        lengths: valid timesteps of each sequence, [B].
        starts: timestep of the chain at which each sequence begins, [B].
        previous: input parts of the state.
        returned: returned parts of the state.
        direct: loss gradients that enter the returned parts from outside.
        totals: autograd's total loss gradients of the returned parts.
        links: the loop's factor on each part before its next call; None if unchanged.
        gates: name -> activations, [T, B, H], and kind.
        blocks: gate -> square block of a recurrent weight matrix.
        transition: a, [T, B, ...] like the state, if a step is `state -> a * state + b`.
        tolerance: largest relative difference that the arithmetic explains.
        widths: number of units of each returned part of the state, [T, B] each, if this number changes: then zeros pad
            the parts.
        reason: why the cell cannot be replayed; empty if it can.
    """

    step: Callable[[Tensor, Tensor, Sequence[Tensor]], list[Tensor]]
    lengths: Tensor
    starts: Tensor
    previous: tuple[Tensor, ...]
    returned: tuple[Tensor, ...]
    direct: tuple[Tensor, ...]
    totals: tuple[Tensor, ...]
    links: tuple[Tensor, ...] | None
    gates: Mapping[str, tuple[Tensor, GateKind]]
    blocks: Mapping[str, Tensor]
    transition: Tensor | None
    tolerance: float
    widths: tuple[Tensor, ...] | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Positions:
    """One call of a module that turns a sequence into a sequence.

    Attributes:
        output: output of the whole batch, [T, B, F].
        gradient: loss gradient of the output, [T, B, F].
        columns: indices of the analysed sequences, [n].
        run: replays the call: returns the input sequence, with a graph to the output, [T, B, F]; None if no argument is
            such a sequence.
        dim: time dimension of the input.
        tolerance: largest relative difference that the arithmetic explains.
    """

    output: Tensor
    gradient: Tensor
    columns: Tensor
    run: Callable[[], tuple[Tensor, Tensor]] | None
    dim: int
    tolerance: float


@dataclass(frozen=True, slots=True)
class WholeCall:
    """A call of such a module with all its inputs.

    Attributes:
        positions: the measured part.
        input: the input sequence, [T, B, D]; None if no argument is a sequence.
        parameters: parameters by name.
        others: other tensors by name: arguments and buffers. Infinity in them is a mask, not a fault.
    """

    positions: Positions
    input: Tensor | None
    parameters: Mapping[str, Tensor]
    others: Mapping[str, Tensor]
