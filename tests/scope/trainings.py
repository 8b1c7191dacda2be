"""What the tests of the promise share: trainings, and all that they leave."""

from __future__ import annotations

import gc
import itertools
import pickle
import sys
from types import FunctionType, ModuleType
from typing import Any

import cases
import torch
from cases import Case
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.nn.utils.rnn import PackedSequence


class Net(nn.Module):
    """A recurrent layer in a model that draws random numbers wherever models do, and has buffers."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.rnn = cases.build_module(case)
        width = (self.rnn.proj_size or self.rnn.hidden_size) * (1 + case.bidirectional)
        self.norm = nn.BatchNorm1d(width, dtype=case.dtype)
        self.head = nn.Linear(width, 2, dtype=case.dtype)

    def forward(self, x: Tensor | PackedSequence) -> Tensor:
        hx = cases._build_hx(self.case)  # drawn anew at every call
        output, states = self.rnn(x, hx)
        rows = cases.values_of(output).flatten(0, -2)
        result = self.head(nn.functional.dropout(self.norm(rows), 0.2, self.training))
        last = states[-1] if isinstance(states, tuple) else states
        return result.square().mean() + cases.uneven(last) / 10


OPTIMIZER = sys.modules[torch.optim.Optimizer.__module__]


PLACES: list[Any] = [
    torch,
    torch._VF,
    torch.Tensor,
    torch._C._functions,
    torch.autograd,
    torch.autograd.graph,
    torch.amp.grad_scaler,
    torch.amp.GradScaler,
    nn.Module,
    nn.RNNBase,
    nn.RNN,
    nn.LSTM,
    nn.GRU,
    nn.RNNCellBase,
    nn.RNNCell,
    nn.LSTMCell,
    nn.GRUCell,
    nn.functional,
    nn.modules.module,
    nn.modules.rnn,
    nn.utils,
    clip_grad,
    OPTIMIZER,
    torch.optim.Optimizer,
    torch.optim.SGD,
    sys.modules["copy"],
    pickle,
]


class Is:
    """A thing by its identity; kept alive, so that no other takes its place in memory."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Is) and self.value is other.value

    __hash__ = None


def fingerprint(value: Any, depth: int = 0) -> Any:
    """What a thing is: its identity, and for containers and functions also what they hold."""
    if depth == 2:
        return Is(value)
    if isinstance(value, dict):
        return Is(value), [
            (key if isinstance(key, str) else Is(key), fingerprint(item, depth + 1)) for key, item in value.items()
        ]
    if isinstance(value, list | tuple | set):
        return Is(value), [fingerprint(item, depth + 1) for item in value]
    if isinstance(value, FunctionType):
        cells = [Is(cell.cell_contents) for cell in value.__closure__ or () if _is_filled(cell)]
        return Is(value), Is(value.__code__), cells, list(vars(value))
    return Is(value)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def surroundings(*models: nn.Module) -> dict[tuple[str, str], Any]:
    """Everything that a scope could have touched, in torch, in the models, and on their tensors."""
    gc.collect()  # a scope that another test has left would close itself some time or other
    seen: dict[tuple[str, str], Any] = {}
    for place in PLACES:
        for name, value in list(vars(place).items()):  # threads that other tests have left may import something
            if not isinstance(value, ModuleType) and name not in ("__warningregistry__", "__builtins__"):
                seen[str(place), name] = fingerprint(value)
    for number, model in enumerate(models):
        for name, module in model.named_modules():
            for attribute, value in vars(module).items():
                seen[f"model {number} {name}", attribute] = fingerprint(value)
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            hooks = [tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None)]
            seen[f"model {number} {name}", "hooks"] = [list(hook) for hook in hooks if hook]
            seen[f"model {number} {name}", "attributes"] = sorted(vars(tensor))
    seen["sys", "hooks"] = (sys.excepthook, sys.gettrace(), sys.getprofile(), list(gc.callbacks))
    return seen


def one_step(model: nn.Module, x: Any = None) -> torch.optim.Optimizer:
    x = cases.build(model.case).input if x is None else x
    trainer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(x).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    nn.utils.clip_grad_value_(model.parameters(), 1.0)
    trainer.step()
    trainer.zero_grad()
    return trainer
