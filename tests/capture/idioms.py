"""What the tests of fused layers share: models, data, and the truth."""

from __future__ import annotations

from typing import Any

import cases
import oracles
import pandas as pd
import torch
from torch import Tensor, nn

import gradscope

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def watch(model: nn.Module, **arguments: Any) -> gradscope.Scope:
    return gradscope.attach(
        model, **({"quantities": "full", "every": 1, "max_sequences": None, "strict": True} | arguments)
    )


def data(*shape: int) -> Tensor:
    return torch.randn(*(shape or (5, 3, 3)), dtype=torch.float64)


def lstm(**arguments: Any) -> nn.LSTM:
    return nn.LSTM(3, 4, dtype=torch.float64, **arguments)


def all_of(output: Any, h_n: Tensor, c_n: Tensor | None) -> Tensor:
    return cases.uneven(cases.values_of(output))


def truth(
    rnn: nn.RNNBase, x: Any, loss: oracles.Loss = all_of, hx: Any = None, weights: Any = None, **options: Any
) -> dict[str, pd.DataFrame]:
    return oracles.frames(oracles.examine(oracles.Call(rnn, x, loss, hx, weights=weights)), **options)
