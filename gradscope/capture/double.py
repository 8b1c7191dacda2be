"""A double of a module, to be run again beside it: nothing of the user's changes, not even a generator's state."""

from __future__ import annotations

import copy
import random
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.private import global_hooks, pytree

Attributes = Mapping[tuple[str, str], Any]
"""Plain values that a module and what is in it keep as attributes, by submodule and name."""
PLAIN = frozenset({bool, int, float, str})


class Doubled:
    """A user's module, held weakly, and a double of it that outlives it.

    Attributes:
        original: the user's.
    """

    original: weakref.ref[nn.Module]
    _double: nn.Module | None

    @property
    def module(self) -> nn.Module:
        """The user's module, or its double once the user's is gone."""
        original = self.original()
        found = self._double if original is None else original
        if found is None:
            raise TypeError("it is gone, and was never copied")
        return found

    def double(self) -> nn.Module:
        """The module without its hooks, beside the original; made when it is first needed."""
        if self._double is None:
            self._double = double_of(self.module)
        return self._double


def double_of(original: nn.Module) -> nn.Module:
    """A module beside another, with its parameters, but without its hooks, and with copies of all that it keeps.

    Of the hooks only those stay with which torch makes a weight before each call (`weight_norm`). Parameters that it
    keeps in a second place, such as a dictionary of its own, are copies: see `put_weights`.

    Raises:
        TypeError: it keeps something that cannot be copied.
    """
    twice = _kept_twice(original)
    memo: dict[int, Any] = {id(p): _copy_of(p) if id(p) in twice else p for p in original.parameters()}
    hooks = {path: _take_hooks(module) for path, module in original.named_modules()}
    for module in original.modules():
        for kept in pytree.tree_leaves(list(module.__dict__.values())):
            if isinstance(kept, Tensor) and id(kept) not in memo:
                memo[id(kept)] = kept.detach().clone()
    for _, taken in hooks.values():
        memo.update({id(hook): type(hook)() for hook in taken})
    try:
        double = copy.deepcopy(original, memo)
    except Exception as error:
        raise TypeError(f"it keeps something that cannot be copied ({type(error).__name__}: {error})") from error
    for path, module in double.named_modules():
        module._forward_pre_hooks.update(hooks[path][0])
    return double


def put_weights(double: nn.Module, original: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give the parameters of a double that are copies these values; the others are replaced for each call."""
    theirs = dict(original.named_parameters())
    for name, parameter in double.named_parameters():
        if parameter is not theirs[name]:
            parameter.data = weights[name]  # a new storage: graphs that were made with the old one still hold


def _kept_twice(module: nn.Module) -> set[int]:
    """Parameters that a module or one in it keeps elsewhere than where torch does."""
    places = [value for m in module.modules() for name, value in m.__dict__.items() if name != "_parameters"]
    return {id(kept) for kept in pytree.tree_leaves(places) if isinstance(kept, nn.Parameter)}


def _copy_of(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(widened(parameter.detach().clone()), requires_grad=False)


def widened(x: Any) -> Any:
    """16-bit numbers as float32: a call is run again without autocast."""
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() and x.dtype.itemsize < 4 else x


def _take_hooks(module: nn.Module) -> tuple[dict[int, Callable[..., Any]], list[Any]]:
    """Those of a module's hooks that torch makes a weight with, and all dictionaries of hooks."""
    own = {n: hook for n, hook in module._forward_pre_hooks.items() if type(hook).__module__.startswith("torch.")}
    return own, [kept for name, kept in module.__dict__.items() if "_hooks" in name and isinstance(kept, dict)]


def attributes_of(module: nn.Module) -> Attributes:
    """The plain attributes of a module and of all in it, its mode among them."""
    return {
        (path, name): value
        for path, part in module.named_modules()
        for name, value in part.__dict__.items()
        if type(value) in PLAIN
    }


def put_attributes(module: nn.Module, attributes: Attributes) -> None:
    """Give a double the attributes that the original had; what torch updates in training mode is left as it is."""
    parts = dict(module.named_modules())
    for (path, name), value in attributes.items():
        if path in parts:
            parts[path].__dict__[name] = value
    for part in parts.values():
        if type(part).__module__.startswith("torch.nn.utils.parametriz"):
            part.training = False  # spectral norm would take another step of its power iteration


def quietly(quiet: ExitStack, device: torch.device) -> Callable[[], bool]:
    """Random numbers that are drawn from now on are not the user's, and nobody's hooks on all modules fire.

    Returns:
        Whether any have been drawn.
    """
    devices = [device] if device.type == "cuda" else []
    quiet.enter_context(torch.random.fork_rng(devices=devices))
    for hooks in global_hooks():
        _set_aside(quiet, hooks)
    before, states = list(_generators(device)), random.getstate()
    quiet.callback(random.setstate, states)
    numpy = sys.modules.get("numpy")
    legacy = None if numpy is None else numpy.random.get_state()
    if numpy is not None:
        quiet.callback(numpy.random.set_state, legacy)

    def drawn() -> bool:
        moved = any(not torch.equal(a, b) for a, b in zip(before, _generators(device), strict=True))
        return moved or random.getstate() != states or (numpy is not None and not _equal(numpy, legacy))

    return drawn


def _set_aside(quiet: ExitStack, hooks: dict[int, Any]) -> None:
    if hooks:
        kept = dict(hooks)
        hooks.clear()
        quiet.callback(hooks.update, kept)


def _generators(device: torch.device) -> Iterator[Tensor]:
    yield torch.get_rng_state()
    if device.type == "cuda":
        yield torch.cuda.get_rng_state(device)


def _equal(numpy: Any, before: Any) -> bool:
    now = numpy.random.get_state()
    return all(numpy.array_equal(a, b) for a, b in zip(before, now, strict=True))
