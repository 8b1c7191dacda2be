"""Torch's private names: all that are used, and what is done where one is missing: the slower way, never a failure.

Under each name is a function that stands in for torch's own, and says what is lost by it. Torch's own is bound in its
place at import, so that nothing comes between. Seen in torch 2.6.0, 2.8.0, 2.10.0 and 2.13.0, unless it says otherwise.

For `torch._VF` and `torch.utils._pytree` there is no other way: the one has the functions that `nn.LSTM` and the like
call, the other walks through the arguments of a user's cell. Attributes that are read at many places, and have been
in torch as long as the classes themselves: `_version` of tensors; `_parameters`, `_modules` and `_forward_pre_hooks`
of modules.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from operator import attrgetter
from types import CodeType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.autograd.graph import Node
from torch.nn.modules import module as _shared
from torch.utils import _pytree as pytree

F = TypeVar("F", bound=Callable[..., Any])
kernels: Any = torch._VF  # type: ignore[attr-defined]
__all__ = ["kernels", "pytree"]


def _find(name: str) -> Any:
    """What torch has under a dotted name; None where it has none."""
    try:
        return attrgetter(name)(torch)
    except AttributeError:
        return None


def _torchs(name: str) -> Callable[[F], F]:
    """Torch's own function in the place of the one below, where it has one."""
    return lambda stand_in: _find(name) or stand_in


# --- autograd

ENGINE: str | None = "_engine_run_backward" if _find("autograd._engine_run_backward") else None
"""Of `torch.autograd`: where all backward passes enter the engine. Missing: passes of a `torch.autograd.backward` that
was imported by name are not seen."""


@_torchs("_C._current_graph_task_id")
def backward_pass() -> int:
    """Number of the backward pass that is running, -1 outside of one. Missing: what checkpointing runs again counts."""
    return -1


@_torchs("_C._current_autograd_node")
def current_node() -> Any:
    """The node that is running in a backward pass. Missing: what its kernel kept is not read; layers are run again."""


@_torchs("_C._will_engine_execute_node")
def will_run(node: Node) -> bool:
    """Whether the running pass comes to a node. Missing: `torch.autograd.grad` passes for `backward()`."""
    return True


@_torchs("_C._autograd._top_saved_tensors_default_hooks")
def hooks_on_saved(ignore_tracing: bool) -> Any:
    """The user's hooks on what autograd saves, which reading it would call; None without.

    Missing (2.6.0): it is never read. The CPU's LSTMs are run again; dropout masks of cuDNN stay hidden.
    """
    return True


def saved(node: Node | None, name: str) -> Any:
    """What a node has saved for its backward pass. Missing, or freed: None, and layers are run again."""
    try:
        return getattr(node, f"_saved_{name}")
    except (AttributeError, RuntimeError):
        return None


def sequence_number(node: Node) -> int:
    """Later nodes have higher ones. Missing: 0, and cotangents that would have met go their ways one by one."""
    return getattr(node, "_sequence_nr", int)()


def outputs_of(node: Node) -> int | None:
    """How many a node has. Missing: None, and states do not go through it."""
    found = getattr(node, "_input_metadata", None)
    return None if found is None else len(found)


def forward_class(node: Node) -> type | None:
    """The `torch.autograd.Function` that made a node. Missing: states do not go through those of DDP and FSDP."""
    return getattr(node, "_forward_cls", None)


def base_of(tensor: Tensor) -> Tensor | None:
    """What a tensor is a view of. Missing: a batch-first output's gradient is turned when it arrives."""
    return tensor._base if getattr(tensor, "_is_view", bool)() else None


# --- modules, kernels and transforms


def flat_weights_of(module: nn.RNNBase) -> Any:
    """The list that a layer hands to its kernel, by which a call is known as its own. Missing: no call is."""
    return module.__dict__.get("_flat_weights")


@_torchs("_cudnn_rnn_flatten_weight")
def flatten_for_cudnn(weights: Sequence[Tensor], *sizes: Any) -> Any:
    """Lay weights out in one stretch of memory. Missing: cuDNN copies them for each call, with a warning."""


@_torchs("_foreach_norm")
def foreach_norm(tensors: Sequence[Tensor], order: float = 2, dtype: torch.dtype | None = None) -> Sequence[Tensor]:
    """The norm of each. Missing: one after the other."""
    return [torch.linalg.vector_norm(x, order, dtype=dtype) for x in tensors]


@_torchs("_C._functorch.peek_interpreter_stack")
def transform() -> Any:
    """The transform of `torch.func` that is running. Missing: calls under one are taken for others, and noted."""


def global_hooks() -> list[dict[int, Any]]:
    """Hooks on all modules. Missing: they fire where a cell is run again."""
    return [kept for n, kept in vars(_shared).items() if n.startswith("_global_") and n.endswith("_hooks")]


# --- optimizers, clipping, loss scaling

_step: Any = _find("optim.Optimizer.profile_hook_step.__code__.co_consts")
STEP = next((code for code in _step or () if isinstance(code, CodeType)), None)
"""What runs every optimizer's `step` and calls its hooks. Missing: a step within a step is two."""

clip_grads_with_norm: Any = _find("nn.utils.clip_grad._clip_grads_with_norm_")
"""Missing: what it does is seen by the gradients' norms, as clipping by hand is."""


def wrapped_cell(function: Any) -> Any:
    """The closure cell with what a clipping function wraps. Missing: its clipping is seen as clipping by hand is."""
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)).get("func")


def scale_of(scaler: GradScaler) -> Tensor | float | None:
    """What losses are multiplied by; None before the first. Missing: the host waits for the device."""
    return getattr(scaler, "_get_scale_async", scaler.get_scale)()


# --- compilers


@_torchs("_C._is_tracing")
def is_tracing() -> bool:
    """Whether `torch.jit.trace` runs. Missing: by way of its public name."""
    return torch.jit.is_tracing()


@_torchs("jit._builtins._get_builtin_table")
def operators() -> dict[int, str]:
    """What TorchScript takes for an operator. Missing: `torch.jit.script` refuses a layer while a scope listens."""
    return {}


@_torchs("_C._dynamo.eval_frame.set_eval_frame")
def set_eval_frame(compiler: Any) -> Any:
    """Put `torch.compile` out of action, or back: gives what was in action. Missing: our callbacks are compiled."""


@_torchs("_C._dynamo.eval_frame.skip_code")
def skip_code(code: CodeType) -> None:
    """Have some code run as it is. Seen in 2.6.0; later by its strategy. Missing: `torch.compile` looks at it first."""
    names = _find("_C._dynamo.eval_frame")
    try:
        skip, default = names._FrameAction.SKIP, names._FrameAction.DEFAULT
        names.set_code_exec_strategy(code, names._FrameExecStrategy(skip, default))
    except AttributeError:
        pass


@_torchs("_compile._disable_dynamo")
def disable_dynamo(function: F) -> F:
    """Have a function never compiled. Missing: by its public name, which loads the compiler."""
    return torch.compiler.disable(function)  # type: ignore[return-value]


def has_compiled() -> bool:
    """Whether `torch.compile` has looked at anything in this process. Missing: not."""
    return bool(getattr(sys.modules.get("torch._dynamo.convert_frame"), "FRAME_COUNTER", 0))


def inner_module(model: nn.Module) -> nn.Module:
    """The module that `torch.compile(module)` has wrapped, or the module itself. Missing: names get a prefix."""
    wrapper = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", None)
    return model._orig_mod if wrapper is not None and isinstance(model, wrapper) else model  # type: ignore[return-value]
