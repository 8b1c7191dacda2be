"""On a GPU: cuDNN's kernels and its dropout masks, cells in loops, 16 bits with a scaler, and no wait in between."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import oracles
import pytest
import torch
from cases import moved
from chains.hold import CELLS, a_cell, assert_same_tables, data, h_of
from chains.named import NAMED, Own
from torch import Tensor, nn
from torch.amp import GradScaler

import gradscope
from gradscope import cells

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
    weights = torch.linspace(0.5, 2.0, output.numel(), dtype=output.dtype, device=output.device)
    return (output * weights.view_as(output)).square().sum()


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


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_masks_are_read(family: str, layers: int, bidirectional: bool, packed: bool) -> None:
    """Every layer is certified against the kernel's outputs, states and the gradients of its weights."""
    module, x = pair(family, num_layers=layers, bidirectional=bidirectional, dropout=0.5)
    given: Any = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 4, 4, 1])) if packed else x
    with attach(module) as scope:
        output = module(given)[0]
        loss(output.data if packed else output).backward()
    run = scope.run
    assert run.frame("notes").empty, run.frame("notes")["reason"].tolist()
    assert len(run.frame("layers")) == layers * (1 + bidirectional) and run.frame("layers")["residual"].max() < 1e-9
    assert run.frame("timesteps", quantity="grad_h")["p50"].notna().all()


@pytest.mark.filterwarnings("ignore:RNN module weights are not part")  # torch never lays those in bfloat16 out
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_masks_of_wide_layers(family: str, dtype: torch.dtype) -> None:
    """Where cuDNN may choose another way to compute, and in 16 bits; batch first."""
    torch.manual_seed(0)
    module = FAMILIES[family](32, 128, 3, dropout=0.3, batch_first=True, dtype=dtype).cuda()
    with attach(module, quantities="core") as scope:
        module(torch.randn(33, 40, 32, dtype=dtype, device="cuda"))[0].float().square().sum().backward()
    assert scope.run.frame("notes").empty, scope.run.frame("notes")["reason"].tolist()
    assert scope.run.frame("timesteps", quantity="grad_h")["p50"].notna().all()


def looped(cell: nn.Module, device: str, initial: Any, read: Callable[[Any], Tensor]) -> gradscope.Run:
    """What is recorded of a cell in a loop of six steps, on that device."""
    cell, x, state = copy.deepcopy(cell).to(device), data(6, 3, 3).to(device), moved(initial, device)
    seen: list[Tensor] = []
    with attach(cell) as scope:
        for x_t in x:
            state = cell.advance(x_t, state) if isinstance(cell, Own) else cell(x_t, state)
            seen.append(read(state))
        loss(torch.stack(seen)).backward()
    assert scope.run.frame("notes").empty, scope.run.frame("notes")["reason"].tolist()
    return scope.run


@pytest.mark.parametrize("kind", CELLS)
def test_cells_as_on_the_host(kind: str) -> None:
    initial = torch.zeros(3, 4, dtype=torch.float64)
    cell, state = a_cell(kind, 3, 4), (initial, initial) if kind == "lstm" else initial
    assert_same_tables(*(looped(cell, device, state, h_of) for device in ("cpu", "cuda")), tables=oracles.ROWS)


@pytest.mark.parametrize("name", NAMED)
def test_own_cells_as_on_the_host(name: str) -> None:
    torch.manual_seed(0)
    cell = NAMED[name][0]()
    runs = [looped(cell, device, cell.initial(3), cell.read) for device in ("cpu", "cuda")]
    assert_same_tables(*runs, tables=("timesteps", "reach", "layers"))


@pytest.mark.parametrize("cell", [cells.RNNCell, cells.LSTMCell, cells.GRUCell, cells.LayerNormLSTMCell])
def test_reference_cells_as_on_the_host(cell: Any) -> None:
    torch.manual_seed(0)
    model, x = cells.Recurrent(cell, 3, 4, num_layers=2, skip="residual").double(), data(6, 3, 3)
    runs: list[gradscope.Run] = []
    for device in ("cpu", "cuda"):
        mine = copy.deepcopy(model).to(device)
        with attach(mine) as scope:
            loss(mine(x.to(device))[0]).backward()
        runs.append(scope.run)
    assert_same_tables(*runs, tables=oracles.ROWS)


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
    loss(model(x)[0]).backward()  # cuDNN waits where it makes its generator, once
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
