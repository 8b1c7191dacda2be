"""A copy of a module that runs again beside it, and leaves all of the user's as it is: random generators, too."""

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
"""Plain attributes of a module and its submodules, by submodule and name."""
PLAIN = frozenset({bool, int, float, str})


class Doubled:
    """A weak reference to a user's module, and a double that outlives the module.

    Attributes:
        original: the user's module.
    """

    original: weakref.ref[nn.Module]
    _double: nn.Module | None

    @property
    def module(self) -> nn.Module:
        """The user's module, or its double once the user's is gone."""
        original = self.original()
        module = self._double if original is None else original
        if module is None:
            raise TypeError("the module is gone, and gradscope has no copy of it")
        return module

    def double(self) -> nn.Module:
        """The copy of the module, without its hooks. The first call makes it."""
        if self._double is None:
            self._double = double_of(self.module)
        return self._double


def double_of(original: nn.Module) -> nn.Module:
    """Copy a module: with the same parameters, copies of its attributes, and without its hooks.

    The double retains only hooks with which torch computes a weight before each call (`weight_norm`). Parameters that
    the module also holds elsewhere, such as in a dictionary of its own, are copies: see `put_weights`.

    Raises:
        TypeError: the module holds something that cannot be copied.
    """
    twice = _shared_parameters(original)
    memo: dict[int, Any] = {id(p): _copy_of(p) if id(p) in twice else p for p in original.parameters()}
    hooks = {path: _take_hooks(module) for path, module in original.named_modules()}
    for module in original.modules():
        for leaf in pytree.tree_leaves(list(module.__dict__.values())):
            if isinstance(leaf, Tensor) and id(leaf) not in memo:
                memo[id(leaf)] = leaf.detach().clone()
    for _, dictionaries in hooks.values():
        memo.update({id(hooks): type(hooks)() for hooks in dictionaries})
    try:
        double = copy.deepcopy(original, memo)
    except Exception as error:
        raise TypeError(f"it holds something that cannot be copied ({type(error).__name__}: {error})") from error
    for path, module in double.named_modules():
        module._forward_pre_hooks.update(hooks[path][0])
    return double


def put_weights(double: nn.Module, original: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set the copied parameters of a double to these values; `functional_call` replaces the others."""
    theirs = dict(original.named_parameters())
    for name, parameter in double.named_parameters():
        if parameter is not theirs[name]:
            parameter.data = weights[name]  # a new storage: graphs over the old one stay valid


def _shared_parameters(module: nn.Module) -> set[int]:
    """Parameters that a module or a submodule also holds outside `_parameters`."""
    places = [value for m in module.modules() for name, value in m.__dict__.items() if name != "_parameters"]
    return {id(leaf) for leaf in pytree.tree_leaves(places) if isinstance(leaf, nn.Parameter)}


def _copy_of(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(widened(parameter.detach().clone()), requires_grad=False)


def widened(x: Any) -> Any:
    """16-bit numbers as float32: calls run again without autocast."""
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() and x.dtype.itemsize < 4 else x


def _take_hooks(module: nn.Module) -> tuple[dict[int, Callable[..., Any]], list[Any]]:
    """The hooks with which torch computes a weight, and all dictionaries of hooks."""
    own = {n: hook for n, hook in module._forward_pre_hooks.items() if type(hook).__module__.startswith("torch.")}
    return own, [value for name, value in module.__dict__.items() if "_hooks" in name and isinstance(value, dict)]


def attributes_of(module: nn.Module) -> Attributes:
    """The plain attributes of a module and its submodules, including the training mode."""
    return {
        (path, name): value
        for path, part in module.named_modules()
        for name, value in part.__dict__.items()
        if type(value) in PLAIN
    }


def put_attributes(module: nn.Module, attributes: Attributes) -> None:
    """Set the attributes of a double; parametrizations that update in training mode stay as they are."""
    parts = dict(module.named_modules())
    for (path, name), value in attributes.items():
        if path in parts:
            parts[path].__dict__[name] = value
    for part in parts.values():
        if type(part).__module__.startswith("torch.nn.utils.parametriz"):
            part.training = False  # spectral norm would take another step of its power iteration


def quietly(quiet: ExitStack, device: torch.device) -> Callable[[], bool]:
    """From now on restore the user's random generators on exit, and disable global module hooks.

    Returns:
        A function that returns True once random numbers have been drawn.
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
        saved = dict(hooks)
        hooks.clear()
        quiet.callback(hooks.update, saved)


def _generators(device: torch.device) -> Iterator[Tensor]:
    yield torch.get_rng_state()
    if device.type == "cuda":
        yield torch.cuda.get_rng_state(device)


def _equal(numpy: Any, before: Any) -> bool:
    now = numpy.random.get_state()
    return all(numpy.array_equal(a, b) for a, b in zip(before, now, strict=True))
