"""Cells with layer normalisation (Ba, Kiros & Hinton 2016: section 3.1 for the RNN, the supplement for LSTM and GRU).

    LN(a; g) = g (a - mean(a)) / sqrt(var(a) + 1e-5), over the units of one sequence, var with division by their number

The biases are the shifts of the paper's LN: they act after the normalisation and start at 0; the gains g start at 1.
The input of a nonlinearity then has one size at every step, whatever the scale of W and U.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from gradscope.cells.base import Cell
from gradscope.cells.gru import GRUCell
from gradscope.cells.lstm import LSTMCell
from gradscope.cells.rnn import RNNCell


def normalised(a: Tensor, gain: Tensor, shift: Tensor | None = None) -> Tensor:
    """LN(a; gain) + shift over the last dimension."""
    return F.layer_norm(a, a.shape[-1:], gain, shift)


class _Normalised(Cell):
    """Gains start at 1 and shifts at 0."""

    @override
    def reset_parameters(self) -> None:
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if not name.startswith("weight"):
                nn.init.constant_(parameter, float(name.startswith("gain")))

    def _ones(self, size: int) -> nn.Parameter:
        return nn.Parameter(self.weight_hh.detach().new_ones(size))


class LayerNormRNNCell(_Normalised, RNNCell):
    """RNN with layer normalisation (Ba et al. 2016).

        h_t = f(LN(W x_t + U h_{t-1}; g) + b + b')

    See `RNNCell` for the arguments.

    Attributes:
        gain: g, [H].

    Shapes: x [B, D], state and result [B, H].

    >>> LayerNormRNNCell(3, 4)(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    """

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(input_size, hidden_size, *args, **kwargs)
        self.gain = self._ones(hidden_size)

    @override
    def _sum(self, x: Tensor, h: Tensor) -> Tensor:
        total = normalised(F.linear(x, self.weight_ih) + F.linear(h, self.weight_hh), self.gain)
        return total if self.bias_ih is None or self.bias_hh is None else total + self.bias_ih + self.bias_hh


class LayerNormLSTMCell(_Normalised, LSTMCell):
    """LSTM with layer normalisation (Ba et al. 2016).

        a_t = LN(W x_t; g) + b + LN(U h_{t-1}; g') + b'    over all four gates at once, in the order i, f, g, o
        c_t = f_t c_{t-1} + i_t tanh(a_g)
        h_t = o_t tanh(LN(c_t; g_c) + b_c)

    Without normalisation of the cell itself, the carousel stays as it is. See `Cell` for the arguments.

    Attributes:
        gain_ih: g, [4 * H].
        gain_hh: g', [4 * H].
        gain_c: g_c, [H].
        bias_c: b_c, [H], or None.

    Shapes: x [B, D]; state and result (h, c), [B, H] each.

    >>> h, c = LayerNormLSTMCell(3, 4)(torch.ones(2, 3))
    >>> h.shape, c.shape
    (torch.Size([2, 4]), torch.Size([2, 4]))
    """

    bias_c: nn.Parameter | None

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **kwargs: Any) -> None:
        super().__init__(input_size, hidden_size, bias, **kwargs)
        self.gain_ih = self._ones(4 * hidden_size)
        self.gain_hh = self._ones(4 * hidden_size)
        self.gain_c = self._ones(hidden_size)
        shift = nn.Parameter(torch.zeros_like(self.gain_c)) if bias else None
        self.register_parameter("bias_c", shift)

    @override
    def _sum(self, x: Tensor, h: Tensor) -> Tensor:
        from_input = normalised(F.linear(x, self.weight_ih), self.gain_ih, self.bias_ih)
        return from_input + normalised(F.linear(h, self.weight_hh), self.gain_hh, self.bias_hh)

    @override
    def _read(self, c: Tensor) -> Tensor:
        return torch.tanh(normalised(c, self.gain_c, self.bias_c))


class LayerNormGRUCell(_Normalised, GRUCell):
    """GRU with layer normalisation (Ba et al. 2016), reset after the product.

        r_t, z_t = sigmoid(LN(W_rz x_t; g_rz) + b_rz + LN(U_rz h_{t-1}; g'_rz) + b'_rz)    over both gates at once
        n_t = tanh(LN(W_n x_t; g_n) + b_n + r_t (LN(U_n h_{t-1}; g'_n) + b'_n))
        h_t = z_t h_{t-1} + (1 - z_t) n_t

    The paper's z is our 1 - z. See `Cell` for the arguments.

    Attributes:
        gain_ih: g, [3 * H], in the order of the blocks.
        gain_hh: g', [3 * H].

    Shapes: x [B, D], state and result [B, H].

    >>> LayerNormGRUCell(3, 4)(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **kwargs: Any) -> None:
        super().__init__(input_size, hidden_size, bias, "after", **kwargs)
        self.gain_ih = self._ones(3 * hidden_size)
        self.gain_hh = self._ones(3 * hidden_size)

    def _by_group(self, a: Tensor, gain: Tensor, shift: Tensor | None) -> Tensor:
        """LN over both gates together, and over the candidate separately."""
        sizes = (2 * self.hidden_size, self.hidden_size)
        parts = zip(a.split(sizes, -1), gain.split(sizes), strict=True)
        whole = torch.cat([normalised(part, gains) for part, gains in parts], -1)
        return whole if shift is None else whole + shift

    @override
    def _from_input(self, x: Tensor) -> Tensor:
        return self._by_group(F.linear(x, self.weight_ih), self.gain_ih, self.bias_ih)

    @override
    def _from_state(self, h: Tensor) -> Tensor:
        return self._by_group(F.linear(h, self.weight_hh), self.gain_hh, self.bias_hh)
