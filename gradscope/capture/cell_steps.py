"""The calls of a chain of cells, run again at any of their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradscope.capture.cell import Cell
from gradscope.capture.cell_call import CellSnapshot
from gradscope.capture.places import Places, padded


class CellSteps:
    """Runs the calls of a chain again, at any of their rows: the `step` of a `Recurrence`."""

    def __init__(self, cell: Cell, snapshots: list[CellSnapshot], places: Places) -> None:
        self.cell, self.snapshots, self.places = cell, snapshots, places
        self.widths = [_width(snapshots, p) for p in range(len(snapshots[0].parts))]
        self.groups = _alike(snapshots)
        self.arguments = [self._rows(group) for group in self.groups]
        counts = [len(s.returned[0]) for s in snapshots]
        self.group = torch.zeros(sum(counts), dtype=torch.long, device="cpu")
        self.local = torch.zeros(sum(counts), dtype=torch.long, device="cpu")
        starts = [sum(counts[:n]) for n in range(len(counts))]
        for number, group in enumerate(self.groups):
            offset = 0
            for call in group:
                here = slice(starts[call], starts[call] + counts[call])
                self.group[here], self.local[here] = number, torch.arange(offset, offset + counts[call], device="cpu")
                offset += counts[call]

    def _rows(self, numbers: Sequence[int]) -> list[Tensor]:
        """Arguments of calls, their rows concatenated."""
        parts = [self.snapshots[n].arguments.rows for n in numbers]
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def __call__(self, times: Tensor, sequences: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
        """Run the cell at these timesteps and sequences."""
        where = self.places.index[times, sequences].cpu()
        results: list[list[Tensor]] = []
        order: list[Tensor] = []
        for number in self.group[where].unique().tolist():
            chosen = (self.group[where] == number).nonzero().flatten()
            order.append(chosen)
            here = chosen.to(times.device)
            results.append(self._run(number, self.local[where[chosen]], [s[here] for s in state]))
        if len(results) == 1:
            return results[0]
        back = torch.cat(order).argsort().to(times.device)
        return [torch.cat(part)[back] for part in zip(*results, strict=True)]

    def _run(self, number: int, local: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
        snapshot = self.snapshots[self.groups[number][0]]
        like = [g.shape[1:] for g in snapshot.previous]
        parts = [s[:, : shape.numel()].reshape(len(s), *shape) for s, shape in zip(state, like, strict=True)]
        rows = [row[local.to(row.device)] for row in self.arguments[number]]
        new = self.cell.run(snapshot, rows, parts)
        return [padded(r.flatten(1), width) for r, width in zip(new, self.widths, strict=True)]

    def each(self, function: Callable[..., Any]) -> list[tuple[list[int], Any]]:
        """Apply a function of the cell to all rows: the calls of each group of alike calls, and their result."""
        results = list[tuple[list[int], Any]]()
        for group, rows in zip(self.groups, self.arguments, strict=True):
            parts = range(len(self.snapshots[0].parts))
            state = [torch.cat([self.snapshots[n].previous[p] for n in group]) for p in parts]
            results.append((group, function(self.snapshots[group[0]], rows, state)))
        return results

    def spread(self, rows: Sequence[Tensor], part: int, kind: torch.dtype) -> Tensor:
        """Place a part of the state, [1, n, F] per call, by timestep and sequence: [T, B, F]."""
        return self.places.by_time([padded(r.to(kind), self.widths[part]) for r in rows])


def _alike(snapshots: Sequence[CellSnapshot]) -> list[list[int]]:
    """Group calls that differ only in their rows."""
    groups: list[list[int]] = []
    for number, snapshot in enumerate(snapshots):
        for group in reversed(groups):
            if snapshots[group[0]].alike(snapshot):
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def _width(snapshots: Sequence[CellSnapshot], part: int) -> int:
    """The largest width of a part of the state, over inputs and results."""
    return max(x[part].shape[1:].numel() for s in snapshots for x in (s.previous, s.returned))
