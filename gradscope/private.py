"""All private names of torch that gradscope uses, each with a fallback: slower, but never a failure.

Each function here is the fallback for a function of torch, and its docstring names the loss after "Missing". At import
torch's own function replaces the fallback, without a wrapper. All names exist in torch 2.6.0, 2.8.0, 2.10.0 and 2.13.0,
unless a docstring says otherwise.

`torch._VF` and `torch.utils._pytree` have no fallback: the former has the functions that `nn.LSTM` and the like call,
the latter traverses the arguments of a user's cell. Many rooms read attributes that are as old as their classes:
`_version` of tensors; `_parameters`, `_modules` and `_forward_pre_hooks` of modules.
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
    """The object of torch with a dotted name; None if there is none."""
    try:
        return attrgetter(name)(torch)
    except AttributeError:
        return None


def _torchs(name: str) -> Callable[[F], F]:
    """Replace the decorated fallback by torch's own function, if there is one."""
    return lambda fallback: _find(name) or fallback


# --- autograd

ENGINE: str | None = "_engine_run_backward" if _find("autograd._engine_run_backward") else None
"""Name in `torch.autograd` of the function through which all backward passes enter the engine. Missing: gradscope does
not see passes of a `torch.autograd.backward` that was imported by name."""


@_torchs("_C._current_graph_task_id")
def backward_pass() -> int:
    """Number of the running backward pass, -1 outside of one. Missing: recomputed calls of checkpointing count."""
    return -1


@_torchs("_C._current_autograd_node")
def current_node() -> Any:
    """The running node of a backward pass. Missing: gradscope replays layers, without the kernel's saved values."""


@_torchs("_C._will_engine_execute_node")
def will_run(node: Node) -> bool:
    """True if the running pass will execute a node. Missing: `torch.autograd.grad` counts as `backward()`."""
    return True


@_torchs("_C._autograd._top_saved_tensors_default_hooks")
def hooks_on_saved(ignore_tracing: bool) -> Any:
    """The user's hooks on autograd's saved values, which reading those would call; None without hooks.

    Missing (2.6.0): gradscope never reads saved values. It replays the CPU's LSTMs; dropout masks of cuDNN stay hidden.
    """
    return True


def saved(node: Node | None, name: str) -> Any:
    """A value that a node saved for its backward pass. Missing, or freed: None, and gradscope replays the layer."""
    try:
        return getattr(node, f"_saved_{name}")
    except (AttributeError, RuntimeError):
        return None


def sequence_number(node: Node) -> int:
    """Number of a node in the order of creation. Missing: 0, and cotangents that meet are not summed on the way."""
    return getattr(node, "_sequence_nr", int)()


def outputs_of(node: Node) -> int | None:
    """Number of outputs of a node's forward. Missing: None, and gradscope does not follow states through the node."""
    metadata = getattr(node, "_input_metadata", None)
    return None if metadata is None else len(metadata)


def forward_class(node: Node) -> type | None:
    """The `torch.autograd.Function` of a node. Missing: gradscope does not follow states through those of DDP, FSDP."""
    return getattr(node, "_forward_cls", None)


def base_of(tensor: Tensor) -> Tensor | None:
    """The base of a view. Missing: the gradient of a batch-first output is transposed on arrival."""
    return tensor._base if getattr(tensor, "_is_view", bool)() else None


# --- modules, kernels and transforms


def flat_weights_of(module: nn.RNNBase) -> Any:
    """The list of weights that a layer passes to its kernel; identifies its calls. Missing: no call is identified."""
    return module.__dict__.get("_flat_weights")


@_torchs("_cudnn_rnn_flatten_weight")
def flatten_for_cudnn(weights: Sequence[Tensor], *sizes: Any) -> Any:
    """Copy weights to contiguous memory. Missing: cuDNN copies them for each call, with a warning."""


@_torchs("_foreach_norm")
def foreach_norm(tensors: Sequence[Tensor], order: float = 2, dtype: torch.dtype | None = None) -> Sequence[Tensor]:
    """The norm of each tensor. Missing: one kernel for each."""
    return [torch.linalg.vector_norm(x, order, dtype=dtype) for x in tensors]


@_torchs("_C._functorch.peek_interpreter_stack")
def transform() -> Any:
    """The running transform of `torch.func`. Missing: calls under a transform count as ordinary ones, with a note."""


def global_hooks() -> list[dict[int, Any]]:
    """Hooks on all modules. Missing: these hooks run in the replay of a cell."""
    return [hooks for n, hooks in vars(_shared).items() if n.startswith("_global_") and n.endswith("_hooks")]


# --- optimizers, clipping, loss scaling

_step: Any = _find("optim.Optimizer.profile_hook_step.__code__.co_consts")
STEP = next((code for code in _step or () if isinstance(code, CodeType)), None)
"""Code of the wrapper of every optimizer's `step`, which calls hooks. Missing: a step inside a step counts as two."""

clip_grads_with_norm: Any = _find("nn.utils.clip_grad._clip_grads_with_norm_")
"""Missing: only the gradients' norms show this clipping, like clipping by hand."""


def wrapped_cell(function: Any) -> Any:
    """The closure cell with the wrapped clipping function. Missing: its clipping counts as clipping by hand."""
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)).get("func")


def scale_of(scaler: GradScaler) -> Tensor | float | None:
    """The loss scale; None before the first scaled loss. Missing: the host waits for the device."""
    return getattr(scaler, "_get_scale_async", scaler.get_scale)()


# --- compilers


@_torchs("_C._is_tracing")
def is_tracing() -> bool:
    """True while `torch.jit.trace` runs. Missing: the public function."""
    return torch.jit.is_tracing()


@_torchs("jit._builtins._get_builtin_table")
def operators() -> dict[int, str]:
    """TorchScript's table of operators. Missing: `torch.jit.script` refuses a layer while a scope listens."""
    return {}


@_torchs("_C._dynamo.eval_frame.set_eval_frame")
def set_eval_frame(compiler: Any) -> Any:
    """Set the frame evaluator of `torch.compile`; returns the last one. Missing: our callbacks are compiled."""


@_torchs("_C._dynamo.eval_frame.skip_code")
def skip_code(code: CodeType) -> None:
    """Exclude code from compilation. Exists in 2.6.0; later by a strategy. Missing: `torch.compile` examines it."""
    names = _find("_C._dynamo.eval_frame")
    try:
        skip, default = names._FrameAction.SKIP, names._FrameAction.DEFAULT
        names.set_code_exec_strategy(code, names._FrameExecStrategy(skip, default))
    except AttributeError:
        pass


@_torchs("_compile._disable_dynamo")
def disable_dynamo(function: F) -> F:
    """Exclude a function from compilation. Missing: the public function, which loads the compiler."""
    return torch.compiler.disable(function)  # type: ignore[return-value]


def has_compiled() -> bool:
    """True if `torch.compile` has examined a frame in this process. Missing: False."""
    return bool(getattr(sys.modules.get("torch._dynamo.convert_frame"), "FRAME_COUNTER", 0))


def inner_module(model: nn.Module) -> nn.Module:
    """The module inside the wrapper of `torch.compile(module)`, or the module itself. Missing: names get a prefix."""
    wrapper = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", None)
    return model._orig_mod if wrapper is not None and isinstance(model, wrapper) else model  # type: ignore[return-value]
