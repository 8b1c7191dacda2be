"""On a GPU: cuDNN's kernels, its hidden dropout, 16 bits with a scaler, and no wait for the device in between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import oracles
import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

import gradscope

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
FAMILIES = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def attach(model: nn.Module, **options: Any) -> gradscope.Scope:
    return gradscope.attach(
        model, **{"every": 1, "max_sequences": None, "quantities": "full", "strict": True, **options}
    )


def pair(family: str, **options: Any) -> tuple[nn.RNNBase, Tensor]:
    torch.manual_seed(0)
    module = FAMILIES[family](3, 4, dtype=torch.float64, **options)
    return module.cuda(), torch.randn(6, 4, 3, dtype=torch.float64).cuda()


def loss(output: Tensor, *_: Any) -> Tensor:
    return (output * torch.linspace(0.5, 2.0, output.numel()).to(output).view_as(output)).square().sum()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_cudnn_against_the_oracle(family: str, bidirectional: bool) -> None:
    module, x = pair(family, num_layers=2, bidirectional=bidirectional)
    with attach(module) as scope:
        loss(module(x)[0]).backward()
    truth = oracles.examine(oracles.Call(module.cpu(), x.cpu(), loss))
    oracles.assert_agrees(scope.run, oracles.frames(truth), rtol=1e-9)
    assert scope.run.frame("notes").empty


def train(model: nn.Module, steps: int = 4, scope: Any = None) -> list[Tensor]:
    """Everything that a training of a stack with dropout computes."""
    torch.manual_seed(1)
    optimizer, seen = torch.optim.Adam(model.parameters(), lr=1e-2), list[Tensor]()
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model(torch.randn(6, 4, 3, device="cuda"))[0])
        value.backward()
        optimizer.step()
        seen += [value.detach(), *(p.detach().clone() for p in model.parameters()), torch.cuda.get_rng_state()]
    return seen


def stack() -> nn.LSTM:
    torch.manual_seed(0)
    return nn.LSTM(3, 4, 2, dropout=0.5).cuda()


def test_bit_for_bit() -> None:
    bare, model = train(stack()), stack()
    with attach(model):
        seen = train(model)
    assert all(map(torch.equal, bare, seen))


def test_dropout_is_hidden_below_the_top_layer() -> None:
    model = stack()
    with attach(model) as scope:
        loss(model(torch.randn(6, 4, 3, device="cuda"))[0]).backward()
    gradients = scope.run.frame("timesteps", quantity="grad_h").set_index("layer")["p50"]
    assert gradients.loc[0].isna().all() and gradients.loc[1].notna().all()
    assert "split_layers=True" in scope.run.frame("notes", layer=0)["reason"].iloc[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_split_layers(family: str) -> None:
    """Every layer is certified against the kernels' outputs, states and weight gradients."""
    module, x = pair(family, num_layers=3, dropout=0.5)
    with pytest.warns(gradscope.GradscopeWarning, match="layer by layer"):
        with attach(module, split_layers=True) as scope:
            loss(module(x)[0]).backward()
    layers = scope.run.frame("layers")
    assert len(layers) == 3 and layers["residual"].max() < 1e-9
    assert scope.run.frame("timesteps", quantity="grad_h")["p50"].notna().all()


def test_split_layers_do_not_repeat_warnings_of_cudnn() -> None:
    """The weights of one layer are no stretch of memory of their own; torch warns of that, and warnings are errors."""
    model = stack()
    with pytest.warns(gradscope.GradscopeWarning) as caught, attach(model, split_layers=True):
        train(model)
    assert len(caught) == 1


def scaled(init_scale: float) -> gradscope.Run:
    torch.manual_seed(0)
    model = nn.GRU(3, 8, 2).cuda()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), GradScaler("cuda", init_scale=init_scale)
    with attach(model, quantities="core") as scope:
        for attempt in range(4):
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.float16):
                value = model(torch.randn(6, 4, 3, device="cuda"))[0].float().square().mean()
            scaler.scale(value * (torch.inf if attempt == 2 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
    return scope.run


def test_autocast_with_a_scaler() -> None:
    small, large = scaled(1.0), scaled(4096.0)
    for run in (small, large):
        assert run.frame("steps")["skipped"].tolist() == [False, False, True, False]
        assert [n > 0 for n in run.frame("steps")["nonfinite"]] == [False, False, True, False]
    finite = [0, 1, 3]
    one, other = (run.frame("steps", step=finite)["grad_norm"].tolist() for run in (small, large))
    assert one == pytest.approx(other, rel=1e-2)
    one, other = (run.frame("timesteps", step=finite, quantity="grad_h")["p50"].tolist() for run in (small, large))
    assert one == pytest.approx(other, rel=5e-2, abs=5e-3 * max(other))


@pytest.fixture
def _no_waiting() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_nothing_waits_for_the_device(_no_waiting: None) -> None:
    """Neither a step that is not recorded, nor forward and backward of one that is."""
    model = stack()
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(6, 4, 3, device="cuda")
    with attach(model, every=lambda step: step == 3, quantities="core") as scope:
        for step in range(4):
            optimizer.zero_grad()
            torch.cuda.set_sync_debug_mode("error")
            loss(model(x)[0]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            torch.cuda.set_sync_debug_mode("default" if step == 3 else "error")
            optimizer.step()
        torch.cuda.set_sync_debug_mode("default")
    assert scope.run.frame("layers")["step"].unique().tolist() == [3]
