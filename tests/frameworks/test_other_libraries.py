"""Recurrent layers of other libraries: seen with small residuals, trained bit for bit as without a scope.

The versions are the least that these tests are known to pass with; `make frameworks` installs them.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn

import gradscope

pytestmark = pytest.mark.filterwarnings("ignore")  # what these libraries warn of on import and in training is theirs
STEPS, BATCH, TIME, INPUT, HIDDEN = 2, 4, 10, 3, 8
ROUNDING = 1e-5


def library(module: str, distribution: str, least: str) -> Any:
    """A module of a library; a test of it skips where that is missing or too old."""
    try:
        found = version(distribution)
    except PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed: make frameworks")
    if Version(found) < Version(least):
        pytest.skip(f"{distribution} {found} is installed, and {least} or later is needed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def train(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> list[Tensor]:
    """Everything that a training leaves behind."""
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.1), list[Tensor]()
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return [*losses, *(p.detach() for p in model.parameters()), *model.buffers(), torch.get_rng_state()]


def observed(make: Callable[[], nn.Module], loss: Callable[[nn.Module], Tensor], **options: Any) -> gradscope.Run:
    """What is recorded of a training that is the same to the last bit without."""
    torch.manual_seed(0)
    bare = train(make(), loss)
    torch.manual_seed(0)
    with gradscope.attach(model := make(), every=1, strict=True, **options) as scope:
        watched = train(model, loss)
    assert len(bare) == len(watched) and all(map(torch.equal, bare, watched))
    return scope.run


def holds(run: gradscope.Run, module: str, timesteps: int) -> None:
    """One recurrence, all of it seen, at every step."""
    layers = run.frame("layers")
    assert layers["module"].tolist() == [module] * STEPS
    assert layers["timesteps"].tolist() == [timesteps] * STEPS
    assert layers["residual"].max() < ROUNDING
    total = run.frame("timesteps", quantity="grad_h")
    assert len(total) == STEPS * timesteps and (total["p50"] > 0).all()
    assert run.frame("notes").empty


@pytest.mark.parametrize(("kind", "states"), [("LSTMModule", ("h", "c")), ("GRUModule", ("h",))])
def test_torchrl(kind: str, states: tuple[str, ...]) -> None:
    modules, tensordict = library("torchrl.modules", "torchrl", "0.14"), library("tensordict", "tensordict", "0.14")

    def make() -> nn.Module:
        given = {"in_keys": ["x", *states], "out_keys": ["y", *(("next", state) for state in states)]}
        return getattr(modules, kind)(input_size=INPUT, hidden_size=HIDDEN, **given)

    def loss(model: nn.Module) -> Tensor:
        first = {state: torch.zeros(BATCH, TIME, 1, HIDDEN) for state in states}
        starts = torch.zeros(BATCH, TIME, 1, dtype=torch.bool)
        data = {"x": torch.randn(BATCH, TIME, INPUT), "is_init": starts, **first}
        with modules.set_recurrent_mode(True):
            return model(tensordict.TensorDict(data, [BATCH, TIME]))["y"].square().mean()

    holds(observed(make, loss), kind.removesuffix("Module").lower(), TIME)


@pytest.mark.parametrize("kind", ["DPLSTM", "DPGRU", "DPRNN"])
def test_opacus(kind: str) -> None:
    layers = library("opacus.layers", "opacus", "1.6")
    run = observed(lambda: getattr(layers, kind)(INPUT, HIDDEN, batch_first=True), output_of)
    holds(run, "l0", TIME)


def test_ncps() -> None:
    modules = library("ncps.torch", "ncps", "1.0.1")
    holds(observed(lambda: modules.CfC(INPUT, HIDDEN), output_of), "rnn_cell", TIME)


def test_xlstm() -> None:
    """Its sLSTM takes all steps at once: its gradient is seen at every position, and what is not seen is said."""
    layer = library("xlstm.blocks.slstm.layer", "xlstm", "2.0.6")
    config = layer.sLSTMLayerConfig(embedding_dim=16, num_heads=2, conv1d_kernel_size=0, backend="vanilla")

    def make() -> nn.Module:
        made = layer.sLSTMLayer(config)
        made.reset_parameters()
        return made

    def loss(model: nn.Module) -> Tensor:
        return model(torch.randn(BATCH, TIME, 16)).square().mean()

    run = observed(make, loss, positions={"": 1})
    places = {"module": "", "layer": -1}
    assert run.frame("layers", **places)["residual"].tolist() == [0.0] * STEPS
    assert len(run.frame("timesteps", quantity="grad_h", **places)) == STEPS * TIME
    said = run.frame("notes")
    assert (
        len(said)
        and said["reason"].str.contains("cell").all()
        and said["reason"].str.contains("positions=|all timesteps").all()
    )


def test_darts(tmp_path: Path) -> None:
    """By its own trainer, which is Lightning's."""
    darts, models = library("darts", "darts", "0.48"), library("darts.models", "darts", "0.48")
    from gradscope_integrations.lightning import GradscopeCallback

    series = darts.TimeSeries.from_values(np.sin(np.arange(60) / 5).astype(np.float32))
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)

    def fit(*callbacks: Any) -> Mapping[str, Tensor]:
        trainer = {"accelerator": "cpu", "callbacks": list(callbacks), **quiet}
        shape = {"input_chunk_length": 8, "training_length": 16, "hidden_dim": HIDDEN}
        model = models.RNNModel(
            model="LSTM", n_epochs=1, batch_size=8, random_state=0, pl_trainer_kwargs=trainer, **shape
        )  # fmt: skip
        model.fit(series)
        return model.model.state_dict()

    bare, watched = fit(), fit(GradscopeCallback(tmp_path, every=1))
    assert bare.keys() == watched.keys() and all(torch.equal(bare[name], watched[name]) for name in bare)
    run = gradscope.load(tmp_path)
    assert set(run.frame("layers")["module"]) == {"rnn"} and run.frame("layers")["residual"].max() < ROUNDING
    assert run.frame("notes").empty and len(run.frame("layers")) > 3


def output_of(model: nn.Module) -> Tensor:
    """A loss on the output of a layer [B, T, .]."""
    return model(torch.randn(BATCH, TIME, INPUT))[0].square().mean()
