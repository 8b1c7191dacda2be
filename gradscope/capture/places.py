"""The calls of a chain, laid end to end: where each timestep of each sequence lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture.chain import Chain


@dataclass(frozen=True, slots=True)
class Places:
    """Rows of the calls' tensors, laid end to end, by timestep and sequence of the chain.

    Attributes:
        index: row in the calls' [T, n, .] tensors, flattened, [T, B]; 0 in the padding.
        valid: False in the padding, [T, B].
        lengths: timesteps of each sequence, [B].
        ends: for each call of each sequence: its last timestep, the sequence, its first timestep, and its row in the
            calls' [S, n, .] tensors, [N] each.
        first: that row of each sequence's first call, [B].
        last: that row of each sequence's last call, [B].
    """

    index: Tensor
    valid: Tensor
    lengths: Tensor
    ends: tuple[Tensor, Tensor, Tensor, Tensor]
    first: Tensor
    last: Tensor

    def by_time(self, parts: Sequence[Tensor]) -> Tensor:
        """Place [T, n, F] per call at its timesteps: [T, B, F], zeros in the padding."""
        rows = torch.cat([part.flatten(0, 1) for part in parts])
        return rows[self.index].masked_fill_(~self.valid.unsqueeze(-1), 0)

    def at_ends(self, parts: Sequence[Tensor]) -> Tensor:
        """Place [S, n, F] per call at its last timestep: [S, T, B, F], zeros elsewhere."""
        rows = torch.cat(list(parts), 1)
        end, sequence, _, row = self.ends
        placed = rows.new_zeros(rows.shape[0], *self.index.shape, rows.shape[2])
        placed[:, end, sequence] = rows[:, row]
        return placed

    def at_begins(self, parts: Sequence[Tensor], blank: float) -> Tensor:
        """Place [n, F] per call at its first timestep: [T, B, F], `blank` elsewhere."""
        rows = torch.cat(list(parts))
        _, sequence, begin, row = self.ends
        placed = rows.new_full((*self.index.shape, rows.shape[1]), blank)
        placed[begin, sequence] = rows[row]
        return placed


def padded(rows: Tensor, width: int) -> Tensor:
    """Pad rows with zeros to a width, for states whose width changes."""
    missing = width - rows.shape[-1]
    return nn.functional.pad(rows, (0, missing)) if missing else rows


def find_places(chain: Chain, lengths: Sequence[Sequence[int]], device: torch.device) -> Places:
    """Lay the calls of a chain end to end.

    Args:
        chain: a series of calls.
        lengths: timesteps of each row of each of its calls.
        device: of the result.
    """
    flat, first = [0], [0]
    for row in lengths:
        flat.append(flat[-1] + max(row, default=0) * len(row))
        first.append(first[-1] + len(row))
    columns = list[list[int]]()
    ends = list[tuple[int, int, int, int]]()
    for number, track in enumerate(chain.tracks):
        column = list[int]()
        for place, row in track.places:
            begin, count = len(column), len(lengths[place])
            column += [flat[place] + t * count + row for t in range(lengths[place][row])]
            if len(column) > begin:
                ends.append((len(column) - 1, number, begin, first[place] + row))
        columns.append(column)
    spans = [len(column) for column in columns]
    edges = [[first[place] + row for place, row in (track.places[0], track.places[-1])] for track in chain.tracks]

    def tensor(x: list[Any]) -> Tensor:
        return torch.tensor(x, device=device, dtype=torch.long)

    index = tensor([column + [0] * (max(spans) - len(column)) for column in columns]).T.contiguous()
    valid = torch.arange(len(index), device=device).unsqueeze(1) < tensor(spans)
    end, number, begin, row = tensor(ends).unbind(1)
    return Places(index, valid, tensor(spans), (end, number, begin, row), *tensor(edges).unbind(1))
