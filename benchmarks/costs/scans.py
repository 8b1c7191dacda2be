"""The reverse scan two ways: our loop over timesteps, and the vendor's kernel asked for its own backward pass.

The second runs the fused layer on the pre-activations W x_t + b as its input, with the identity for W_ih and no bias:
autograd's gradient of that input is the gate gradient of every timestep. Gates and factors are needed either way. The
kernel gives no dL/dh_t and dL/dc_t, which we need as well: another product with U, and another loop over timesteps.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from costs.bounds import least_time
from costs.rounds import LEAST_ROUNDS
from gradscope.families.base import Layer, Piece
from gradscope.families.lstm import LSTM
from gradscope.families.measure import pieces
from gradscope.types import Weights

GRID = tuple((T, rows, H) for T in (32, 128, 512) for rows in (16, 64) for H in (16, 64, 256))
INPUT, SEQUENCES = 32, 16


@dataclass(frozen=True, slots=True)
class Scan:
    """An LSTM of 16 sequences, and the gradient that enters it, carried back in `rows` rows."""

    layer: Layer
    linear: list[tuple[int, int, Piece]]
    entering: Tensor
    copies: int

    @classmethod
    def of(cls, steps: int, rows: int, hidden: int, device: str = "cpu") -> Scan:
        """Random; a forget bias of 2 keeps the gradient from becoming subnormal, which would slow both down."""
        torch.manual_seed(0)
        lstm, x = torch.nn.LSTM(INPUT, hidden).to(device), torch.randn(steps, SEQUENCES, INPUT).to(device)
        with torch.no_grad():
            lstm.bias_hh_l0[hidden : 2 * hidden] = 2.0
            output, zeros = lstm(x)[0], x.new_zeros(SEQUENCES, hidden)
        weights = Weights(*(p.detach() for p in lstm.parameters()))
        family, layer = LSTM(), Layer(weights, x, zeros, zeros, output)
        with torch.no_grad():
            trace = family.replay(layer)
            linear = [(start, stop, family.piece(trace, start, stop)) for start, stop in pieces(layer, 4)]
        return cls(layer, linear, torch.randn_like(output), rows // SEQUENCES)

    def by_loop(self) -> Tensor:
        """dL/d(pre-activations) of the first row, [T, B, 4, H]."""
        found: list[Tensor] = []
        carry: tuple[Tensor, ...] = ()
        with torch.no_grad():
            for start, stop, piece in self.linear:
                shape = (stop - start + 1, self.copies, SEQUENCES, self.entering.shape[-1])
                states = self.entering.new_zeros(shape), self.entering.new_zeros(shape)
                states[0][1:] = self.entering[start:stop].unsqueeze(1)
                for state, carried in zip(states, carry, strict=False):
                    state[-1] += carried
                for _ in LSTM().scan(self.layer.weights, piece.factors, states):
                    pass
                carry = tuple(state[0] for state in states)
                total = tuple(state[1:, 0] for state in states)
                found.append(LSTM().cotangents(self.layer.weights, piece.factors, total).gates)
        return torch.cat(found[::-1])

    def by_kernel(self) -> Tensor:
        """The same from autograd."""
        w, hidden = self.layer.weights, self.layer.output.shape[-1]
        assert w.b_ih is not None and w.b_hh is not None
        given = (self.layer.input @ w.ih.mT + (w.b_ih + w.b_hh)).repeat(1, self.copies, 1).requires_grad_()
        identity, nothing = torch.eye(4 * hidden, device=given.device), given.new_zeros(4 * hidden)
        flat, zeros = [identity, w.hh, nothing, nothing], given.new_zeros(1, given.shape[1], hidden)
        output = torch.lstm(given, [zeros, zeros], flat, True, 1, 0.0, given.is_cuda, False, False)[0]  # as cuDNN asks
        (found,) = torch.autograd.grad(output, given, self.entering.repeat(1, self.copies, 1))
        return found[:, :SEQUENCES].unflatten(2, (4, hidden))


def measure_scans(
    grid: tuple[tuple[int, int, int], ...] = GRID, device: str = "cpu"
) -> dict[tuple[int, int, int], float]:
    """(T, rows, H) -> time of the kernel's way over the loop's, medians of a few turns."""
    found: dict[tuple[int, int, int], float] = {}
    for point in grid:
        scan = Scan.of(*point, device)
        turns = [(least_time(scan.by_loop, 1), least_time(scan.by_kernel, 1)) for _ in range(LEAST_ROUNDS)]
        loop, kernel = (statistics.median(column) for column in zip(*turns, strict=True))
        found[point] = kernel / loop
    return found
