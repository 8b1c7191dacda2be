"""Attaching to every model that trains in a script, when an optimizer takes its parameters."""

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
from gradscope.diagnose.progress import headline
from gradscope.private import disable_dynamo


@dataclass(eq=False)
class Watched:
    """One model, its scope, and its optimizers; its training is over when they are gone."""

    scope: gradscope.Scope
    model: weakref.ref[nn.Module]
    layers: set[int]
    optimizers: weakref.WeakSet[Optimizer] = field(default_factory=weakref.WeakSet)


class Watch:
    """Checks every optimizer when it takes parameters, and again at its first step.

    Args:
        folder: run folder of the first model; further models get folders within it.
        every: interval between recorded steps; None for as often as the budget allows.
        verbose: print a summary at the end; only one of several processes should.
    """

    def __init__(self, folder: Path, every: int | None, *, verbose: bool = True) -> None:
        self.folder, self.every, self.verbose = folder, every, verbose
        self._watched: list[Watched] = []
        self._checked: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._recorded = 0
        self._owner = os.getpid()

    def __enter__(self) -> Watch:
        """Begin to check optimizers."""
        original = Optimizer.add_param_group

        @functools.wraps(original)
        def add_param_group(optimizer: Optimizer, param_group: dict[str, Any]) -> None:
            original(optimizer, param_group)
            self.check(optimizer)

        setattr(Optimizer, "add_param_group", add_param_group)  # noqa: B010  (a method, to pyright)
        hook = register_optimizer_step_pre_hook(lambda optimizer, *_: self.check(optimizer))
        self._undo = (hook.remove, functools.partial(setattr, Optimizer, "add_param_group", original))
        return self

    def __exit__(self, *exception: object) -> None:
        """Restore torch, write the records, and print a summary."""
        for undo in self._undo:
            undo()
        if os.getpid() != self._owner:
            return  # a fork of the script: its parent owns the records
        for watched in self._watched:
            self._safely(watched.scope.close)
        if not self.verbose:
            return
        if self._recorded:
            folder = _near(self.folder)
            self._safely(self._sum_up)
            self._print(f"recorded in {folder}; see it with: gradscope report {folder}")
        else:
            self._print("no step is recorded: no torch optimizer took the parameters of a recurrent layer")

    @disable_dynamo
    def check(self, optimizer: Optimizer) -> None:
        """Attach to the models with recurrent parameters in an optimizer, unless they are attached."""
        number = sum(len(group["params"]) for group in optimizer.param_groups)
        if self._checked.get(optimizer) == number or os.getpid() != self._owner:
            return
        self._checked[optimizer] = number
        self._safely(self._release)
        self._safely(self._attach, optimizer)

    def _attach(self, optimizer: Optimizer) -> None:
        parameters = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for model, layers in models(parameters):
            known = [other for other in self._watched if other.layers & layers.keys() or other.model() is model]
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
        """Close scopes of finished models, as of earlier folds: they would keep the models in memory."""
        over = [watched for watched in self._watched if not watched.optimizers]
        self._watched = [watched for watched in self._watched if watched.optimizers]
        for watched in over:
            watched.scope.close()

    def _sum_up(self) -> None:
        """Print whether the first model learns, the first finding, and a remedy to type."""
        run = gradscope.load(self.folder)
        assert isinstance(run, gradscope.Run)
        self._print(headline(run).replace("→", "->"))
        finding = run.findings()[0]
        self._print(f"[{'healthy' if finding.code == 'healthy' else finding.severity}] {finding.title}")
        for remedy in finding.remedies[:1]:
            self._print(f"to try first: {remedy.title}")
            for line in remedy.code.splitlines():
                self._print(line, "    ")

    def _safely(self, function: Any, *arguments: Any) -> Any:
        """Call a function, and print its exceptions: none may reach the script."""
        try:
            return function(*arguments)
        except gradscope.GradscopeError as error:
            self._print(str(error))
        except Exception as error:
            self._print(f"gradscope itself failed, {type(error).__name__}: {error}")

    def _print(self, text: str, indent: str = "") -> None:
        if sys.stderr is not None:
            sys.stderr.write(f"gradscope: {indent}{text.strip() if indent else ' '.join(text.split())}\n")


def models(parameters: set[int]) -> list[tuple[nn.Module, dict[int, str]]]:
    """Find the outermost live modules with recurrent layers of these parameters (by id), and the layers' names.

    If several modules contain a layer, the largest module gets it.
    """
    live = [module for module in gc.get_objects() if issubclass(type(module), nn.Module) and "_modules" in vars(module)]
    layers = [m for m in live if looks_recurrent(m) and any(id(p) in parameters for p in m.parameters())]
    parents: dict[int, list[nn.Module]] = {}
    for module in live:
        for child in module._modules.values():
            parents.setdefault(id(child), []).append(module)
    tops = {id(top): top for layer in layers for top in _tops(layer, parents)}
    wanted = {id(layer) for layer in layers}
    known = [(top, find_recurrent(top)) for top in tops.values()]
    candidates = [(top, {id(m): name for name, m in layers.items() if id(m) in wanted}) for top, layers in known]
    chosen: list[tuple[nn.Module, dict[int, str]]] = []
    for top, own in sorted(candidates, key=lambda pair: -len(pair[1])):
        assigned = {key for _, others in chosen for key in others}
        if left := {key: name for key, name in own.items() if key not in assigned}:
            chosen.append((top, left))
    return chosen


def _tops(module: nn.Module, parents: dict[int, list[nn.Module]]) -> Iterator[nn.Module]:
    """Yield the outermost modules above a module."""
    pending, visited = [module], {id(module)}
    while pending:
        module = pending.pop()
        above = parents.get(id(module), [])
        if not above:
            yield module
        for parent in above:
            if id(parent) not in visited:
                visited.add(id(parent))
                pending.append(parent)


def _near(folder: Path) -> str:
    """Write a path relative to the current folder, if possible."""
    try:
        return str(folder.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(folder)
