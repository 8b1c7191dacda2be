"""Connections from a layer's input to its output, around the layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from gradscope.errors import GradscopeError


class Plain(nn.Module):
    """y = H(x): no connection."""

    @override
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output y, [T, B, H], for its input x."""
        return y


class Residual(nn.Module):
    """y = x + H(x) (He et al. 2016): the gradient passes the layer unchanged, and the layer adds to it."""

    @override
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Input x and the layer's output y, [T, B, H] each."""
        return x + y


class Highway(nn.Module):
    """y = H(x) T(x) + x (1 - T(x)),  T(x) = sigmoid(W_T x + b_T)  (Srivastava, Greff & Schmidhuber 2015).

    b_T starts at -2, so that the layer begins by carrying 88 % of its input.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(size, size)
        nn.init.constant_(self.transform.bias, -2.0)

    @override
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Input x and the layer's output y = H(x), [T, B, H] each."""
        t = torch.sigmoid(self.transform(x))
        return y * t + x * (1 - t)


def skips(kind: str | None, sizes: list[int], output_size: int) -> nn.ModuleList:
    """Make one connection per layer; a plain one if the layer's input and output differ in size.

    Raises:
        GradscopeError: there is no such kind, or there is no layer where it fits.
    """
    if kind not in (None, "residual", "highway"):
        raise GradscopeError(f'Recurrent: skip={kind!r} is not known; choose "residual", "highway" or None')
    if kind and output_size not in sizes:
        raise GradscopeError(
            f"Recurrent: skip={kind!r} adds a layer's input to its output, but no layer's input has the {output_size} "
            f"units of its output (they have {sizes}): add a layer, or set input_size={output_size}"
        )
    return nn.ModuleList(_skip(kind if size == output_size else None, size) for size in sizes)


def _skip(kind: str | None, size: int) -> nn.Module:
    if kind == "highway":
        return Highway(size)
    return Residual() if kind == "residual" else Plain()
