"""Linear and Elman networks: the state itself is the only gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from gradscope.cells.base import Cell, masked
from gradscope.errors import GradscopeError

NONLINEARITIES = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu}


class LinearCell(Cell):
    """Linear RNN.

        h_t = U h_{t-1} + W x_t

    Its Jacobian is U at every step: k steps multiply gradients by U^T k times, so they vanish or explode along each
    eigenvector as |lambda|^k. With `input_size=0`, or x = None, it runs on its own: h_t = U h_{t-1}.

    See `Cell` for the arguments; `bias` is False by default.

    Shapes: x [B, D], state and result [B, H].

    >>> cell = LinearCell(0, 2)
    >>> cell.weight_hh.data = torch.tensor([[0.0, 2.0], [0.5, 0.0]])
    >>> cell(None, torch.tensor([1.0, 1.0])).tolist()
    [2.0, 0.5]
    """

    blocks = ("hidden",)

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = False, *, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device=device, dtype=dtype)

    @override
    def forward(self, x: Tensor | None, state: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if x is None:
            if state is None:
                raise GradscopeError("LinearCell has neither input nor state: pass a state, [B, H]")
            return F.linear(masked(state, mask), self.weight_hh, self.bias_hh)
        h = self.initial_state(x) if state is None else state
        return F.linear(x, self.weight_ih, self.bias_ih) + F.linear(masked(h, mask), self.weight_hh, self.bias_hh)

    @override
    def gates(self, x: Tensor | None, state: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"hidden": self.forward(x, state, mask)}


class RNNCell(Cell):
    """Simple recurrent network (Elman 1990), the twin of `nn.RNNCell`.

        h_t = f(W x_t + b + U h_{t-1} + b'),  f = tanh, ReLU or GELU (Hendrycks & Gimpel 2016)

    `nonlinearity` is `"tanh"`, `"relu"` or `"gelu"`; see `Cell` for the other arguments.

    Raises:
        GradscopeError: there is no such nonlinearity.

    Shapes: x [B, D], state and result [B, H].

    >>> cell = RNNCell(3, 4, nonlinearity="gelu")
    >>> cell(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    """

    blocks = ("hidden",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if nonlinearity not in NONLINEARITIES:
            known = ", ".join(map(repr, NONLINEARITIES))
            raise GradscopeError(f"RNNCell: nonlinearity={nonlinearity!r} is not known; choose one of {known}")
        super().__init__(input_size, hidden_size, bias, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def _sum(self, x: Tensor, h: Tensor) -> Tensor:
        """W x + b + U h + b', [B, H]."""
        return F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)

    @override
    def forward(self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        h = self.initial_state(x) if state is None else state
        return NONLINEARITIES[self.nonlinearity](self._sum(x, masked(h, mask)))

    @override
    def gates(self, x: Tensor, state: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"hidden": self.forward(x, state, mask)}

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, nonlinearity={self.nonlinearity!r}"
