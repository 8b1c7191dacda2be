"""`nn.DataParallel`: without devices it calls the model; its replicas, made here by hand, are said not to be seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradscope


class Broadcast(torch.autograd.Function):
    """What hands a replica its parameters."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> tuple[Tensor, ...]:
        return tuple(parameter.clone() for parameter in parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


def replica(module: nn.RNNBase) -> Any:
    """As `torch.nn.parallel.replicate` makes one."""
    made = module._replicate_for_data_parallel()
    copies = Broadcast.apply(*module.parameters())
    for (name, _), parameter in zip(module.named_parameters(), copies, strict=True):
        setattr(made, name, parameter)
    return made


def test_without_devices_the_model_is_called() -> None:
    module = nn.LSTM(3, 4)
    with gradscope.attach(module, every=1, strict=True) as scope:
        nn.DataParallel(module)(torch.randn(5, 2, 3))[0].sum().backward()
    assert len(scope.run.frame("layers")) == 1 and scope.run.frame("notes").empty


def test_replicas_are_said_not_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradscope.observe.unseen.has_compiled", lambda: False)  # whatever other tests have
    module = nn.LSTM(3, 4)
    with gradscope.attach(module, every=1, strict=True) as scope:
        replica(module)(torch.randn(5, 2, 3))[0].sum().backward()
    assert scope.run.frame("timesteps").empty
    assert "DataParallel" in scope.run.frame("notes")["reason"].item()
