"""Users' cells: found by their class or their signature, and observed at a method of their class.

The seam replaces the method of the class, not of the module: it receives `cell(...)` and `cell.forward(...)`, and
copies and pickles of the user's modules stay clean.
"""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace as replace_fields
from fnmatch import fnmatchcase
from typing import Any, Protocol

from torch import nn
from torch.compiler import is_compiling

from gradscope.attach.seam import Handle, Restore, Seam, replace
from gradscope.attach.signature import SCRIPTED, is_cell, is_scripted, state_arguments
from gradscope.errors import AttachError
from gradscope.private import is_tracing
from gradscope.types import CellSpec, GateKind


class CallListener(Protocol):
    """Receives calls of modules."""

    def before_call(self, module: nn.Module, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a method begins. `after_call` receives the result as its token, unless it is None."""
        ...

    def after_call(self, token: Any, result: Any) -> None:
        """The call of this token has returned."""
        ...


def find_cells(model: nn.Module, cells: Mapping[type, CellSpec] | Sequence[type] | None) -> dict[str, CellSpec]:
    """Find the cells of a model by qualified name: modules of these classes, and modules with the signature of a cell.

    Raises:
        AttachError: an entry is no class of modules, the model has no module of a class, or it is scripted.
    """
    specs = _checked(cells)
    named = dict(model.named_modules())
    explicit = {name: specs[kind] for name, m in named.items() for kind in type(m).__mro__[:-1] if kind in specs}
    for name in explicit:
        if is_scripted(named[name]):
            raise AttachError(SCRIPTED.format(kind=type(named[name]).__name__))
    for kind in specs:
        if not any(isinstance(named[name], kind) for name in explicit):
            raise AttachError(f"cells: the model has no module of the class {kind.__name__}. Leave it out of cells=.")
    alike = {name for name, module in named.items() if name not in explicit and _looks_like_cell(module)}
    alike = {name for name in alike if not any(_within(name, other) or _within(other, name) for other in explicit)}
    inner = {name: CellSpec() for name in alike if not any(_within(other, name) for other in alike)}
    return {name: {**explicit, **inner}[name] for name in named if name in explicit or name in inner}


def find_recurrent(model: nn.Module) -> dict[str, nn.Module]:
    """Find torch's recurrent layers and cells in a model, and cells by their signature, by qualified name."""
    named = dict(model.named_modules())
    cells = find_cells(model, None)
    part = inside(named, cells)
    kinds = (nn.RNNBase, nn.RNNCellBase)
    return {name: m for name, m in named.items() if name in cells or (name not in part and isinstance(m, kinds))}


def find_sequences(model: nn.Module, positions: Mapping[str, int] | None) -> dict[str, int]:
    """Find the modules of `positions=`, by qualified name, with the time dimension of their output.

    Raises:
        AttachError: a pattern matches no module, or a dimension is neither 0 nor 1.
    """
    if not isinstance(positions, Mapping | None) or not all(isinstance(pattern, str) for pattern in positions or ()):
        raise AttachError(f"positions={positions!r:.80}: expected pattern -> time dimension, as in {{'encoder': 1}}.")
    names = [name for name, _ in model.named_modules()]
    sequences: dict[str, int] = {}
    for pattern, dim in (positions or {}).items():
        if dim not in (0, 1):
            raise AttachError(f"positions: {pattern!r} -> {dim!r}: the time dimension of the output is 0 or 1.")
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            near = difflib.get_close_matches(pattern, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise AttachError(f"positions: {pattern!r} matches no module of the model.{hint}")
        sequences.update(dict.fromkeys(matched, dim))
    return sequences


def inside(names: Iterable[str], cells: Iterable[str]) -> set[str]:
    """The names of modules that are part of a cell, or a cell."""
    known = list(cells)
    return {name for name in names if any(name == cell or _within(name, cell) for cell in known)}


def _within(inner: str, outer: str) -> bool:
    """True if a module is part of another one."""
    return inner != outer and (outer == "" or inner.startswith(f"{outer}."))


def _checked(cells: Mapping[type, CellSpec] | Sequence[type] | None) -> dict[type, CellSpec]:
    if cells is None:
        return {}
    if not isinstance(cells, Iterable):
        raise AttachError(f"cells={cells!r:.80}: expected {{MyCell: gradscope.CellSpec()}}, or a list of classes.")
    pairs = list(cells.items()) if isinstance(cells, Mapping) else [(kind, CellSpec()) for kind in cells]
    for kind, spec in pairs:
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise AttachError(f"cells: {kind!r:.80} is not a class of modules. Pass {{MyCell: gradscope.CellSpec()}}.")
        if not isinstance(spec, CellSpec):
            raise AttachError(f"cells: {kind.__name__} needs a gradscope.CellSpec; got {type(spec).__name__}.")
        state_arguments(kind, spec)
    return dict(pairs)


def looks_recurrent(module: nn.Module) -> bool:
    """True for one of torch's recurrent layers or cells, or a module with the signature of a cell."""
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase)) or _looks_like_cell(module)


def _looks_like_cell(module: nn.Module) -> bool:
    """True for a user's class with `forward(x, state)` or `forward(x, h, c)`, and no recurrent layer in it."""
    kind = type(module)
    if kind.__module__.partition(".")[0] == "torch" or isinstance(module, nn.RNNBase) or is_scripted(module):
        return False
    if isinstance(module, nn.RNNCellBase):
        return kind.forward not in (nn.RNNCell.forward, nn.LSTMCell.forward, nn.GRUCell.forward)
    if not is_cell(kind):
        return False
    inner = (m for m in module.modules() if m is not module)
    return not any(isinstance(m, (nn.RNNBase, nn.RNNCellBase)) for m in inner)


def default_spec(module: nn.Module, spec: CellSpec) -> CellSpec:
    """Complete a spec without gates from the cell itself, as with the cells of `gradscope.cells`.

    Reads the method `gates(x, state)`, and the tuples `blocks`, of gates, and `recurrent`, of parameters.
    """
    gates, blocks = getattr(module, "gates", None), getattr(module, "blocks", None)
    if spec.gates is not None or not callable(gates) or isinstance(gates, nn.Module):
        return spec
    names = getattr(module, "recurrent", ())
    tables = {name: tuple(blocks) for name in names} if isinstance(blocks, tuple) and isinstance(names, tuple) else {}
    kinds: dict[str, GateKind] = {"hidden": "relu"} if getattr(module, "nonlinearity", "") == "relu" else {}
    own: Any = type(module)
    return replace_fields(spec, gates=own.gates, blocks=spec.blocks or tables, kinds=spec.kinds or kinds)


def listen_to_calls(places: Iterable[tuple[nn.Module, str]], listener: CallListener) -> list[Handle[CallListener]]:
    """Register a listener for calls of these methods of the modules' classes."""
    kinds = dict.fromkeys((type(module), method) for module, method in places)
    return [_seam(kind, method).listen(listener) for kind, method in kinds]


def _has_own(kind: type, patched: type) -> bool:
    """True if a subclass has a listener of its own. FSDP derives a class from a watched module's; it has none."""
    return kind is not patched and any(seam.busy for seam in _SEAMS.get(kind, {}).values())


_SEAMS: weakref.WeakKeyDictionary[type, dict[str, Seam[CallListener]]] = weakref.WeakKeyDictionary()


def _seam(kind: type, method: str) -> Seam[CallListener]:
    seams = _SEAMS.setdefault(kind, {})
    if method not in seams:
        reference = weakref.ref(kind)

        def install() -> Restore:
            return replace((reference(), method, _around(reference, method)))

        seams[method] = Seam(install)
    return seams[method]


def _around(reference: weakref.ref[type], method: str) -> Callable[..., Any]:
    def around(original: Callable[..., Any], self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        kind = reference()
        if kind is None or _has_own(type(self), kind) or is_tracing() or is_compiling():
            return original(self, *args, **kwargs)
        armed = [handle.listener for handle in _SEAMS[kind][method].handles if handle.armed]
        tokens = [(each, each.before_call(self, method, args, kwargs)) for each in armed if each is not None]
        result = original(self, *args, **kwargs)
        for listener, token in tokens:
            if token is not None:
                listener.after_call(token, result)
        return result

    return around
