"""Finds the modules of a model that `attach` observes."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from gradscope.attach.custom import default_spec, find_cells, find_sequences
from gradscope.attach.find import find_layers
from gradscope.attach.signature import state_arguments
from gradscope.capture.cell import Cell
from gradscope.capture.positions import SequenceModule
from gradscope.private import inner_module
from gradscope.types import CellSpec

DESCRIBED = (
    "mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size",
    "nonlinearity",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Watched:
    """A model and its observed modules.

    Attributes:
        model: without the wrapper of `torch.compile`.
        layers: torch's layers and cells, and custom cells, by qualified name.
        own: custom cells and modules observed by position, with instructions.
    """

    model: nn.Module
    layers: dict[str, nn.Module]
    own: list[Cell | SequenceModule]

    @property
    def classes(self) -> dict[str, str]:
        """Class of every observed module, by name."""
        classes = {name: type(layer).__name__ for name, layer in self.layers.items()}
        return classes | {one.name: type(one.module).__name__ for one in self.own}

    @property
    def described(self) -> dict[str, dict[str, Any]]:
        """Class and sizes of each layer."""
        return {name: _describe(layer) for name, layer in self.layers.items()}


def find_watched(
    model: nn.Module,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    cells: Mapping[type[nn.Module], CellSpec] | Sequence[type[nn.Module]] | None,
    positions: Mapping[str, int] | None,
) -> Watched:
    """Find the modules to observe; see `attach` for the arguments.

    Raises:
        AttachError: there is none, or an argument is unusable.
    """
    model = inner_module(model)
    specs = find_cells(model, cells)
    sequences = find_sequences(model, positions)
    layers = find_layers(model, include, exclude, specs, optional=bool(sequences))
    own: list[Cell | SequenceModule] = [
        _cell(name, layers[name], spec, cells) for name, spec in specs.items() if name in layers
    ]
    own += [SequenceModule(name, weakref.ref(model.get_submodule(name)), dim) for name, dim in sequences.items()]
    return Watched(model, layers, own)


def _cell(name: str, module: nn.Module, spec: CellSpec, cells: Iterable[type] | None) -> Cell:
    named = any(isinstance(module, kind) for kind in cells or ())
    return Cell(
        name, weakref.ref(module), default_spec(module, spec), state_arguments(type(module), spec), explicit=named
    )


def _describe(layer: nn.Module) -> dict[str, Any]:
    known = {name: getattr(layer, name) for name in DESCRIBED if hasattr(layer, name)}
    return {"class": type(layer).__name__, **known}
