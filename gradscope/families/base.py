"""The interface of a recurrent family: its gates, their replay, and its step Jacobian as a linear map.

Notation, here and in the families: T timesteps, B sequences, D input, H hidden, P size of `h` (H, or the
projection's), G gates. `U` is `weight_hh`, and `U_k` gate k's block of H rows. The state is the tuple `(h,)` or
`(h, c)`. A *cotangent* is dL/dstate, a *tangent* is a direction in state space; both may carry extra leading
dimensions before [B, .].

Every family measures at **all** timesteps at once: the layer's output gives `h_{t-1}`, so only the cell path of an LSTM
needs a forward scan, and no family forms the Jacobian of a step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from gradscope.private import flatten_for_cudnn
from gradscope.types import Weights

State = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer in one direction, in the order of the recurrence: [T, B, .], padded at the end.

    Attributes:
        weights: the parameters that the kernel used.
        input: [T, B, D]; None if the gates are known.
        h_0: [B, P].
        c_0: [B, H] for an LSTM.
        output: h_t from the kernel, [T, B, P].
        state_inputs: h_{t-1} and c_{t-1} as inputs of the step, [T, B, .] each, if a loop changes the results of the
            step before; else None.
        links: factors of the loop on these, [T, B, .] each; None with `state_inputs`.
        gates: after their nonlinearity, [G, T, B, H], if the kernel saved them.
    """

    weights: Weights
    input: Tensor | None
    h_0: Tensor
    c_0: Tensor | None
    output: Tensor
    state_inputs: State | None = None
    links: State | None = None
    gates: Tensor | None = None

    @property
    def previous(self) -> Tensor:
        """h_{t-1}, [T, B, P]."""
        if self.state_inputs is not None:
            return self.state_inputs[0]
        return torch.cat([self.h_0.unsqueeze(0), self.output[:-1]])


@dataclass(frozen=True, slots=True)
class Trace:
    """The rebuilt gates and cells of a layer.

    Attributes:
        layer: the source.
        previous: h_{t-1}, [T, B, P].
        gates: gates after their nonlinearity, [T, B, G, H], in the order of the blocks of `weight_hh`; each gate is
            contiguous, which speeds up elementwise operations.
        cells: c_{-1}, c_0, ..., c_{T-1}, [T + 1, B, H] (LSTM).
        cell_inputs: c_{t-1} as input of the step, [T, B, H], if a loop changes it.
        inner: the candidate's recurrent part U_n h_{t-1} + b_hn, [T, B, H] (GRU).
    """

    layer: Layer
    previous: Tensor
    gates: Tensor
    cells: Tensor | None = None
    inner: Tensor | None = None
    cell_inputs: Tensor | None = None


class Piece(NamedTuple):
    """Some consecutive timesteps of a trace, linearised.

    Attributes:
        factors: the tensors that `scan` and `push` take, each [t, B, ...].
        hidden: the layer's state before any projection, [t, B, H].
        output: rebuilt h_t, [t, B, P].
        previous: h_{t-1}, [t, B, P].
    """

    factors: tuple[Tensor, ...]
    hidden: Tensor
    output: Tensor
    previous: Tensor


class Cotangents(NamedTuple):
    """Loss gradients inside the steps of a piece.

    Attributes:
        gates: dL/d(U h_{t-1} + b_hh) by gate, [t, B, G, H].
        cell: total dL/dc_t, through h_t of the same step as well as through c_{t+1}, [t, B, H]; None without a cell.
    """

    gates: Tensor
    cell: Tensor | None = None


class Family(ABC):
    """A recurrence.

    Laws, which the tests check against autograd for every family:

    * `piece(...).output` equals the kernel's output;
    * `scan` is the transpose of `push`;
    * `sizes` are the Frobenius norms of the matrices that `push` applies.
    """

    name: ClassVar[str]
    gates: ClassVar[tuple[str, ...]]
    cell: ClassVar[bool] = False

    @abstractmethod
    def run(self, weights: Weights, x: Tensor, h_0: Tensor, c_0: Tensor | None) -> Tensor:
        """Run one layer forward with torch's kernel: [T, B, D] -> [T, B, P]."""

    @abstractmethod
    def replay(self, layer: Layer) -> Trace:
        """Rebuild the gates of all timesteps, and the cell path."""

    @abstractmethod
    def piece(self, trace: Trace, start: int, stop: int) -> Piece:
        """Linearise timesteps `start` to `stop` (exclusive)."""

    @abstractmethod
    def sizes(self, constants: tuple[Tensor, ...], piece: Piece) -> dict[str, Tensor]:
        """Squared Frobenius norms of the step Jacobian and its blocks, [t, B] each: `jacobian`, `jacobian_h`, ..."""

    @abstractmethod
    def constants(self, weights: Weights) -> tuple[Tensor, ...]:
        """The constants of `sizes`: inner products of the rows of U, O(H^2) once per record; last, a work tensor.

        Before the work tensor H ones: a product with ones sums rows faster than a reduction.
        """

    @abstractmethod
    def scan(self, weights: Weights, factors: tuple[Tensor, ...], states: State) -> Iterator[int]:
        """Carry cotangents back through consecutive steps, in place; yields t when those of s_{t-1} are complete.

        All steps share their temporary memory, which stays in the cache.

        Args:
            weights: the parameters.
            factors: of the steps, [t, B, ...].
            states: cotangents of s_{-1}, s_0, ..., s_{t-1}, [t + 1, R, B, .], which initially contain the gradients
                from outside; the scan adds those from the recurrence, from the last to the first.
        """

    @abstractmethod
    def cotangents(self, weights: Weights, factors: tuple[Tensor, ...], state: State) -> Cotangents:
        """Cotangents inside the steps, from those of s_t after `scan`, [t, B, .]."""

    def pull(self, weights: Weights, factors: tuple[Tensor, ...], state: State) -> State:
        """Carry cotangents of s_t, [R, B, .], back one step with factors [B, ...]: those of s_{t-1}."""
        states = tuple(torch.stack([torch.zeros_like(s), s]) for s in state)
        for _ in self.scan(weights, tuple(f.unsqueeze(0) for f in factors), states):
            pass
        return tuple(s[0] for s in states)

    @abstractmethod
    def push(self, weights: Weights, factors: tuple[Tensor, ...], state: State) -> State:
        """Carry a tangent of s_{t-1} forward one step."""

    def input_cotangents(self, piece: Piece, state: State, gates: Tensor) -> Tensor:
        """dL/d(W x_t + b_ih) by gate, [t, B, G, H], from the cotangent of s_t and `cotangents(...).gates`."""
        return gates

    def activations(self, trace: Trace, piece: Piece, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Gates in the order of `gates`, [t, B, G, H], and the `hidden` state unless it is a gate."""
        return cut(trace.gates, start, stop), piece.hidden

    def limits(self, gate: str) -> tuple[float, float]:
        """Limits of saturation: a unit of this gate is `low` below the first, `high` above the second."""
        return TANH_LIMITS if gate in ("candidate", "hidden") else SIGMOID_LIMITS


def cut(x: Tensor, start: int, stop: int) -> Tensor:
    """Timesteps `start` to `stop` of x; x itself if these are all."""
    return x if stop - start == len(x) else x[start:stop]


TANH_LIMITS = (-0.9, 0.9)
SIGMOID_LIMITS = (0.1, 0.9)
RELU_LIMITS = (torch.finfo(torch.float32).tiny, math.inf)
"""The lower limit is the smallest normal number: `torch.set_flush_denormal(True)` would turn a smaller one into 0."""


def preactivations(layer: Layer, previous: Tensor, gates: int) -> tuple[Tensor, Tensor]:
    """W x_t + b_ih and U h_{t-1} + b_hh at all timesteps: GEMMs over T * B rows, [G, T, B, H] each."""
    w = layer.weights
    return _affine(layer.input, w.ih, w.b_ih, gates), _affine(previous, w.hh, w.b_hh, gates)


def total_preactivation(layer: Layer, previous: Tensor, gates: int) -> Tensor:
    """W x_t + b_ih + U h_{t-1} + b_hh at all timesteps, [G, T, B, H]."""
    w = layer.weights
    bias = None if w.b_ih is None or w.b_hh is None else w.b_ih + w.b_hh
    total = _affine(layer.input, w.ih, bias, gates)
    total.flatten(1, 2).baddbmm_(*_rows_and_blocks(previous, w.hh, gates))
    return total


def _affine(x: Tensor | None, weight: Tensor, bias: Tensor | None, gates: int) -> Tensor:
    assert x is not None
    rows, blocks = _rows_and_blocks(x, weight, gates)
    product = torch.bmm(rows, blocks) if bias is None else torch.baddbmm(bias.view(gates, 1, -1), rows, blocks)
    return product.unflatten(1, x.shape[:2])


def _rows_and_blocks(x: Tensor, weight: Tensor, gates: int) -> tuple[Tensor, Tensor]:
    """The factors of x W^T gate by gate: [G, T * B, D] and [G, D, H]."""
    return x.flatten(0, 1).expand(gates, -1, -1), weight.unflatten(0, (gates, -1)).mT


def sigmoid_backward(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """Carry x back through y = sigmoid(.): x y (1 - y), in one pass over memory; `out` may be x."""
    into = torch.empty_like(x) if out is None else out
    return torch.ops.aten.sigmoid_backward.grad_input(x, y, grad_input=into)


def tanh_backward(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """Carry x back through y = tanh(.): x (1 - y^2), in one pass over memory; `out` may be x."""
    into = torch.empty_like(x) if out is None else out
    return torch.ops.aten.tanh_backward.grad_input(x, y, grad_input=into)


def gram(weights: Weights, gates: int) -> list[Tensor]:
    """Coefficients of `quadratic_form`: G_kl[i] = <U_k[i], U_l[i]> for k <= l, [H] each, (k, l) row by row."""
    units = weights.hh.unflatten(0, (gates, -1)).transpose(0, 1)
    rows = torch.bmm(units, units.mT).flatten(1).mT.contiguous().unbind(0)  # contiguous rows
    return [rows[k * gates + other] for k in range(gates) for other in range(k, gates)]


def linear_form(coefficients: Sequence[Tensor], d: Sequence[Tensor], out: Tensor, later: int = 1) -> Tensor:
    """sum_k c_k d_k by unit, [N, H], of coefficients [H] each, with those after the first times `later`; into `out`."""
    torch.mul(coefficients[0], d[0], out=out)
    for coefficient, part in zip(coefficients[1:], d[1:], strict=True):
        out.addcmul_(coefficient, part, value=later)
    return out


def quadratic_form(coefficients: Sequence[Tensor], d: Sequence[Tensor], out: Tensor, spare: Tensor) -> Tensor:
    """sum_kl c_kl d_k d_l by unit, [N, H], of the coefficients with k <= l, [H] each, row by row.

    Into `out`. `spare` is work memory: allocating it here would cost several times the operation itself.
    """
    count = len(d)
    linear_form(coefficients[:count], d, out, 2).mul_(d[0])
    for k in range(1, count):
        coefficients = coefficients[count - k + 1 :]
        out.addcmul_(linear_form(coefficients[: count - k], d[k:], spare, 2), d[k])
    return out


def flat_weights(family: Family, weights: Weights) -> list[Tensor]:
    """The parameters in the argument order of torch's kernels.

    cuDNN gets contiguous copies in the layout of `nn.RNNBase.flatten_parameters`: without them cuDNN would copy the
    parameters itself and warn.

    Args:
        family: the recurrence; its name is torch's own, in small letters.
        weights: parameters of one layer in one direction.
    """
    flat = [w for w in (weights.ih, weights.hh, weights.b_ih, weights.b_hh, weights.hr) if w is not None]
    if weights.hh.device.type != "cuda" or not torch.backends.cudnn.is_acceptable(weights.hh):
        return flat
    copies, hidden = [w.clone() for w in flat], weights.hh.shape[0] // len(family.gates)
    projected = 0 if weights.hr is None else weights.hr.shape[0]
    kind = torch.backends.cudnn.rnn.get_cudnn_mode(family.name.upper())
    sizes = (weights.ih.shape[1], kind, hidden, projected, 1, False, False)
    flatten_for_cudnn(copies, len(copies), *sizes)
    return copies
