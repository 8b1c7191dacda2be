"""Gated recurrent unit, in both of its forms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from gradscope.cells.base import Cell, masked
from gradscope.errors import GradscopeError


class GRUCell(Cell):
    """GRU (Cho et al. 2014), the twin of `nn.GRUCell`.

        r_t = sigmoid(W_r x_t + b_r + U_r h_{t-1} + b'_r)
        z_t = sigmoid(W_z x_t + b_z + U_z h_{t-1} + b'_z)
        n_t =    tanh(W_n x_t + b_n + r_t (U_n h_{t-1} + b'_n))      reset="after"
        n_t =    tanh(W_n x_t + b_n + U_n (r_t h_{t-1}) + b'_n)      reset="before"
        h_t = z_t h_{t-1} + (1 - z_t) n_t

    Torch and cuDNN reset the candidate after the product with U_n, the paper before it. In all of them z = 1 keeps the
    state.

    `reset` is `"after"` or `"before"`; see `Cell` for the other arguments.

    Raises:
        GradscopeError: `reset` is neither.

    Shapes: x [B, D], state and result [B, H].

    >>> cell = GRUCell(3, 4, reset="before")
    >>> cell(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    """

    blocks = ("reset", "update", "candidate")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        reset: str = "after",
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if reset not in ("after", "before"):
            raise GradscopeError(f'GRUCell: reset={reset!r} is not known; choose "after" (as torch) or "before"')
        super().__init__(input_size, hidden_size, bias, device=device, dtype=dtype)
        self.reset = reset

    def _from_input(self, x: Tensor) -> Tensor:
        """W x + b, [B, 3 * H]."""
        return F.linear(x, self.weight_ih, self.bias_ih)

    def _from_state(self, h: Tensor) -> Tensor:
        """U h + b', [B, 3 * H]."""
        return F.linear(h, self.weight_hh, self.bias_hh)

    def _activations(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """r, z, n."""
        x_r, x_z, x_n = self._from_input(x).chunk(3, -1)
        h_r, h_z, h_n = self._from_state(h).chunk(3, -1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        inner = r * h_n if self.reset == "after" else self._from_state(r * h).chunk(3, -1)[2]
        return r, z, torch.tanh(x_n + inner)

    @override
    def forward(self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        h = self.initial_state(x) if state is None else state
        _, z, n = self._activations(x, masked(h, mask))
        return z * h + (1 - z) * n

    @override
    def gates(self, x: Tensor, state: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        r, z, n = self._activations(x, masked(state, mask))
        return {"reset": r, "update": z, "candidate": n, "hidden": self.forward(x, state, mask)}

    @override
    def extra_repr(self) -> str:
        return super().extra_repr() + ', reset="before"' * (self.reset == "before")
