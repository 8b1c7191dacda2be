"""A chain of calls of a cell that is not torch's, in canonical layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradscope.capture.cell import Cell
from gradscope.capture.cell_call import CellSnapshot
from gradscope.capture.chain import Chain
from gradscope.capture.join import Gradients, Places, direct_gradients, find_places, link_factor, total_gradient
from gradscope.capture.snapshot import tolerance
from gradscope.types import GateKind, Recurrence

TANH = frozenset({"candidate", "hidden"})


class ObservedCell(Gradients, Protocol):
    """A call of a cell, and the gradients that have arrived at its results."""

    snapshot: CellSnapshot


class _Steps:
    """The calls of a chain, to be run again at any of their rows; see `Recurrence.step`."""

    def __init__(self, cell: Cell, snapshots: list[CellSnapshot], places: Places) -> None:
        self.cell, self.snapshots, self.places = cell, snapshots, places
        self.widths = [_width(snapshots, p) for p in range(len(snapshots[0].parts))]
        self.groups = _alike(snapshots)
        self.arguments = [self.rows(group) for group in self.groups]
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

    def rows(self, numbers: Sequence[int]) -> list[Tensor]:
        """Arguments of calls, one call's rows behind the other's."""
        parts = [self.snapshots[n].arguments.rows for n in numbers]
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def __call__(self, times: Tensor, sequences: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
        """Run the cell at chosen timesteps and sequences."""
        where = self.places.index[times, sequences].cpu()
        found: list[list[Tensor]] = []
        order: list[Tensor] = []
        for number in self.group[where].unique().tolist():
            chosen = (self.group[where] == number).nonzero().flatten()
            order.append(chosen)
            here = chosen.to(times.device)
            found.append(self._run(number, self.local[where[chosen]], [s[here] for s in state]))
        if len(found) == 1:
            return found[0]
        back = torch.cat(order).argsort().to(times.device)
        return [torch.cat(part)[back] for part in zip(*found, strict=True)]

    def _run(self, number: int, local: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
        snapshot = self.snapshots[self.groups[number][0]]
        like = [g.shape[1:] for g in snapshot.given]
        parts = [s[:, : shape.numel()].reshape(len(s), *shape) for s, shape in zip(state, like, strict=True)]
        rows = [row[local.to(row.device)] for row in self.arguments[number]]
        new = self.cell.run(snapshot, rows, parts)
        return [_padded(r.flatten(1), width) for r, width in zip(new, self.widths, strict=True)]

    def each(self, function: Callable[..., Any]) -> list[tuple[list[int], Any]]:
        """A function of the cell at all rows, by groups of alike calls: numbers of the calls, and what it gave."""
        found = list[tuple[list[int], Any]]()
        for group, rows in zip(self.groups, self.arguments, strict=True):
            parts = range(len(self.snapshots[0].parts))
            state = [torch.cat([self.snapshots[n].given[p] for n in group]) for p in parts]
            found.append((group, function(self.snapshots[group[0]], rows, state)))
        return found


def _alike(snapshots: Sequence[CellSnapshot]) -> list[list[int]]:
    """Calls that differ in their rows only."""
    found: list[list[int]] = []
    for number, snapshot in enumerate(snapshots):
        for group in reversed(found):
            if snapshots[group[0]].alike(snapshot):
                group.append(number)
                break
        else:
            found.append([number])
    return found


def join_cells(cell: Cell, chain: Chain, calls: Sequence[ObservedCell], factor: Tensor | float = 1.0) -> Recurrence:
    """The canonical form of a chain of calls of a cell.

    Args:
        cell: whose.
        chain: its calls by number.
        calls: all of the cell.
        factor: what the loss was multiplied by.
    """
    cell.renew()
    mine = [_settled(calls[number]) for number in chain.calls]
    taken = [call.snapshot for call in mine]
    device = taken[0].returned[0].device
    places = find_places(chain, [call.lengths for call in mine], device)
    parts = range(len(taken[0].returned))
    kind = torch.float64 if any(s.returned[0].dtype == torch.float64 for s in taken) else torch.float32

    blank = [[torch.zeros_like(s.returned[p].flatten(1), dtype=kind).unsqueeze(0) for s in taken] for p in parts]
    arrived = [[(c.gradients[c.slot(p)],) for c in mine] for p in parts]
    direct = [direct_gradients(chain, mine, p, arrived[p], blank[p], factor) for p in parts]
    totals = [[total_gradient(c, c.slot(p), b, factor) for c, b in zip(mine, blank[p], strict=True)] for p in parts]
    steps = _Steps(cell, taken, places)
    found = _of_spec(steps, kind)

    def spread(rows: Sequence[Tensor], part: int) -> Tensor:
        return places.by_time([_padded(r.to(kind), steps.widths[part]) for r in rows])

    returned = tuple(spread([s.returned[p].flatten(1).unsqueeze(0) for s in taken], p) for p in parts)
    given = tuple(spread([s.given[p].flatten(1).unsqueeze(0) for s in taken], p) for p in parts)
    return Recurrence(
        step=steps,
        lengths=places.lengths,
        starts=torch.tensor([track.start for track in chain.tracks], device=device),
        given=given,
        returned=returned,
        direct=tuple(map(spread, direct, parts)),
        totals=tuple(map(spread, totals, parts)),
        links=_links(steps, mine, given, returned),
        gates=found.gates,
        blocks=found.blocks,
        transition=found.transition,
        tolerance=max(tolerance(s.precision, device) for s in taken),
        widths=_widths(blank, steps.widths, places),
        reason=found.reason,
    )


def _settled(call: ObservedCell) -> ObservedCell:
    """A call of which is known what its state is: of a state of one tensor nothing comes from within."""
    if len(call.snapshot.parts) == 1:
        call.inside = [None for _ in call.inside]
    return call


def _width(snapshots: Sequence[CellSnapshot], part: int) -> int:
    """The most units that a part of the state has, as it was given or returned."""
    return max(x[part].shape[1:].numel() for s in snapshots for x in (s.given, s.returned))


def _padded(rows: Tensor, width: int) -> Tensor:
    """Filled up with zeros, where the width of the state changes."""
    missing = width - rows.shape[-1]
    return nn.functional.pad(rows, (0, missing)) if missing else rows


def _widths(blank: list[list[Tensor]], widths: Sequence[int], places: Places) -> tuple[Tensor, ...] | None:
    """Sizes of the parts of the state as they were returned; None where these stay the same."""
    if all(row.shape[-1] == width for part, width in zip(blank, widths, strict=True) for row in part):
        return None
    sizes = [[row.new_full((*row.shape[:2], 1), row.shape[-1]) for row in part] for part in blank]
    return tuple(places.by_time(part).squeeze(-1).clamp(min=1) for part in sizes)


def _links(
    steps: _Steps, calls: Sequence[ObservedCell], given: tuple[Tensor, ...], returned: tuple[Tensor, ...]
) -> tuple[Tensor, ...] | None:
    """What the loop multiplied each part of the state by; None where it handed on everything as it was."""
    like = [[c.snapshot.given[p].flatten(1).to(g.dtype) for c in calls] for p, g in enumerate(given)]
    factors = [[link_factor(c, p, x) for c, x in zip(calls, part, strict=True)] for p, part in enumerate(like)]
    valid = steps.places.valid[1:].unsqueeze(-1)
    same = all(bool(((g[1:] == r[:-1]) | ~valid).all()) for g, r in zip(given, returned, strict=True))
    if same and all(f is None for part in factors for f in part):
        return None
    found = list[Tensor]()
    for part, shapes, width in zip(factors, like, steps.widths, strict=True):
        rows = [torch.ones_like(x) if f is None else f for f, x in zip(part, shapes, strict=True)]
        found.append(steps.places.at_begins([_padded(row, width) for row in rows], 1.0))
    return tuple(found)


@dataclass(slots=True)
class _OfSpec:
    """What the functions of a spec gave, and why not."""

    gates: dict[str, tuple[Tensor, GateKind]] = field(default_factory=dict[str, "tuple[Tensor, GateKind]"])
    blocks: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    transition: Tensor | None = None
    reason: str = ""


def _of_spec(steps: _Steps, kind: torch.dtype) -> _OfSpec:
    """Gates, blocks and transition of a cell; the first that cannot be given is named."""
    found = _OfSpec()
    for name, take in (("gates", _gates), ("blocks", _blocks), ("transition", _transition)):
        try:
            setattr(found, name, take(steps, kind))
        except Exception as error:
            found.reason = found.reason or f"CellSpec.{name}: {type(error).__name__}: {error}"
    return found


def _gates(steps: _Steps, kind: torch.dtype) -> dict[str, tuple[Tensor, GateKind]]:
    if steps.cell.spec.gates is None:
        return {}
    rows: dict[str, list[Tensor]] = {}
    for group, values in steps.each(steps.cell.gates):
        counts = [len(steps.snapshots[n].returned[0]) for n in group]
        for name, value in values.items():
            if not isinstance(value, Tensor) or value.dim() < 2 or len(value) != sum(counts):
                raise ValueError(f"{name!r} has to be a tensor [B, H]")
            parts = rows.setdefault(name, [torch.empty(0, device="cpu")] * len(steps.snapshots))
            for number, part in zip(group, value.detach().flatten(1).split(counts), strict=True):
                parts[number] = part.unsqueeze(0).to(kind)
    kinds = steps.cell.spec.kinds
    default: dict[str, GateKind] = {name: "tanh" if name in TANH else "sigmoid" for name in rows}
    return {name: (steps.places.by_time(parts), kinds.get(name, default[name])) for name, parts in rows.items()}


def _transition(steps: _Steps, kind: torch.dtype) -> Tensor | None:
    if steps.cell.spec.transition is None:
        return None
    first = steps.snapshots[0]
    if len(first.parts) > 1:
        raise ValueError(f"a state of one tensor has a transition; this one has {len(first.parts)}")
    pairs = first.complex[first.parts[0]]
    shape = first.returned[0].shape[1 : -1 if pairs else None]
    parts: list[Tensor] = [torch.empty(0, device="cpu")] * len(steps.snapshots)
    for group, value in steps.each(steps.cell.transition):
        counts = [len(steps.snapshots[n].returned[0]) for n in group]
        wide = value.detach().to(kind.to_complex() if pairs or value.is_complex() else kind)
        full = wide.expand(sum(counts), *shape).flatten(1)
        for number, part in zip(group, full.split(counts), strict=True):
            parts[number] = part.unsqueeze(0)
    return steps.places.by_time(parts)


def _blocks(steps: _Steps, kind: torch.dtype) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    weights = steps.snapshots[0].weights
    for name, gates in steps.cell.spec.blocks.items():
        for gate, block in zip(gates, weights[name].to(kind).unflatten(0, (len(gates), -1)), strict=True):
            found[gate] = block
    return found
