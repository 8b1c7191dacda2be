"""More than one step, module and optimizer."""

from __future__ import annotations

from collections.abc import Callable

import cases
import oracles
import pandas as pd
import pytest
import torch
from cases import Case
from families.jobs import truth_of
from torch import Tensor, nn

import gradscope


class Frames:
    """Some tables, read as a run is."""

    def __init__(self, tables: dict[str, pd.DataFrame]) -> None:
        self.frame = tables.__getitem__


# -- more than one step, module and optimizer


def test_steps_are_counted_by_the_optimizer() -> None:
    """Five optimizer steps, every second one recorded, each with the weights that its forward used."""
    built = cases.build(Case("gru", 2))
    optimizer = torch.optim.SGD(built.module.parameters(), lr=0.1)
    expected = []
    with gradscope.attach(built.module, quantities="full", every=2, max_sequences=None) as scope:
        for step in range(5):
            optimizer.zero_grad()
            built.backward()
            if step % 2 == 0:
                expected.append(truth_of(built, step=step))
            optimizer.step()
    oracles.assert_agrees(scope.run, *expected)


@pytest.mark.parametrize("every", [3, lambda step: step in (0, 4)], ids=["interval", "callable"])
def test_every(every: int | Callable[[int], bool]) -> None:
    built = cases.build(Case("rnn_tanh"))
    optimizer = torch.optim.Adam(built.module.parameters())
    with gradscope.attach(built.module, every=every) as scope:
        for _ in range(6):
            optimizer.zero_grad()
            built.backward()
            optimizer.step()
    assert sorted(set(scope.run.frame("timesteps")["step"])) == ([0, 3] if isinstance(every, int) else [0, 4])


def test_defaults() -> None:
    """One line and nothing else: step 0 is recorded, with the core quantities."""
    built = cases.build(Case("gru", 2))
    optimizer = torch.optim.SGD(built.module.parameters(), lr=0.0)
    scope = gradscope.attach(built.module)
    for _ in range(3):
        optimizer.zero_grad()
        built.backward()
        optimizer.step()
    scope.close()
    first = {name: scope.run.frame(name, step=0) for name in oracles.ROWS}
    oracles.assert_agrees(Frames({**first, "spectra": pd.DataFrame()}), truth_of(built), quantities="core")


def test_first_step() -> None:
    built = cases.build(Case("rnn_tanh"))
    optimizer = torch.optim.SGD(built.module.parameters(), lr=0.1)
    with gradscope.attach(built.module, every=5, first_step=9) as scope:
        for _ in range(3):
            built.backward()
            optimizer.step()
    assert set(scope.run.frame("timesteps")["step"]) == {10}


class Tagger(nn.Module):
    """A bidirectional encoder, a decoder inside a Sequential, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(3, 4, bidirectional=True, dtype=torch.float64)
        self.inner = nn.ModuleDict({"decoder": nn.GRU(8, 3, num_layers=2, dtype=torch.float64)})
        self.head = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        encoded, _ = self.encoder(x)
        decoded, _ = self.inner["decoder"](encoded)
        return self.head(decoded)


def test_every_recurrent_layer_at_any_depth() -> None:
    """Each is held to an oracle of its own, the encoder's loss being all that follows it."""
    torch.manual_seed(0)
    model, x = Tagger(), torch.randn(5, 3, 3, dtype=torch.float64)
    with gradscope.attach(model, quantities="full", every=1, max_sequences=None) as scope:
        cases.uneven(model(x)).backward()
    decoder = model.inner["decoder"]
    encoded, _ = model.encoder(x)
    above = oracles.Call(decoder, encoded.detach(), lambda out, h, c: cases.uneven(model.head(out)))
    below = oracles.Call(model.encoder, x, lambda out, h, c: cases.uneven(model.head(decoder(out)[0])))
    oracles.assert_agrees(
        scope.run,
        oracles.frames(oracles.examine(above), module="inner.decoder"),
        oracles.frames(oracles.examine(below), module="encoder"),
    )
    assert sorted(tuple(key) for key in scope.run.layers) == [
        ("encoder", 0, "forward", 0),
        ("encoder", 0, "reverse", 0),
        ("inner.decoder", 0, "forward", 0),
        ("inner.decoder", 1, "forward", 0),
    ]


@pytest.mark.parametrize(
    ("patterns", "modules"),
    [
        ({"include": ["inner.*"]}, {"inner.decoder"}),
        ({"exclude": ["*decoder"]}, {"encoder"}),
        ({"include": ["*"], "exclude": ["enc*"]}, {"inner.decoder"}),
    ],
)
def test_include_and_exclude(patterns: dict, modules: set[str]) -> None:
    model, x = Tagger(), torch.randn(5, 3, 3, dtype=torch.float64)
    with gradscope.attach(model, every=1, **patterns) as scope:
        model(x).sum().backward()
    assert set(scope.run.frame("layers")["module"]) == modules
