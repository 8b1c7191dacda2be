"""The canonical layout: the chosen sequences, time first, padded with zeros at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.types import KernelCall


@dataclass(frozen=True, slots=True)
class Dense:
    """A padded batch, [T, B, .] or [B, T, .].

    Attributes:
        columns: indices of the chosen sequences, [n]; None for all.
        lengths: [n].
        batch_first: True for [B, T, .].
    """

    columns: Tensor | None
    lengths: Tensor
    batch_first: bool

    def select(self, x: Tensor) -> Tensor:
        """The chosen sequences, a copy, [T, n, .]."""
        return self.time_first(x.transpose(0, 1) if self.batch_first else x)

    def time_first(self, x: Tensor) -> Tensor:
        """The chosen sequences of a tensor that is time first already, a copy."""
        return x.clone(memory_format=torch.contiguous_format) if self.columns is None else x[:, self.columns]


@dataclass(frozen=True, slots=True)
class Packed:
    """The data of a `PackedSequence`, [N, .], read by row and never unpacked.

    Attributes:
        columns: indices of the chosen sequences in the order of the pack, [n]; None for all.
        lengths: [n].
        rows: row of the data for each (t, sequence), [T, n]; 0 in the padding.
        valid: [T, n].
    """

    columns: Tensor | None
    lengths: Tensor
    rows: Tensor
    valid: Tensor

    def select(self, x: Tensor) -> Tensor:
        """The chosen sequences, a copy, [T, n, .]."""
        return x[self.rows].masked_fill_(~self.valid.unsqueeze(-1), 0)


@dataclass(frozen=True, slots=True)
class Single:
    """One timestep of a cell, [B, .].

    Attributes:
        columns: indices of the chosen sequences, [n]; None for all.
        lengths: ones, [n].
    """

    columns: Tensor | None
    lengths: Tensor

    def select(self, x: Tensor) -> Tensor:
        """The chosen sequences, a copy, [1, n, .]."""
        return (x.clone() if self.columns is None else x[self.columns]).unsqueeze(0)


Layout = Dense | Packed | Single


def choose_sequences(batch: int, limit: int | None) -> list[int] | None:
    """Evenly spaced indices of at most `limit` of `batch` sequences; None for all."""
    if limit is None or batch <= limit:
        return None
    if limit == 1:
        return [0]
    return [int(i * (batch - 1) / (limit - 1) + 0.5) for i in range(limit)]


def copy_states(states: Sequence[Tensor], limit: int | None, rows: int) -> tuple[Tensor, ...]:
    """Copy the parts of a state for the analysed sequences, as [S, n, ...] each.

    Args:
        states: the parts.
        limit: the most sequences to analyse; None for all.
        rows: the dimension of the sequences, 0 of a cell's state and 1 of a layer's.
    """
    chosen = choose_sequences(states[0].shape[rows], limit)
    columns = slice(None) if chosen is None else torch.tensor(chosen, device=states[0].device)
    parts = [part.detach().unsqueeze(0) if rows == 0 else part.detach() for part in states]
    return tuple(part[:, columns].clone() for part in parts)


def layout_of(call: KernelCall, chosen: Sequence[int] | None) -> Layout:
    """The layout of a call's tensors and the sequences to analyse.

    Args:
        call: the arguments of the kernel.
        chosen: indices of the sequences; None for all.
    """
    device = call.input.device
    columns = None if chosen is None else torch.tensor(chosen, device=device, dtype=torch.long)
    count = call.batch if chosen is None else len(chosen)
    if call.cell:
        return Single(columns, torch.ones(count, dtype=torch.long, device=device))
    if call.batch_sizes is None:
        steps = call.input.shape[1 if call.batch_first else 0]
        return Dense(columns, torch.full((count,), steps, device=device), call.batch_first)
    sizes = call.batch_sizes
    order = torch.arange(count, device="cpu") if chosen is None else torch.tensor(chosen, device="cpu")
    valid = sizes.unsqueeze(1) > order
    rows = torch.where(valid, (sizes.cumsum(0) - sizes).unsqueeze(1) + order, 0)
    return Packed(columns, valid.sum(0).to(device), rows.to(device), valid.to(device))
