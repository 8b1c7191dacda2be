"""Hugging Face Accelerate: its loop under a scope is a plain loop under a scope."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks.plain import assert_same_records, batches, found, net, plain, same_bits
from processors import needs
from torch import nn
from torch.nn import functional as F

import gradscope

accelerate = pytest.importorskip("accelerate", minversion="1.0", reason="make frameworks installs Accelerate")
from gradscope_integrations.accelerate import FILE, Gradscope  # noqa: E402


@pytest.fixture
def accelerator() -> Any:
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()
    yield lambda **options: accelerate.Accelerator(cpu=True, **options)
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()


def train(
    accelerator: Any, data: list[Any], clip: bool = False, load: Path | None = None, save: Path | None = None,
    watching: Gradscope | None = None,
) -> nn.Module:  # fmt: skip
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    if load:
        accelerator.load_state(load)
    torch.manual_seed(2)
    scope = watching.attach(model) if watching else None
    for x, y in data:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(x), y))
            if clip and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    if save:
        accelerator.save_state(save)
    if scope:
        scope.close()
    return accelerator.unwrap_model(model)


def clip_norm(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_loop(accelerator: Any, accumulate: int) -> None:
    accelerator = accelerator(gradient_accumulation_steps=accumulate)
    watching = Gradscope(accelerator, every=1, strict=True)
    model, alone = train(accelerator, batches(6), clip=True, watching=watching), net()
    bare = train(accelerator, batches(6), clip=True)
    assert_same_records(watching.run, plain(alone, batches(6), clip=clip_norm, accumulate=accumulate))
    assert same_bits(model, bare) and same_bits(model, alone)
    assert not same_bits(model, net())
    found(
        "Accelerate",
        "accelerate",
        "gradscope_integrations.accelerate",
        "as in a plain loop",
        identical=same_bits(model, bare),
    )


@needs("LSTM in bfloat16")
def test_mixed_precision(accelerator: Any) -> None:
    accelerator = accelerator(mixed_precision="bf16")
    watching = Gradscope(accelerator, every=1, strict=True)
    assert same_bits(train(accelerator, batches(4), watching=watching), train(accelerator, batches(4)))
    layers = watching.run.frame("layers")
    assert set(layers["module"]) == {"rnn"} and (layers["residual"] < 5e-2).all()


def test_resumed(accelerator: Any, tmp_path: Path) -> None:
    first = accelerator()
    train(first, batches(3), save=tmp_path / "state", watching=Gradscope(first, tmp_path / "run", every=1))
    again = accelerate.Accelerator(cpu=True)
    watching = Gradscope(again, tmp_path / "run", every=1)
    train(again, batches(3), load=tmp_path / "state", watching=watching)
    assert list(gradscope.load(tmp_path / "run").frame("steps")["step"]) == [0, 1, 2, 3, 4, 5]


def test_a_state_saved_without_us_is_loaded_as_ever(accelerator: Any, tmp_path: Path) -> None:
    first = accelerator()
    train(first, batches(1), save=tmp_path)
    assert not (tmp_path / FILE).exists()
    again = accelerate.Accelerator(cpu=True)
    watching = Gradscope(again, every=1)
    train(again, batches(1), load=tmp_path, watching=watching)
    assert list(watching.run.frame("steps")["step"]) == [0]
