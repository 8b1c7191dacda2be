"""Any sequence module, `attach(positions=...)`, against float64 autograd: one sequence and one anchor at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.errors import AttachError

SHAPE = 9, 3, 6  # timesteps, sequences, features
SGD = torch.optim.SGD


class Convolution(nn.Module):
    """Causal, over [T, B, F] or [B, T, F]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv, self.dim = nn.Conv1d(SHAPE[2], 4, 3), dim

    def forward(self, x: Tensor) -> Tensor:
        by_feature = x.permute(1, 2, 0) if self.dim == 0 else x.transpose(1, 2)
        out = self.conv(nn.functional.pad(by_feature, (2, 0))).tanh()
        return out.permute(2, 0, 1) if self.dim == 0 else out.transpose(1, 2)


class Attention(nn.Module):
    """Gives a tuple, and its inner module one tensor three times."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(SHAPE[2], 2, batch_first=dim == 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x, x, x)


class Writing(nn.Module):
    """Writes into its input, and has a part whose mode is not its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dropout = Convolution(0), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return self.dropout(self.conv(x))


class Model(nn.Module):
    """A module in the middle of others."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.before, self.encoder = nn.Linear(SHAPE[2], SHAPE[2]), encoder

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return first(self.encoder(self.before(x), **options))


def first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def transformer(dim: int, dropout: float = 0.0) -> nn.Module:
    layer = nn.TransformerEncoderLayer(SHAPE[2], 2, 8, dropout, batch_first=dim == 1)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def batch(dim: int = 0) -> Tensor:
    x = torch.randn(SHAPE, dtype=torch.float64)
    return x if dim == 0 else x.transpose(0, 1).contiguous()


def last(y: Tensor, dim: int = 0) -> Tensor:
    return y.select(dim, -1).square().sum()


def some(y: Tensor, dim: int = 0) -> Tensor:
    """Gradient at six positions, of different sizes; not at the last."""
    steps = torch.tensor([0, 2, 3, 5, 6, 7])
    return (y.index_select(dim, steps).square() * 0.1).exp().sum()


def every(y: Tensor, dim: int = 0) -> Tensor:
    return y.sin().sum()


def truth(module: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], dim: int, **options: Any) -> dict[str, Any]:
    """`grad_h` [T, B] and `reach` [lags, B] as the page of the tables defines them; slow and obvious."""
    x = x.detach().clone().requires_grad_()
    y = first(module(x.clone(), **options))
    entering = torch.autograd.grad(loss(y), y, retain_graph=True)[0].transpose(0, dim)
    grad_h = entering.norm(dim=-1)
    reach: list[list[float]] = []
    for b in range(entering.shape[1]):
        enters = [t for t in range(len(entering)) if grad_h[t, b] != 0]
        m, count = len(enters), min(3, len(enters))
        anchors = [enters[(j + 1) * m // count - 1] for j in range(count)]
        ratios: dict[int, list[float]] = {}
        for anchor in anchors:
            seed = torch.zeros_like(entering)
            seed[anchor, b] = entering[anchor, b]
            (back,) = torch.autograd.grad(y, x, seed.transpose(0, dim), retain_graph=True)
            sizes = back.transpose(0, dim)[:, b].norm(dim=-1)
            for lag in range(anchor + 1):
                ratios.setdefault(lag, []).append(float(sizes[anchor - lag] / sizes[anchor]))
        reach.append([float(np.median(ratios[lag])) for lag in sorted(ratios)])
    return {"grad_h": grad_h.numpy(), "reach": np.array(reach).T, "state": y.detach().transpose(0, dim)}


def assert_agrees(run: gradscope.Run, expected: dict[str, Any], **where: Any) -> None:
    """Hold a run's rows to the truth."""
    wanted = {"module": "encoder", "layer": -1, "chain": 0, **where}

    def rows(table: str) -> Any:
        frame = run.frame(table)
        for column, value in wanted.items():
            frame = frame[frame[column] == value]
        return frame

    for name, frame, order in (
        ("grad_h", rows("timesteps").query("quantity == 'grad_h'"), "t"),
        ("reach", rows("reach"), "lag"),
    ):
        frame = frame.sort_values(order)
        assert list(frame[order]) == list(range(len(expected[name])))
        for q in (10, 50, 90):
            np.testing.assert_allclose(frame[f"p{q}"], np.percentile(expected[name], q, axis=1), rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(frame["mean"], expected[name].mean(1), rtol=1e-9, atol=1e-15)
        assert (frame["nonfinite"] == 0).all()
    assert (rows("layers").residual <= 1e-12).all() and len(rows("layers")) == 1
    state = rows("timesteps").query("quantity == 'state'").sort_values("t")
    size = expected["state"].square().mean(-1).sqrt().numpy()
    np.testing.assert_allclose(state["mean"], size.mean(1), rtol=1e-9)


@pytest.mark.parametrize("loss", [last, some, every])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(
    "make",
    [
        transformer,
        Convolution,
        Attention,
        lambda dim: nn.LSTM(SHAPE[2], 5, batch_first=dim == 1),
        lambda dim: nn.Sequential(nn.Linear(SHAPE[2], 4), nn.Tanh()),
    ],
    ids=["transformer", "convolution", "attention", "lstm", "perceptron"],
)
def test_against_autograd(make: Callable[[int], nn.Module], dim: int, loss: Callable[..., Tensor]) -> None:
    model, x = Model(make(dim)).double(), batch(dim)
    expected = truth(copy.deepcopy(model.encoder), model.before(x), lambda y: loss(y, dim), dim)
    optimizer = SGD(model.parameters(), 1.0)
    with gradscope.attach(model, positions={"encoder": dim}, every=1) as scope:
        loss(model(x), dim).backward()
        optimizer.step()  # the copies that are run again are of the weights before
    assert_agrees(scope.run, expected)
    assert len(scope.run.frame("notes")) == 0


def test_what_reaches_nowhere() -> None:
    """A perceptron works on every position alone: reach 0 at all lags but the first."""
    model = Model(nn.Linear(SHAPE[2], 4)).double()
    with gradscope.attach(model, positions={"encoder": 0}, every=1) as scope:
        last(model(batch())).backward()
    assert list(scope.run.frame("reach")["mean"]) == [1, *[0] * 8]
    assert list(scope.run.frame("layers").horizon) == [1]


@pytest.mark.parametrize("dim", [0, 1])
def test_dropout_is_drawn_again_and_nothing_else_is(dim: int) -> None:
    model, x = Model(transformer(dim, 0.4)).double(), batch(dim)
    drawn = torch.get_rng_state()
    expected = truth(copy.deepcopy(model.encoder), model.before(x), lambda y: some(y, dim), dim)
    after = torch.get_rng_state()
    assert not torch.equal(drawn, after)
    torch.set_rng_state(drawn)
    with gradscope.attach(model, positions={"encoder": dim}, every=1) as scope:
        some(model(x), dim).backward()
        layers = scope.run.frame("layers")
        assert torch.equal(torch.get_rng_state(), after)
    assert list(layers.residual) == [0]
    assert_agrees(scope.run, expected)


def test_masks_by_keyword() -> None:
    model, x = Model(transformer(1)).double(), batch(1)
    mask = nn.Transformer.generate_square_subsequent_mask(SHAPE[0], dtype=torch.float64)
    padding = torch.zeros(SHAPE[1], SHAPE[0], dtype=torch.float64)
    padding[1, :4] = -torch.inf
    mask[:, 0] = 0.0
    padding[:, 0] = 0.0
    options = {"mask": mask, "src_key_padding_mask": padding}
    expected = truth(copy.deepcopy(model.encoder), model.before(x), lambda y: last(y, 1), 1, **options)
    assert (expected["reach"][5:8, 1] == 0).all() and (expected["reach"][5:8, 0] > 0).all()
    with gradscope.attach(model, positions={"encoder": 1}, every=1) as scope:
        last(model(x, **options), 1).backward()
    assert_agrees(scope.run, expected)


def test_modes_and_writes_of_the_module() -> None:
    model = Model(Writing()).double()
    model.encoder.dropout.eval()
    x = batch()
    expected = truth(copy.deepcopy(model.encoder), model.before(x), some, 0)
    with gradscope.attach(model, positions={"encoder": 0}, every=1) as scope:
        some(model(x)).backward()
    assert_agrees(scope.run, expected)
    assert model.training and model.encoder.training and not model.encoder.dropout.training


def test_one_tensor_given_three_times() -> None:
    """Attention of a sequence to itself: what reaches the queries, the keys and the values is one gradient."""
    model, x = nn.ModuleDict({"encoder": nn.MultiheadAttention(SHAPE[2], 2)}).double(), batch()
    alone = copy.deepcopy(model["encoder"])
    asked = Attention(0).double()
    asked.inner = alone
    expected = truth(asked, x, some, 0)
    with gradscope.attach(model, positions={"encoder": 0}, every=1) as scope:
        some(first(model["encoder"](x, x, value=x))).backward()
    assert (expected["reach"] > 0).all()
    assert_agrees(scope.run, expected)


def test_several_calls() -> None:
    model, a, b = Model(Convolution(0)).double(), batch(), batch()
    frozen = copy.deepcopy(model)
    with gradscope.attach(model, positions={"encoder": 0}, every=1) as scope:
        (some(model(a)) + last(model(b))).backward()
    assert_agrees(scope.run, truth(frozen.encoder, frozen.before(a), some, 0), chain=0)
    assert_agrees(scope.run, truth(frozen.encoder, frozen.before(b), last, 0), chain=1)


def test_gradients_that_accumulate() -> None:
    """Two backward passes through one output: the sum of both; the micro-batch after that is not recorded."""
    model, x = Model(Convolution(0)).double(), batch()
    expected = truth(copy.deepcopy(model.encoder), model.before(x), lambda y: some(y) + last(y), 0)
    with gradscope.attach(model, positions={"encoder": 0}, every=1) as scope:
        y = model(x)
        some(y).backward(retain_graph=True)
        last(y).backward()
        every(model(batch())).backward()
    assert_agrees(scope.run, expected)


@pytest.mark.parametrize("name", ["", "0"])
def test_the_model_itself(name: str) -> None:
    """With an LSTM in it, and with input that has no gradient; the LSTM is recorded beside it, as ever."""
    model = nn.Sequential(nn.Linear(SHAPE[2], SHAPE[2]), nn.LSTM(SHAPE[2], 5)).double()
    model = model if name == "" else nn.Sequential(model)
    expected = truth(copy.deepcopy(model), x := batch(), some, 0)
    with gradscope.attach(model, positions={name: 0}, every=1) as scope:
        some(first(model(x))).backward()
    assert_agrees(scope.run, expected, module=name)
    lstm = scope.run.frame("layers").query("layer == 0")
    assert list(lstm.module) == [f"{name}.1".lstrip(".")] and (lstm.residual < 1e-12).all()


def test_few_sequences() -> None:
    model, x = Model(Convolution(0)).double(), batch()
    expected = truth(copy.deepcopy(model.encoder), model.before(x), some, 0)
    with gradscope.attach(model, positions={"encoder": 0}, every=1, max_sequences=2) as scope:
        some(model(x)).backward()
    chosen = {name: expected[name][:, [0, 2]] for name in ("grad_h", "reach", "state")}
    assert_agrees(scope.run, chosen)


class Tokens(nn.Module):
    """Takes integers, which have no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.conv = nn.Embedding(7, SHAPE[2]), Convolution(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.embedding(x))


def test_input_that_can_have_no_gradient() -> None:
    model = nn.ModuleDict({"encoder": Tokens()}).double()
    with gradscope.attach(model, positions={"encoder": 0}, every=1) as scope:
        last(model["encoder"](torch.randint(7, SHAPE[:2]))).backward()
    rows = scope.run.frame("timesteps").query("quantity == 'grad_h'")
    assert (rows["mean"] > 0).tolist() == [False] * 8 + [True]
    assert len(scope.run.frame("reach")) == 0 and scope.run.frame("layers").horizon.isna().all()


class Positional(nn.Module):
    """Its output does not depend on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(SHAPE))

    def forward(self, x: Tensor) -> Tensor:
        return self.table * 1


def test_output_that_does_not_depend_on_the_input() -> None:
    model = Model(Positional()).double()
    with gradscope.attach(model, positions={"encoder": 0}, every=1) as scope:
        last(model(batch())).backward()
    reach = scope.run.frame("reach")
    assert reach["mean"].isna().all() and (reach["nonfinite"] == SHAPE[1]).all()
    assert scope.run.frame("layers").horizon.isna().all() and len(scope.run.frame("timesteps")) == 2 * SHAPE[0]


def train(watched: bool) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(4)
    model = Model(transformer(1, 0.3))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    scope = gradscope.attach(model, positions={"encoder": 1, "before": 1}, every=1) if watched else None
    seen: list[Tensor] = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = every(model(batch(1).float()))
        loss.backward()
        optimizer.step()
        seen += [loss.detach(), *(p.detach().clone() for p in model.parameters())]
        seen += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    if scope:
        scope.close()
        assert len(scope.run.frame("layers")) == 8
    return seen, torch.get_rng_state()


def test_training_is_the_same_bit_for_bit() -> None:
    (plain, state), (observed, state_observed) = train(False), train(True)
    assert len(plain) == len(observed) and all(map(torch.equal, plain, observed))
    assert torch.equal(state, state_observed)


def test_a_module_whose_parts_are_called_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a layer; said once, and not in a step in which nothing of it is used."""
    monkeypatch.setattr("gradscope.observe.unseen.has_compiled", lambda: False)  # whatever other tests have
    model = nn.ModuleDict({"lstm": nn.LSTM(SHAPE[2], 6), "encoder": nn.Sequential(nn.Linear(6, 4), nn.Tanh())})
    optimizer = SGD(model.parameters(), 0.1)
    with gradscope.attach(model.double(), positions={"encoder": 0}, every=1, strict=True) as scope:
        for used in (False, True, True):
            optimizer.zero_grad()
            y = model["lstm"](batch())[0]
            last(model["encoder"][0](y) if used else y).backward()
            optimizer.step()
    notes = scope.run.frame("notes")
    assert list(notes.module) == ["encoder"] and list(notes.step) == [1]
    assert "calls of the module itself" in notes.reason.item()
    assert list(scope.run.frame("layers").module) == ["lstm"] * 3


def test_nothing_is_left() -> None:
    model = Model(transformer(0, 0.1))
    kinds = {type(m) for m in model.modules()}
    before = {kind: (kind.forward, "forward" in vars(kind)) for kind in kinds}
    attributes = {name: dict(vars(m)) for name, m in model.named_modules()}
    scope = gradscope.attach(model, positions={"encoder": 0, "encoder.layers.?": 0}, every=1)
    assert nn.TransformerEncoder.forward is not before[nn.TransformerEncoder][0]
    last(model(batch().float())).backward()
    assert set(scope.run.frame("layers").module) >= {"encoder", "encoder.layers.0", "encoder.layers.1"}
    scope.close()
    assert all((kind.forward, "forward" in vars(kind)) == before[kind] for kind in kinds)
    for name, module in model.named_modules():
        assert vars(module).keys() == attributes[name].keys()
        assert not module._forward_hooks and not module._backward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ({"encodr": 0}, "'encodr' matches no module of the model. Did you mean 'encoder'"),
        ({"encoder": 2}, "'encoder' -> 2: the time dimension of the output is 0 or 1"),
        ({"encoder": -1}, "the time dimension of the output is 0 or 1"),
    ],
)
def test_errors(positions: dict[str, int], message: str) -> None:
    model = Model(Convolution(0))
    forward = Convolution.forward
    with pytest.raises(AttachError, match=message.replace(".", r"\.")):
        gradscope.attach(model, positions=positions)
    assert Convolution.forward is forward
