"""Copies for trials, without effects on the training."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.errors import GradscopeError


def copied(value: Any, what: str) -> Any:
    """Make a deep copy; computed tensors, such as a state of an earlier batch, lose their graph."""
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in _computed(value)}
    try:
        return copy.deepcopy(value, memo)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise GradscopeError(f"whatif needs a copy of {what}, and copying fails: {error}") from error


def _computed(value: Any) -> Iterator[Tensor]:
    """Yield tensors with a `grad_fn` in a module's attributes, or in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            yield value
    elif isinstance(value, nn.Module):
        for module in value.modules():
            for item in vars(module).values():
                if not isinstance(item, nn.Module):
                    yield from _computed(item)
    elif isinstance(value, dict):
        for item in value.values():
            if not isinstance(item, nn.Module):
                yield from _computed(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _computed(item)


@contextmanager
def undisturbed(model: nn.Module) -> Generator[Callable[[], None]]:
    """Restore random streams and gradients in the end; yields a function that rewinds the streams."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    rewind = _streams({parameter.device for parameter, _ in gradients})
    hidden = any(isinstance(m, nn.RNNBase) and m.dropout and m.training for m in model.modules())
    cudnn = not hidden and torch.backends.cudnn.enabled  # the stream of its dropout cannot be restored
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        with torch.backends.cudnn.flags(enabled=cudnn):
            yield rewind
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        rewind()


def _streams(devices: set[torch.device]) -> Callable[[], None]:
    """Return a function that restores the present random streams of Python, numpy and torch."""
    import numpy as np

    python, numpys, host = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    others = {
        device: torch.get_device_module(device).get_rng_state(device)
        for device in devices
        if device.type not in ("cpu", "meta")
    }

    def rewind() -> None:
        random.setstate(python)
        np.random.set_state(numpys)  # noqa: NPY002
        torch.set_rng_state(host)
        for device, state in others.items():
            torch.get_device_module(device).set_rng_state(state, device)

    return rewind
