"""Finds the state among the arguments of a cell, and suggests a `CellSpec` where its signature does not tell."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

import torch
from torch import nn

from gradscope.errors import AttachError
from gradscope.types import CellSpec
from gradscope.types.names import part_called, states_called

SCRIPTED = (
    "{kind} is compiled by TorchScript, which runs without Python: gradscope cannot observe it. Set PYTORCH_JIT=0 in "
    "the environment of the training, and torch runs the same class as plain Python."
)
LOOP = (
    "If {kind}.forward loops over time itself, make the body of the loop a method of {kind}, `def step(self, x, h, c): "
    "... return h, c`, call `h, c = self.step(x, h, c)` in the loop, and pass "
    'cells={{{kind}: gradscope.CellSpec(method="step")}}.'
)

NUMBERED = re.compile(r"\d$|^[hc]_?n$", re.IGNORECASE)
"""Names of the first or last state of a whole layer."""


def arguments_of(kind: type, method: str = "forward") -> list[str]:
    """Names of the positional arguments of a method."""
    try:
        parameters = list(inspect.signature(getattr(kind, method)).parameters.values())[1:]
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def is_cell(kind: type) -> bool:
    """True if a class has the signature of a cell: its second argument is a state, with or without the third.

    Whole layers take their first state as `h_0`. With `c_0` beside it, and both required, the class is a cell.
    """
    names = arguments_of(kind)
    state = _second(names) if len(names) > 1 else ()
    if len(state) < 2 or not any(map(NUMBERED.search, state)):
        return bool(state) and not NUMBERED.search(state[0])
    parameters = inspect.signature(getattr(kind, "forward")).parameters  # noqa: B009 - a module need not have one
    return all(parameters[name].default is inspect.Parameter.empty for name in state)


def _second(names: Sequence[str]) -> tuple[str, ...]:
    return next((run for run in _runs(names[1:]) if names[1] in run), ())


def state_arguments(kind: type, spec: CellSpec) -> tuple[str, ...]:
    """Names of the state's arguments, from the spec of a cell, else guessed from their names.

    Raises:
        AttachError: the method is missing, or has no such argument.
    """
    if not callable(getattr(kind, spec.method, None)):
        raise AttachError(f"cells: {kind.__name__} has no method {spec.method!r}.{_hint(kind)}")
    names = list(inspect.signature(getattr(kind, spec.method)).parameters)[1:]
    stated = (spec.state,) if isinstance(spec.state, str) else tuple(spec.state or ())
    for name in stated:
        if name not in names:
            has = f"it has {', '.join(names) or 'none'}"
            raise AttachError(f"cells: {kind.__name__}.{spec.method} has no argument {name!r}; {has}.{_hint(kind)}")
    return stated or _guessed(kind, spec.method, names)


def _guessed(kind: type, method: str, names: Sequence[str]) -> tuple[str, ...]:
    places = arguments_of(kind, method)
    if len(places) < 2:
        raise AttachError(
            f"cells: {kind.__name__}.{method} takes {', '.join(names) or 'nothing'}; a cell takes its state as well: "
            f"forward(x, state).{_hint(kind) or ' ' + LOOP.format(kind=kind.__name__)}"
        )
    runs = [run for run in _runs(places) if len(run) < len(places)]
    runs.sort(key=lambda run: places[1] not in run)
    return runs[0] if runs else _second(places) or (places[1],)


def _runs(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The runs of arguments that may be a state, each with a hidden state: a `c` alone may be a context."""
    return [run for run in states_called(names) if any(part_called(name) == "h" for name in run)]


def suggestion(kind: type) -> str:
    """A line for `cells=` for a class, from the signatures of its methods; empty if none takes a state."""
    own = [name for base in kind.__mro__ if base.__module__.partition(".")[0] != "torch" for name in vars(base)]
    methods = [name for name in own if inspect.isfunction(getattr(kind, name, None)) and not name.startswith("__")]
    for method in sorted(dict.fromkeys(methods), key=lambda name: (name != "forward", "step" not in name)):
        places = arguments_of(kind, method)
        runs = states_called(places) if "step" in method else _runs(places)
        for run in runs:
            if len(run) < len(places):
                return line_for(kind, method, run)
    return ""


def line_for(kind: type, method: str, states: Sequence[str]) -> str:
    """`cells={Cell: gradscope.CellSpec(...)}`, ready to type."""
    arguments = [] if method == "forward" else [f'method="{method}"']
    quoted = [f'"{name}"' for name in states]
    arguments.append(f"state={quoted[0]}" if len(quoted) == 1 else f"state=({', '.join(quoted)})")
    return f"cells={{{kind.__name__}: gradscope.CellSpec({', '.join(arguments)})}}"


def _hint(kind: type) -> str:
    line = suggestion(kind)
    return f" Its signature suggests {line}." if line else ""


def is_scripted(module: nn.Module) -> bool:
    """True if TorchScript compiled a module. Under PYTORCH_JIT=0 its class is a plain one."""
    return isinstance(module, torch.jit.ScriptModule) and hasattr(module, "original_name")


def advice(model: nn.Module) -> str:
    """Advice for a model without a recognised cell: what to type or edit."""
    kinds = dict.fromkeys(type(m) for m in model.modules() if type(m).__module__.partition(".")[0] != "torch")
    scripted = next((m.original_name for m in model.modules() if is_scripted(m)), None)
    if scripted is not None:
        return SCRIPTED.format(kind=scripted)
    lines = list(filter(None, map(suggestion, kinds)))
    if lines:
        return f"A signature suggests a cell: pass {' or '.join(lines[:3])}."
    loops = [type(m) for m in model.modules() if type(m) in kinds and m._parameters] or list(kinds)
    rest = LOOP.format(kind=loops[0].__name__) if loops else "Name a cell of your own in cells=."
    return f"Pass the model that holds them. {rest}"
