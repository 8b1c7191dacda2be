"""Behind `torch.compile` a layer is seen as ever, or said not to be; and what is compiled does not change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.private import inner_module

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*:UserWarning:torch")
STEPS = 4
TABLES = ("timesteps", "reach", "gates", "units", "weights", "layers")


class Fused(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Linear(3, 3), kind(3, 4, 2, dropout=0.3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0]).square().mean()


class Own(nn.Module):
    """A cell of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.a(x) + self.b(h))


class Loop(nn.Module):
    """Calls a cell, in the graph or out of it."""

    def __init__(self, cell: nn.Module, apart: bool = False) -> None:
        super().__init__()
        self.cell, self.head, self.apart = cell, nn.Linear(4, 2), apart

    def forward(self, x: Tensor) -> Tensor:
        unrolled = self.unrolled_apart(x) if self.apart else self.unrolled(x)
        return self.head(unrolled).square().mean()

    def unrolled(self, x: Tensor) -> Tensor:
        h, states = x.new_zeros(x.shape[1], 4), []
        for row in x:
            h = self.cell(row, h)
            states.append(h)
        return torch.stack(states)

    @torch.compiler.disable
    def unrolled_apart(self, x: Tensor) -> Tensor:
        return self.unrolled(x)


class Encoded(nn.Module):
    """Calls a module that is observed by position, in the graph or out of it."""

    def __init__(self, apart: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))
        self.head, self.apart = nn.Linear(4, 2), apart

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encode_apart(x) if self.apart else self.encoder(x)).square().mean()

    @torch.compiler.disable
    def encode_apart(self, x: Tensor) -> Tensor:
        return self.encoder(x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lstm": Fused,
    "gru": lambda: Fused(nn.GRU),
    "cell": lambda: Loop(nn.GRUCell(3, 4)),
    "own cell": lambda: Loop(Own()),
    "cell apart": lambda: Loop(nn.GRUCell(3, 4), apart=True),
    "own cell apart": lambda: Loop(Own(), apart=True),
    "positions": Encoded,
    "positions apart": lambda: Encoded(apart=True),
}
SEEN = {"lstm", "gru", "cell apart", "own cell apart", "positions apart"}
Trained = tuple[list[bytes], list[int], "gradscope.Scope | None"]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()
    torch._dynamo.config.allow_rnn = False


def train(
    name: str, when: str, backend: str | None = "aot_eager", allow_rnn: bool = False, whole: bool = False
) -> Trained:
    """Bits of everything, graphs compiled up to each step, and the scope.

    Args:
        name: of the model.
        when: the scope is attached: `never`, `before` compiling, `wrapper`: to what compiling returned, or `late`:
            after the first step.
        backend: None leaves the model as it is.
        allow_rnn: have dynamo trace fused layers.
        whole: compile the step with its backward pass, not the model.
    """
    torch._dynamo.reset()
    torch._dynamo.config.allow_rnn = allow_rnn
    torch.manual_seed(0)
    model = MODELS[name]()
    graphs = Counting(backend)
    scope = attach(model) if when == "before" else None
    compiled = model if backend is None or whole else torch.compile(model, backend=graphs)
    scope = attach(compiled) if when == "wrapper" else scope
    optimizer, seen, counts = torch.optim.SGD(model.parameters(), 0.1), list[bytes](), list[int]()

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = compiled(x)
        loss.backward()
        optimizer.step()
        return loss

    run = torch.compile(step, backend=graphs) if whole else step
    for number in range(STEPS):
        if when == "late" and number == 1:
            scope = attach(model)
        loss = run(torch.randn(5, 2, 3))
        seen += [t.detach().numpy().tobytes() for t in (loss, *model.parameters(), torch.get_rng_state())]
        counts.append(graphs.count)
    if scope is not None:
        scope.close()
    return seen, counts, scope


def attach(model: nn.Module) -> gradscope.Scope:
    positions = {"encoder": 0} if isinstance(inner_module(model), Encoded) else None
    return gradscope.attach(model, every=1, max_sequences=None, positions=positions, strict=True)


class Counting:
    """A backend that counts the graphs it is given."""

    def __init__(self, backend: str | None) -> None:
        self.backend, self.count = backend, 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.count += 1
        return torch._dynamo.lookup_backend(self.backend or "eager")(graph, inputs)


def expecting(name: str) -> Any:
    return nullcontext() if name in SEEN else pytest.warns(gradscope.GradscopeWarning, match="graph of torch.compile")


@pytest.mark.parametrize(
    ("name", "when"),
    [("lstm", "wrapper"), *((name, when) for name in MODELS if name != "gru" for when in ("before", "late"))],
)
def test_seen_as_ever_or_said_not_to_be(name: str, when: str) -> None:
    bare = train(name, "never")
    with expecting(name):
        seen, counts, scope = train(name, when)
    assert scope is not None and seen == bare[0]
    assert counts[-1] == counts[1] <= bare[1][-1] + 1  # attaching may cost one compilation, no step does
    if name not in SEEN:
        reasons = scope.run.frame("notes", module="encoder" if name == "positions" else "cell")
        assert (
            len(reasons) == STEPS - (when == "late") and reasons["reason"].str.contains("torch.compiler.disable").all()
        )
        assert scope.run.frame("timesteps").empty
        return
    eager = train(name, "late" if when == "late" else "before", backend=None)[2]
    assert eager is not None and scope.run.frame("notes").empty
    for table in TABLES:
        torch.testing.assert_close(
            *(numbers(run, table) for run in (scope.run, eager.run)), rtol=0, atol=0, equal_nan=True
        )


def numbers(run: gradscope.Run, table: str) -> Tensor:
    frame = run.frame(table)
    assert len(frame) or table in ("gates", "units", "weights")  # only those of torch's layers are known
    return torch.tensor(frame.select_dtypes("number").to_numpy(dtype=float))


@pytest.mark.parametrize("when", ["before", "wrapper", "late"])
def test_a_fused_layer_in_the_graph(when: str) -> None:
    """With `allow_rnn` it is traced, and no Python sees its calls."""
    bare = train("gru", "never", "eager", allow_rnn=True)
    with pytest.warns(gradscope.GradscopeWarning, match="allow_rnn"):
        seen, counts, scope = train("gru", when, "eager", allow_rnn=True)
    assert scope is not None and seen == bare[0]
    assert counts[-1] == counts[1] <= bare[1][-1] + 1
    assert len(scope.run.frame("notes", module="rnn")) == STEPS - (when == "late")


@pytest.mark.parametrize("name", ["lstm", "own cell apart"])
def test_a_whole_step_compiled(name: str) -> None:
    """Backward pass and optimizer within: hooks of ours are not what dynamo compiles."""
    bare = train(name, "never", whole=True)
    seen, counts, scope = train(name, "before", whole=True)
    assert seen == bare[0] and counts == bare[1]
    assert scope is not None and scope.run.frame("notes").empty
    assert scope.run.frame("layers")["step"].nunique() == STEPS


@pytest.mark.skipif("GRADSCOPE_TEST_INDUCTOR" not in os.environ, reason="minutes: set GRADSCOPE_TEST_INDUCTOR")
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a compiler of C++")
def test_inductor() -> None:
    """Generated code: the same bits with a scope, and a note."""
    bare = train("cell", "never", "inductor")
    with expecting("cell"):
        seen, counts, _ = train("cell", "before", "inductor")
    assert seen == bare[0] and counts == bare[1]


def test_names_are_those_of_the_model_within() -> None:
    model = Fused()
    with gradscope.attach(torch.compile(model, backend="eager"), every=1, strict=True) as scope:
        model(torch.randn(5, 2, 3)).backward()
    assert {key.module for key in scope.run.layers} == {"rnn"}
