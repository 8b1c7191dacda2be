"""Ten cells against an unrolled loop in float64: every quantity of every table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from custom import ten
from custom.hold import BATCH, HIDDEN, INPUT, TIME, data, hold, straight
from custom.truth import Shape
from gradscope import CellSpec


@dataclass(frozen=True)
class Case:
    """A cell, and how a user tells gradscope of it.

    Attributes:
        kind: its class.
        spec: for `cells=`.
        shape: for the truth.
        initial: the state that the loop begins with; None to give none.
        extra: further arguments at t.
        found: whether its signature is enough.
    """

    kind: type[nn.Module]
    spec: CellSpec
    shape: Shape
    initial: Callable[[torch.dtype], Any] | None
    extra: Callable[[int], dict[str, Any]] = lambda t: {}
    found: bool = True


def zeros(*widths: int) -> Callable[[torch.dtype], Any]:
    def make(dtype: torch.dtype) -> Any:
        parts = tuple(0.3 * data(BATCH, width, seed=width + 7 * k, dtype=dtype) for k, width in enumerate(widths))
        return parts if len(parts) > 1 else parts[0]

    return make


def peephole_gates(cell: Any, x: Tensor, state: Any = None) -> dict[str, Tensor]:
    h, c = state
    i, f, g, _ = (cell.ih(x) + cell.hh(h)).chunk(4, 1)
    i, f = torch.sigmoid(i + cell.peep[0] * c), torch.sigmoid(f + cell.peep[1] * c)
    return {"input": i, "forget": f, "candidate": torch.tanh(g)}


def reset_before_gates(cell: Any, x: Tensor, h: Any = None) -> dict[str, Tensor]:
    parts = [F.linear(x, cell.w.weight, cell.w.bias).chunk(3, 1)[k] for k in range(2)]
    r, z = (torch.sigmoid(part + h @ u.T) for part, u in zip(parts, cell.u_gates.chunk(2), strict=True))
    return {"reset": r, "update": z}


def named(function: Callable[..., dict[str, Tensor]], state: str) -> Callable[..., Any]:
    """A function of the cell and its arguments as the truth takes it."""

    def gates(cell: Any, arguments: dict[str, Any], given: Any) -> dict[str, tuple[Tensor, str]]:
        values = function(cell, **arguments, **{state: given})
        return {
            name: (value, "tanh" if name in ("candidate", "hidden") else "sigmoid") for name, value in values.items()
        }

    return gates


def layer_norm_truth(cell: Any, arguments: dict[str, Any], given: Any) -> dict[str, tuple[Tensor, str]]:
    a = cell.norm_i(cell.ih(arguments["x"])) + cell.norm_h(cell.hh(given[0]))
    names = ("input", "forget", "output", "candidate")
    kinds = ("sigmoid", "sigmoid", "sigmoid", "tanh")
    return {
        name: ((torch.tanh if kind == "tanh" else torch.sigmoid)(part), kind)
        for name, kind, part in zip(names, kinds, a.chunk(4, 1), strict=True)
    }


def relu_truth(cell: Any, arguments: dict[str, Any], given: Any) -> dict[str, tuple[Tensor, str]]:
    return {"unit": (torch.relu(cell.w(arguments["x"]) + cell.u * given), "relu")}


def timespans(t: int) -> dict[str, Any]:
    return {"timespans": data(BATCH, seed=20 + t).abs()}


CASES = {
    "peephole LSTM": Case(
        ten.PeepholeLSTMCell,
        CellSpec(gates=peephole_gates, blocks={"hh.weight": ("input", "forget", "candidate", "output")}),
        Shape(
            gates=named(peephole_gates, "state"),
            initial=lambda: (torch.zeros(1, HIDDEN).double(),) * 2,
            blocks=lambda cell: dict(
                zip(("input", "forget", "candidate", "output"), cell.hh.weight.chunk(4), strict=True)
            ),
        ),
        None,
    ),
    "LayerNorm LSTM": Case(
        ten.LayerNormLSTMCell,
        CellSpec(gates={"input": "gates.i", "forget": "gates.f", "output": "gates.o", "candidate": "gates.g"}),
        Shape(new=lambda result: result[1], gates=layer_norm_truth),
        zeros(HIDDEN, HIDDEN),
    ),
    "coupled-gate LSTM": Case(ten.CoupledLSTMCell, CellSpec(), Shape(state="hc"), zeros(HIDDEN, HIDDEN), found=False),
    "GRU, reset before": Case(
        ten.ResetBeforeGRUCell,
        CellSpec(gates=reset_before_gates, blocks={"u_gates": ("reset", "update"), "u_candidate": ("candidate",)}),
        Shape(
            state="h",
            initial=lambda: torch.zeros(1, HIDDEN).double(),
            gates=named(reset_before_gates, "h"),
            blocks=lambda cell: dict(
                zip(("reset", "update", "candidate"), (*cell.u_gates.chunk(2), cell.u_candidate), strict=True)
            ),
        ),
        None,
    ),
    "IndRNN": Case(
        ten.IndRNNCell,
        CellSpec(gates=lambda cell, x, h: {"unit": torch.relu(cell.w(x) + cell.u * h)}, kinds={"unit": "relu"}),
        Shape(state="h", new=lambda result: result[1], gates=relu_truth),
        zeros(HIDDEN),
    ),
    "SRU": Case(
        ten.SRUCell, CellSpec(state="c"), Shape(state="c", new=lambda result: result[1]), zeros(HIDDEN), found=False
    ),
    "minGRU": Case(ten.MinGRUCell, CellSpec(), Shape(state="h"), zeros(HIDDEN)),
    "minGRU, transition": Case(
        ten.MinGRUCell,
        CellSpec(transition=lambda cell, x, h: 1 - torch.sigmoid(cell.z(x))),
        Shape(state="h"),
        zeros(HIDDEN),
    ),
    "LRU": Case(
        ten.LRUCell,
        CellSpec(),
        Shape(new=lambda result: result[1]),
        lambda dtype: torch.view_as_complex(data(BATCH, HIDDEN, 2, dtype=dtype)),
    ),
    "LRU, transition": Case(
        ten.LRUCell,
        CellSpec(transition=lambda cell, x, state: cell.eigenvalues()),
        Shape(new=lambda result: result[1]),
        lambda dtype: torch.view_as_complex(data(BATCH, HIDDEN, 2, dtype=dtype)),
    ),
    "CfC": Case(ten.CfCCell, CellSpec(), Shape(state="hx", rows=("x", "timespans")), zeros(HIDDEN), timespans),
    "three tensors": Case(ten.ThreeStateCell, CellSpec(), Shape(state="states"), zeros(HIDDEN, HIDDEN, 1)),
}


def new_state(case: Case, result: Any) -> Any:
    return case.shape.new(result)


def first_tensor(result: Any) -> Tensor:
    while not isinstance(result, Tensor):
        result = result[0]
    return result


def loop_of(case: Case, where: str, dtype: torch.dtype = torch.float64) -> Callable[[Any, Any], None]:
    """Five timesteps; the loss is of the last output, of all, or of some and of every part of the last state."""

    def loop(cell: Any, backward: Any) -> None:
        kind = next(p for p in cell.parameters()).dtype
        state = None if case.initial is None else case.initial(kind if not kind.is_complex else torch.float64)
        outputs = []
        for t in range(TIME):
            x = data(BATCH, INPUT, seed=t).to(kind)
            extra = {k: v.to(kind) for k, v in case.extra(t).items()}
            result = cell(x, state, **extra) if state is not None or case.initial else cell(x)
            outputs.append(first_tensor(result))
            state = new_state(case, result)
        chosen = {"last": outputs[-1:], "all": outputs, "some": outputs[1:4:2]}[where]
        loss = sum((y * (k + 1)).square().sum() for k, y in enumerate(chosen))
        if where == "some":
            parts = state if isinstance(state, (tuple, list)) else [state]
            loss = loss + sum((torch.view_as_real(p) if p.is_complex() else p).sin().sum() for p in parts)
        backward(loss)

    return loop


@pytest.mark.parametrize("where", ["last", "all", "some"])
@pytest.mark.parametrize("name", CASES)
def test_every_quantity(name: str, where: str) -> None:
    case = CASES[name]
    hold(
        case.kind(INPUT, HIDDEN).double(),
        loop_of(case, where),
        case.shape,
        [straight(TIME)],
        cells={case.kind: case.spec},
    )


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.found and case.spec == CellSpec()])
def test_a_signature_is_enough(name: str) -> None:
    case = CASES[name]
    hold(case.kind(INPUT, HIDDEN).double(), loop_of(case, "all"), case.shape, [straight(TIME)])


@pytest.mark.parametrize("name", CASES)
def test_in_float32(name: str) -> None:
    case = CASES[name]
    model = case.kind(INPUT, HIDDEN).float()
    hold(model, loop_of(case, "all"), case.shape, [straight(TIME)], rtol=1e-3, cells={case.kind: case.spec})
