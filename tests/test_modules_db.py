"""Every recurrent entry of PyTorch's own module database: held to the oracle, and bit for bit undisturbed."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from typing import Any

import cases
import oracles
import pytest
import torch
from cases import unpacked
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import gradscope

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports what is installed beside torch
    from torch.testing._internal.common_modules import module_db

FUSED = {"nn.RNN": nn.RNN, "nn.LSTM": nn.LSTM, "nn.GRU": nn.GRU}


def entries(name: str, dtype: torch.dtype = torch.float64) -> list[Any]:
    """The database's own sample inputs, the same at every call."""
    (info,) = (info for info in module_db if info.name == name)
    torch.manual_seed(0)
    options = {"device": "cpu", "dtype": dtype, "requires_grad": True, "training": True}
    return info.module_inputs_func(info, **options, with_packed_sequence=True)


SAMPLES = [(name, number) for name in FUSED for number in range(len(entries(name)))]


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def loss_of(output: Any, h_n: Tensor, c_n: Tensor | None) -> Tensor:
    parts = [cases.values_of(output), h_n, *([] if c_n is None else [c_n])]
    return sum(cases.uneven(part, seed) for seed, part in enumerate(parts))


def build(name: str, number: int) -> tuple[nn.RNNBase, list[Any]]:
    """On the CPU, whose generator the database draws from."""
    sample = entries(name)[number]
    torch.manual_seed(1)
    module = FUSED[name](*sample.constructor_input.args, **sample.constructor_input.kwargs).double()
    assert not sample.forward_input.kwargs
    return module, list(sample.forward_input.args)


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, PackedSequence):
        return [value.data]
    return [value] if isinstance(value, Tensor) else [leaf for part in value or () for leaf in leaves(part)]


def fresh(value: Any) -> Any:
    """A copy whose tensors are leaves."""
    if isinstance(value, PackedSequence):
        return value._replace(data=fresh(value.data))
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_()
    return tuple(map(fresh, value))


def play(module: nn.RNNBase, arguments: list[Any], scoped: bool) -> tuple[list[Tensor], Any]:
    """One forward and backward on copies; all that can be seen of it, and the run."""
    module, arguments, scope = copy.deepcopy(module), [fresh(argument) for argument in arguments], nullcontext()
    module.flatten_parameters()  # copies are not, and cuDNN would complain
    if scoped:
        scope = gradscope.attach(module, quantities="full", every=1, max_sequences=None, strict=True)
    with scope:
        parts = unpacked(module(*arguments))
        loss_of(*parts).backward()
    seen = leaves(list(parts)) + [leaf.grad for leaf in leaves(arguments)] + [p.grad for p in module.parameters()]
    return [tensor.detach().clone() for tensor in (*seen, torch.get_rng_state())], scope.run if scoped else None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "number"), SAMPLES, ids=[f"{n}-{k}" for n, k in SAMPLES])
def test_entry(name: str, number: int, device: str) -> None:
    module, arguments = build(name, number)
    there = copy.deepcopy(module).to(device), [cases.moved(argument, device) for argument in arguments]
    bare, _ = play(*there, scoped=False)
    seen, run = play(*there, scoped=True)
    assert len(bare) == len(seen) and all(map(torch.equal, bare, seen))
    call = oracles.Call(module, arguments[0], loss_of, *arguments[1:])
    oracles.assert_agrees(run, oracles.frames(oracles.examine(call)))
    assert run.frame("layers")["residual"].max() <= 1e-10
    assert run.frame("notes").empty


def test_the_database_is_not_empty() -> None:
    """So that a renamed entry does not pass by being absent."""
    assert {name for name, _ in SAMPLES} == set(FUSED)
    assert len(SAMPLES) >= 128
