"""The base class of all cells: parameters, named and ordered as in torch's cells, and the zero state.

Notation, here and in the cells: B sequences, D input, H hidden, G gates; W = `weight_ih`, U = `weight_hh`,
b = `bias_ih`, b' = `bias_hh`; x_t [B, D] is the input and h_{t-1} [B, H] the state before. Products of gates and states
are elementwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Cell(nn.Module, ABC):
    """One step of a recurrence: `cell(x, state) -> state`, as torch's cells are called.

    For a cell of your own, name its gates in `blocks`, and define `forward` and `gates`. It then works in `Recurrent`
    and with the initialisers. A step writes nothing in place and does not branch on values, so that `torch.func` can
    differentiate it and `vmap` batch it over time.

    Args:
        input_size: D.
        hidden_size: H.
        bias: True for `bias_ih` and `bias_hh`.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Attributes:
        blocks: the gates in the order of their blocks of H rows in `weight_ih`, `weight_hh` and the biases.
        recurrent: names of the parameters that hold U.
        weight_ih: W, [G * H, D].
        weight_hh: U, [G * H, H].
        bias_ih: b, [G * H], or None.
        bias_hh: b', [G * H], or None.
    """

    blocks: ClassVar[tuple[str, ...]]
    recurrent: ClassVar[tuple[str, ...]] = ("weight_hh",)

    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, *, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        rows = len(self.blocks) * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size, device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size, device=device, dtype=dtype))
        for name in ("bias_ih", "bias_hh"):
            values = nn.Parameter(torch.empty(rows, device=device, dtype=dtype)) if bias else None
            self.register_parameter(name, values)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters from U(-1/sqrt(H), 1/sqrt(H)), in torch's order: equal seeds give equal networks."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def initial_state(self, x: Tensor) -> Any:
        """The zero state for an input [B, D]: [B, H], or a tuple of such tensors."""
        return x.new_zeros(*x.shape[:-1], self.hidden_size)

    @abstractmethod
    def forward(self, x: Any, state: Any = None, mask: Tensor | None = None) -> Any:
        """Take one step.

        Args:
            x: input, [B, D], or [D] without a batch.
            state: [B, H] or a tuple of such tensors; zeros if absent.
            mask: multiplies h_{t-1} where it enters U, [B, H]: recurrent dropout.

        Returns:
            The new state, in the form of `state`. Its first, or only, tensor is the cell's output.
        """

    @abstractmethod
    def gates(self, x: Any, state: Any, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Every gate of this step after its nonlinearity, and the new `hidden` state, [B, H] each."""

    def extra_repr(self) -> str:
        """The sizes, for `repr`."""
        return f"{self.input_size}, {self.hidden_size}" + ", bias=False" * (not self.bias)


def masked(h: Tensor, mask: Tensor | None) -> Tensor:
    """The state as U sees it."""
    return h if mask is None else h * mask
