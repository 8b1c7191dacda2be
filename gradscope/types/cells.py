"""The same of modules that are not torch's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

GateKind = Literal["sigmoid", "tanh", "relu"]


@dataclass(frozen=True, slots=True)
class CellSpec:
    """How to observe a cell of one's own: `gradscope.attach(model, cells={MyCell: CellSpec(...)})`.

    Nothing has to be said of a cell with the signature `forward(x, state) -> state` or `-> (output, state)`, the state
    a tensor [B, ...] or a tuple of them, or `forward(x, h, c) -> (h, c)`: `CellSpec()` is enough.

    Attributes:
        state: name of the argument that is the state, or names of several that are its parts, as `("h_0", "c_0")`; by
            default what is called like a hidden and a cell state, else the second.
        result: where the new state is in what comes back: a key or index, several of them in the order of `state`, as
            `("h_n", "c_n")`, or a function that takes a tensor or a tuple of tensors out of it; by default what has the
            form of the state, and what the next call takes up.
        gates: the gates, after their nonlinearity: a function of the cell and of the arguments of `forward`, which
            gives them by name, [B, H] each; or name -> the submodule whose output it is, by its qualified name.
        kinds: name of a gate -> `"sigmoid"`, `"tanh"` or `"relu"`, which says when a unit counts as saturated; by
            default tanh for `candidate` and `hidden`, sigmoid for the others.
        blocks: name of a recurrent weight matrix -> the gates in the order of their blocks of rows, for the tables
            `weights` and `spectra`.
        transition: where one step is `state -> a * state + b`, with b independent of the state: a function of the cell
            and of the arguments of `forward` that gives a, [B, ...] like the (only) state, real or complex.
        method: the method that is one step, where that is not `forward`; whatever is said of `forward` holds for it.
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
        widths: number of units of each part of the state as it was returned, [T, B] each, where that changes: parts are
            padded with zeros then.
        reason: why the cell cannot be run again; empty if it can.
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
    widths: tuple[Tensor, ...] | None = None
    reason: str = ""


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


@dataclass(frozen=True, slots=True)
class WholeCall:
    """The same call, and all that it was given.

    Attributes:
        positions: what is measured of it.
        input: the sequence that came in, [T, B, D]; None where no argument is one.
        parameters: by name.
        others: its other tensors by name: arguments and buffers. Infinity in them is a mask, not a fault.
    """

    positions: Positions
    input: Tensor | None
    parameters: Mapping[str, Tensor]
    others: Mapping[str, Tensor]
