"""Long short-term memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from gradscope.cells.base import Cell, masked


class LSTMCell(Cell):
    """LSTM (Hochreiter & Schmidhuber 1997) with a forget gate (Gers et al. 2000), the twin of `nn.LSTMCell`.

        i_t = sigmoid(W_i x_t + b_i + U_i h_{t-1} + b'_i)
        f_t = sigmoid(W_f x_t + b_f + U_f h_{t-1} + b'_f)
        g_t =    tanh(W_g x_t + b_g + U_g h_{t-1} + b'_g)
        o_t = sigmoid(W_o x_t + b_o + U_o h_{t-1} + b'_o)
        c_t = f_t c_{t-1} + i_t g_t
        h_t = o_t tanh(c_t)

    Along the cell, dc_t/dc_{t-1} = diag(f_t): with f near 1 it carries the gradient back unchanged, the constant error
    carousel. `forget_bias_` and `chrono_` start it there.

    See `Cell` for the arguments.

    Shapes: x [B, D]; state and result (h, c), [B, H] each.

    >>> cell = LSTMCell(3, 4)
    >>> h, c = cell(torch.ones(2, 3))
    >>> h.shape, c.shape
    (torch.Size([2, 4]), torch.Size([2, 4]))
    """

    blocks = ("input", "forget", "candidate", "output")

    @override
    def initial_state(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().initial_state(x), super().initial_state(x)

    def _sum(self, x: Tensor, h: Tensor) -> Tensor:
        """W x + b + U h + b', [B, 4 * H]."""
        return F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)

    def _read(self, c: Tensor) -> Tensor:
        """The content of the cell before the output gate, [B, H]."""
        return torch.tanh(c)

    def _activations(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """i, f, g, o."""
        a_i, a_f, a_g, a_o = self._sum(x, h).chunk(4, -1)
        return torch.sigmoid(a_i), torch.sigmoid(a_f), torch.tanh(a_g), torch.sigmoid(a_o)

    @override
    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        h, c = self.initial_state(x) if state is None else state
        i, f, g, o = self._activations(x, masked(h, mask))
        c = f * c + i * g
        return o * self._read(c), c

    @override
    def gates(self, x: Tensor, state: tuple[Tensor, Tensor], mask: Tensor | None = None) -> dict[str, Tensor]:
        i, f, g, o = self._activations(x, masked(state[0], mask))
        hidden, _ = self.forward(x, state, mask)
        return {"input": i, "forget": f, "output": o, "candidate": g, "hidden": hidden}
