"""Attaching to every model that trains in a script: it is seen when an optimizer takes its parameters."""

from __future__ import annotations

import functools
import gc
import os
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

import gradscope
from gradscope.attach.custom import find_recurrent, looks_recurrent
from gradscope.diagnose.headline import headline
from gradscope.private import disable_dynamo


@dataclass(eq=False)
class Watched:
    """One model, its scope, and the optimizers that it is trained by; once they are gone, so is its training."""

    scope: gradscope.Scope
    model: weakref.ref[nn.Module]
    layers: set[int]
    optimizers: weakref.WeakSet[Optimizer] = field(default_factory=weakref.WeakSet)


class Watch:
    """Looks at every optimizer as it is given parameters, and once more at its first step.

    Args:
        folder: where the first model is recorded; further ones in folders within it.
        every: record every so many steps; None for as often as the budget allows.
        telling: say at the end where the records are; for one of several processes.
    """

    def __init__(self, folder: Path, every: int | None, *, telling: bool = True) -> None:
        self.folder, self.every, self.telling = folder, every, telling
        self._watched: list[Watched] = []
        self._seen: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._recorded = 0
        self._owner = os.getpid()

    def __enter__(self) -> Watch:
        """Begin to look."""
        original = Optimizer.add_param_group

        @functools.wraps(original)
        def add_param_group(optimizer: Optimizer, param_group: dict[str, Any]) -> None:
            original(optimizer, param_group)
            self.look(optimizer)

        setattr(Optimizer, "add_param_group", add_param_group)  # noqa: B010  (a method, to pyright)
        hook = register_optimizer_step_pre_hook(lambda optimizer, *_: self.look(optimizer))
        self._undo = (hook.remove, functools.partial(setattr, Optimizer, "add_param_group", original))
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave torch as it was, write out what was recorded, and say where it is."""
        for undo in self._undo:
            undo()
        if os.getpid() != self._owner:
            return  # a fork of the script: the records are its parent's
        for watched in self._watched:
            self._safely(watched.scope.close)
        if not self.telling:
            return
        if self._recorded:
            folder = _near(self.folder)
            self._safely(self._sum_up)
            self._say(f"recorded in {folder}; see it with: gradscope report {folder}")
        else:
            self._say("nothing was recorded: no torch optimizer took the parameters of a recurrent layer")

    @disable_dynamo
    def look(self, optimizer: Optimizer) -> None:
        """Attach to the models whose recurrent parameters an optimizer has, unless that is done already."""
        number = sum(len(group["params"]) for group in optimizer.param_groups)
        if self._seen.get(optimizer) == number or os.getpid() != self._owner:
            return
        self._seen[optimizer] = number
        self._safely(self._release)
        self._safely(self._attach, optimizer)

    def _attach(self, optimizer: Optimizer) -> None:
        parameters = {id(one) for group in optimizer.param_groups for one in group["params"]}
        for model, layers in models(parameters):
            known = [it for it in self._watched if it.layers & layers.keys() or it.model() is model]
            for watched in known:
                watched.optimizers.add(optimizer)
            new = [name for key, name in layers.items() if not any(key in watched.layers for watched in known)]
            if new:
                self._begin(model, new if known else None).optimizers.add(optimizer)

    def _begin(self, model: nn.Module, include: list[str] | None) -> Watched:
        folder = self.folder / f"{self._recorded + 1}-{type(model).__name__}" if self._recorded else self.folder
        scope = gradscope.attach(model, folder, every=self.every, include=include)
        self._recorded += 1
        layers = {id(layer) for layer in find_recurrent(model).values()}
        self._watched.append(Watched(scope, weakref.ref(model), layers))
        return self._watched[-1]

    def _release(self) -> None:
        """Let go of models that are not trained any more, as of earlier folds: a scope would keep them in memory."""
        over = [watched for watched in self._watched if not watched.optimizers]
        self._watched = [watched for watched in self._watched if watched.optimizers]
        for watched in over:
            watched.scope.close()

    def _sum_up(self) -> None:
        """Say whether the first model learns, what was found first, and what to type."""
        run = gradscope.load(self.folder)
        assert isinstance(run, gradscope.Run)
        self._say(headline(run).replace("→", "->"))
        found = run.findings()[0]
        self._say(f"[{'healthy' if found.code == 'healthy' else found.severity}] {found.title}")
        for remedy in found.remedies[:1]:
            self._say(f"to try first: {remedy.title}")
            for line in remedy.code.splitlines():
                self._say(line, "    ")

    def _safely(self, do: Any, *arguments: Any) -> Any:
        """What comes of it; nothing that goes wrong in here may reach the script."""
        try:
            return do(*arguments)
        except gradscope.GradscopeError as error:
            self._say(str(error))
        except Exception as error:
            self._say(f"a failure of gradscope's own, {type(error).__name__}: {error}")

    def _say(self, what: str, indent: str = "") -> None:
        if sys.stderr is not None:
            sys.stderr.write(f"gradscope: {indent}{what.strip() if indent else ' '.join(what.split())}\n")


def models(parameters: set[int]) -> list[tuple[nn.Module, dict[int, str]]]:
    """The outermost live modules whose recurrent layers have such parameters (by id), and the names of those layers.

    A layer within several of them is the largest one's.
    """
    live = [one for one in gc.get_objects() if issubclass(type(one), nn.Module) and "_modules" in one.__dict__]
    layers = [m for m in live if looks_recurrent(m) and any(id(p) in parameters for p in m.parameters())]
    parents: dict[int, list[nn.Module]] = {}
    for module in live:
        for child in module._modules.values():
            parents.setdefault(id(child), []).append(module)
    tops = {id(top): top for layer in layers for top in _tops(layer, parents)}
    wanted = {id(layer) for layer in layers}
    known = [(top, find_recurrent(top)) for top in tops.values()]
    found = [(top, {id(m): name for name, m in layers.items() if id(m) in wanted}) for top, layers in known]
    chosen: list[tuple[nn.Module, dict[int, str]]] = []
    for top, mine in sorted(found, key=lambda pair: -len(pair[1])):
        taken = {key for _, others in chosen for key in others}
        if left := {key: name for key, name in mine.items() if key not in taken}:
            chosen.append((top, left))
    return chosen


def _tops(module: nn.Module, parents: dict[int, list[nn.Module]]) -> Iterator[nn.Module]:
    """The modules above one that are in no other."""
    waiting, seen = [module], {id(module)}
    while waiting:
        one = waiting.pop()
        above = parents.get(id(one), [])
        if not above:
            yield one
        for parent in above:
            if id(parent) not in seen:
                seen.add(id(parent))
                waiting.append(parent)


def _near(folder: Path) -> str:
    """A path as one would type it from here."""
    try:
        return str(folder.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(folder)
