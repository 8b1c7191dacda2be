"""What a user's `CellSpec` says of a cell: its gates, blocks of weights and transition, in canonical layout."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradscope.capture.cell_steps import CellSteps
from gradscope.types import GateKind

TANH = frozenset({"candidate", "hidden"})


@dataclass(slots=True)
class CellMeasures:
    """Results of the functions of a `CellSpec`; `reason` names the first that failed."""

    gates: dict[str, tuple[Tensor, GateKind]] = field(default_factory=dict[str, "tuple[Tensor, GateKind]"])
    blocks: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    transition: Tensor | None = None
    reason: str = ""


def measures_of(steps: CellSteps, kind: torch.dtype) -> CellMeasures:
    """Gates, blocks and transition of a cell, by its `CellSpec`."""
    measures = CellMeasures()
    for name, take in (("gates", _gates), ("blocks", _blocks), ("transition", _transition)):
        try:
            setattr(measures, name, take(steps, kind))
        except Exception as error:
            measures.reason = measures.reason or f"CellSpec.{name}: {type(error).__name__}: {error}"
    return measures


def _gates(steps: CellSteps, kind: torch.dtype) -> dict[str, tuple[Tensor, GateKind]]:
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


def _transition(steps: CellSteps, kind: torch.dtype) -> Tensor | None:
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


def _blocks(steps: CellSteps, kind: torch.dtype) -> dict[str, Tensor]:
    blocks: dict[str, Tensor] = {}
    weights = steps.snapshots[0].weights
    for name, gates in steps.cell.spec.blocks.items():
        for gate, block in zip(gates, weights[name].to(kind).unflatten(0, (len(gates), -1)), strict=True):
            blocks[gate] = block
    return blocks
