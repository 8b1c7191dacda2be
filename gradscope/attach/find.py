"""Finds the recurrent layers of a model, and refuses layers that nobody can observe."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from gradscope.attach.custom import inside
from gradscope.attach.marks import nodes_below
from gradscope.attach.signature import advice
from gradscope.errors import AttachError
from gradscope.private import flat_weights_of
from gradscope.types import KernelCall

QUANTIZED = frozenset({"LSTM", "GRU", "RNN", "RNNBase", "RNNCell", "LSTMCell", "GRUCell"})


def find_layers(
    model: nn.Module,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    cells: Iterable[str] = (),
    *,
    optional: bool = False,
) -> dict[str, nn.Module]:
    """Find fused recurrent layers and cells by qualified name, in the order of `named_modules`.

    Args:
        model: searched at any depth; a model that is a recurrent layer itself has the name `""`.
        include: `fnmatch` patterns over qualified names of the only layers to find.
        exclude: `fnmatch` patterns over qualified names of layers to leave out.
        cells: names of users' cells; modules inside them do not count.
        optional: True to accept a model without recurrent layers.

    Raises:
        AttachError: there is no such layer, a pattern matches nothing, or a layer is quantized or scripted.
    """
    if not isinstance(model, nn.Module):
        raise AttachError(f"attach() takes a torch.nn.Module; got {type(model).__name__}. Pass the model itself.")
    own = set(cells)
    part = inside((name for name, _ in model.named_modules()), own)
    recurrent = {name for name, module in model.named_modules() if name not in part and _is_recurrent(module)}
    names = [name for name, _ in model.named_modules() if name in own or name in recurrent]
    chosen = _choose(names, _patterns("include", include), _patterns("exclude", exclude))
    modules = dict(model.named_modules())
    for name in chosen:
        _refuse(name, modules[name])
    known = (nn.RNNBase, nn.RNNCellBase)
    if not names and optional:
        return {}
    layers = {name: m for name in chosen if isinstance(m := modules[name], known) or name in own}
    if not layers:
        raise AttachError(_none_found(model, names))
    return layers


def _is_recurrent(module: nn.Module) -> bool:
    known = isinstance(module, (nn.RNNBase, nn.RNNCellBase))
    return known or _scripted_name(module) is not None or _is_quantized(module)


def _scripted_name(module: nn.Module) -> str | None:
    """Original class of a scripted or traced recurrent layer."""
    if not isinstance(module, torch.jit.ScriptModule):
        return None
    name = getattr(module, "original_name", "")
    return name if name in ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell") else None


def _is_quantized(module: nn.Module) -> bool:
    kind = type(module)
    return ".quantized" in kind.__module__ and kind.__name__ in QUANTIZED


def _refuse(name: str, module: nn.Module) -> None:
    what = f"{name or 'the model'!s} ({type(module).__name__})"
    if _scripted_name(module) is not None:
        raise AttachError(
            f"{what} is compiled by TorchScript, which runs without Python: gradscope cannot observe it. Attach to "
            "the model before torch.jit.script or torch.jit.trace, set PYTORCH_JIT=0 in the environment, or leave it "
            f"out with exclude={name!r}."
        )
    if _is_quantized(module):
        raise AttachError(
            f"{what} is quantized: it has no gradients to observe. Attach to the model before it is quantized, or "
            f"leave this layer out with exclude={name!r}."
        )


def _patterns(argument: str, patterns: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if patterns is None:
        return None
    several = (patterns,) if isinstance(patterns, str) or not isinstance(patterns, Iterable) else tuple(patterns)
    if not all(isinstance(pattern, str) for pattern in several):
        raise AttachError(f"{argument}={patterns!r:.80}: expected a pattern such as 'encoder.*', or a list of them.")
    return several


def _choose(names: list[str], include: tuple[str, ...] | None, exclude: tuple[str, ...] | None) -> list[str]:
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns or ():
            if not any(fnmatchcase(name, pattern) for name in names):
                raise AttachError(_no_match(argument, pattern, names))
    chosen = [n for n in names if include is None or _matches(n, include)]
    rest = [n for n in chosen if not _matches(n, exclude or ())]
    if chosen and not rest:
        raise AttachError(f"exclude={exclude} leaves out every recurrent layer that include={include} chooses.")
    return rest


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _no_match(argument: str, pattern: str, names: list[str]) -> str:
    near = difflib.get_close_matches(pattern, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    shown = ", ".join(repr(name) for name in names[:20]) or "none"
    return f"{argument}={pattern!r} matches no recurrent layer. The model has: {shown}.{hint}"


def _none_found(model: nn.Module, names: list[str]) -> str:
    if names:
        return f"no layer is left to observe among {names}"
    return (
        f"{type(model).__name__} has no recurrent layer: no nn.RNN, nn.LSTM or nn.GRU and none of their "
        f"cells at any depth. {advice(model)}"
    )


def is_call_of(module: nn.Module, call: KernelCall) -> bool:
    """True if this module made a kernel call: with its weights, or with weights that it computes before each call."""
    if isinstance(module, nn.RNNBase):
        return flat_weights_of(module) is call.weights
    if not call.cell or not isinstance(module, nn.RNNCellBase):
        return False
    weight = call.weights[1]
    if weight is module._parameters.get("weight_hh") or weight is module.__dict__.get("weight_hh"):
        return True
    if weight.grad_fn is None:
        return False
    made_of = {id(getattr(node, "variable", None)) for node in nodes_below([weight.grad_fn], 64)}
    return any(id(parameter) in made_of for parameter in module.parameters())
