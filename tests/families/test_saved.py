"""What torch's kernel keeps for its own backward pass, read where it is: the same records as when all is run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from processors import lacks
from torch import Tensor, nn

import gradscope
from gradscope.observe import analysing, arriving, step
from gradscope.run import Run
from gradscope.types import Analysis, Saved

TABLES = ("timesteps", "reach", "gates", "units", "layers")
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def every(output: Tensor, h_n: Tensor, c_n: Tensor) -> Tensor:
    return output.sin().sum() + 0.1 * h_n.square().sum() + 0.3 * c_n.cos().sum()


LOSSES: dict[str, Loss] = {
    "everything": every,
    "last output": lambda output, h_n, c_n: output[:, -1].sum() + output[-1].sum(),
    "h_n": lambda output, h_n, c_n: h_n.square().sum(),
    "h_n below": lambda output, h_n, c_n: h_n[0].square().sum(),
    "c_n": lambda output, h_n, c_n: c_n.sin().sum(),
}
STACKS: dict[str, dict[str, Any]] = {
    "single": {},
    "stacked": {"num_layers": 3},
    "bidirectional": {"bidirectional": True},
    "stacked and bidirectional, dropout": {"num_layers": 3, "bidirectional": True, "dropout": 0.4},
    "batch first, dropout": {"num_layers": 2, "batch_first": True, "dropout": 0.3},
    "no bias": {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True},
}


class Seen:
    """Counts how often all was known from the kernel, and how often it was not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known, self.unknown = 0, 0
        original = analysing.analyse_saved

        def analyse_saved(*args: Any, **kwargs: Any) -> list[Analysis]:
            found = original(*args, **kwargs)
            self.known, self.unknown = self.known + bool(found), self.unknown + (not found)
            return found

        monkeypatch.setattr(analysing, "analyse_saved", analyse_saved)


def record(
    stack: dict[str, Any],
    loss: Loss = every,
    *,
    hidden: int = 24,
    batch: int = 20,
    given: bool = False,
    passes: int = 1,
    prepare: Callable[[nn.LSTM], object] = lambda lstm: None,
    limit: int | None = 16,
) -> Run:
    torch.manual_seed(0)
    lstm = nn.LSTM(7, hidden, **stack)
    prepare(lstm)
    slots = lstm.num_layers * (1 + lstm.bidirectional)
    x = torch.randn(8, batch, 7)
    hx = (torch.randn(slots, batch, hidden), torch.randn(slots, batch, hidden)) if given else None
    optimizer = torch.optim.SGD([p for p in lstm.parameters() if p.requires_grad], 0.1)
    with gradscope.attach(lstm, every=1, quantities="full", max_sequences=limit) as scope:
        for _ in range(2):
            optimizer.zero_grad()
            output, (h_n, c_n) = lstm(x.transpose(0, 1) if lstm.batch_first else x, hx)
            value = loss(output, h_n, c_n)
            for later in range(passes - 1, -1, -1):
                value.backward(retain_graph=bool(later))
            optimizer.step()
    return scope.run


def assert_same(mine: Run, other: Run) -> None:
    for table in TABLES:
        a, b = mine.frame(table), other.frame(table)
        assert len(a) == len(b) > 0
        numbers = a.select_dtypes("number").columns.drop(["residual", "gradient_residual", "se"], errors="ignore")
        for name in numbers:
            scale = np.nanmax(np.abs(b[name])) if b[name].notna().any() else 1.0
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-5 * scale, err_msg=f"{table}.{name}")
    assert mine.frame("layers").residual.max() < 1e-5
    assert mine.frame("notes").equals(other.frame("notes"))


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    if reason := lacks("sight of hooks on saved tensors"):
        pytest.skip(reason)

    def record_replayed(*args: Any, **kwargs: Any) -> Run:
        with monkeypatch.context() as patched:
            patched.setattr(step, "kernel_nodes", lambda call, output: ())
            return record(*args, **kwargs)

    return record_replayed


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_what_the_kernel_kept_gives_the_same_records(
    stack: dict[str, Any], loss: Loss, replayed: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replayed(stack, loss)
    seen = Seen(monkeypatch)
    assert_same(record(stack, loss), other)
    assert (seen.known, seen.unknown) == (2, 0)


@pytest.mark.parametrize("hidden", [1, 17, 64, 100, 128])
def test_rows_of_the_workspace_are_as_wide_as_onednn_makes_them(
    hidden: int, replayed: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = {"num_layers": 2, "bidirectional": True}
    other = replayed(stack, hidden=hidden)
    seen = Seen(monkeypatch)
    assert_same(record(stack, hidden=hidden), other)
    assert (seen.known, seen.unknown) == (2, 0)


@pytest.mark.parametrize("case", [{"given": True}, {"passes": 2}, {"batch": 1}, {"limit": None}, {"limit": 1}], ids=str)
def test_given_states_several_backward_passes_and_any_number_of_sequences(
    case: dict[str, Any], replayed: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = {"num_layers": 2, "bidirectional": True}
    other = replayed(stack, **case)
    seen = Seen(monkeypatch)
    assert_same(record(stack, **case), other)
    assert (seen.known, seen.unknown) == (2, 0)


def test_a_frozen_layer_below_is_run_again(replayed: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    def freeze(lstm: nn.LSTM) -> None:
        for name, parameter in lstm.named_parameters():
            parameter.requires_grad_(not name.endswith("l0"))

    other = replayed({"num_layers": 2}, prepare=freeze)
    seen = Seen(monkeypatch)
    assert_same(record({"num_layers": 2}, prepare=freeze), other)
    assert seen.known == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda kept: Saved(kept.gates.flip(0), kept.output, kept.places, kept.input),  # another order of the gates
        lambda kept: Saved(kept.gates.roll(1, 1), kept.output, kept.places, kept.input),  # another order of time
        lambda kept: None,
    ],
    ids=["gates", "time", "absent"],
)
def test_what_is_not_confirmed_is_not_believed(
    spoil: Callable[[Saved], Saved | None], replayed: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replayed(STACKS["stacked"])
    original = arriving.copy_saved
    monkeypatch.setattr(arriving, "copy_saved", lambda *args, **kwargs: spoil(original(*args, **kwargs)))
    seen = Seen(monkeypatch)
    assert_same(record(STACKS["stacked"]), other)
    assert seen.known == 0


def test_hooks_on_saved_tensors_are_called_as_often_as_without() -> None:
    def count(attached: bool) -> int:
        calls = 0

        def unpack(tensor: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return tensor

        torch.manual_seed(0)
        lstm, x = nn.LSTM(3, 5, 2), torch.randn(12, 4, 3)
        scope = gradscope.attach(lstm, every=1) if attached else None
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
            lstm(x)[0].sum().backward()
        torch.optim.SGD(lstm.parameters(), 0.1).step()
        if scope is not None:
            scope.close()
            assert len(scope.run.frame("layers")) == 2
        return calls

    assert count(attached=True) == count(attached=False) > 0
