"""The cases of the main job as data: every kind of fused call, covered pairwise, and the special ones by name."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from oracles import Call, dropout_masks
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

TIME, INPUT, HIDDEN, PROJECTION = 6, 3, 4, 3
LENGTHS = (3, 6, 1, 5)

FACTORS: dict[str, tuple[Any, ...]] = {
    "kind": ("rnn_tanh", "rnn_relu", "lstm", "lstm_proj", "gru"),
    "layers": (1, 2, 3),
    "bidirectional": (False, True),
    "bias": (True, False),
    "layout": ("time_first", "batch_first", "unbatched", "packed", "packed_unsorted"),
    "hx": ("absent", "given", "given_grad"),
    "loss": ("output", "last", "h_n", "c_n", "output_h_n", "some"),
    "dropout": (0.0, 0.5),
}


@dataclass(frozen=True)
class Case:
    """One fused call. `lengths` holds for packed layouts; the others have `len(lengths)` sequences of `time` steps."""

    kind: str
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    layout: str = "time_first"
    hx: str = "absent"
    loss: str = "output"
    dropout: float = 0.0
    dtype: torch.dtype = torch.float64
    time: int = TIME
    lengths: tuple[int, ...] = LENGTHS
    hidden: int = HIDDEN
    name: str = ""

    def __str__(self) -> str:
        if self.name:
            return self.name
        parts = [self.kind, f"{self.layers}x{'bi' if self.bidirectional else 'uni'}", self.layout, f"hx_{self.hx}"]
        parts += [f"loss_{self.loss}"] + ["nobias"] * (not self.bias) + ["dropout"] * (self.dropout > 0)
        return "-".join(parts)

    @property
    def is_lstm(self) -> bool:
        return self.kind.startswith("lstm")


@dataclass
class Built:
    """A case brought to life: call `forward`, then `backward`, then ask for its `call` as the oracle takes it."""

    case: Case
    module: nn.RNNBase
    input: Tensor | PackedSequence
    hx: Any
    loss: Callable[[Any, Tensor, Tensor | None], Tensor]
    rng_state: Tensor | None = None

    def forward(self) -> tuple[Any, Tensor, Tensor | None]:
        self.rng_state = torch.get_rng_state()
        return unpacked(self.module(self.input, self.hx))

    def forward_again(self) -> tuple[Any, Tensor, Tensor | None]:
        """The same call with the same dropout; the random stream stays where it is."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.rng_state)
            return unpacked(self.module(self.input, self.hx))

    def backward(self) -> Tensor:
        loss = self.loss(*self.forward())
        loss.backward()
        return loss.detach()

    def call(self, dtype: torch.dtype | None = None) -> Call:
        masks = dropout_masks(self.module, self.input, self.rng_state) if self.case.dropout else ()
        return Call(self.module, self.input, self.loss, self.hx, masks, dtype=dtype or self.case.dtype)


def unpacked(result: tuple[Any, Any]) -> tuple[Any, Tensor, Tensor | None]:
    """`(output, h_n, c_n)` whatever the family."""
    output, states = result
    return (output, *states) if isinstance(states, tuple) else (output, states, None)


def is_possible(levels: dict[str, Any]) -> bool:
    """Dropout needs a layer above, and a cell state needs an LSTM."""
    dropout_somewhere = levels.get("dropout", 0.0) == 0.0 or levels.get("layers", 2) > 1
    return dropout_somewhere and (levels.get("loss") != "c_n" or levels.get("kind", "lstm").startswith("lstm"))


def pairs() -> set[frozenset[tuple[str, Any]]]:
    """Every possible pair of levels of two factors."""
    return {
        frozenset([(a, x), (b, y)])
        for a, b in itertools.combinations(FACTORS, 2)
        for x, y in itertools.product(FACTORS[a], FACTORS[b])
        if is_possible({a: x, b: y})
    }


def covering(seed: int = 0, candidates: int = 60) -> list[Case]:
    """A small set of cases in which every possible pair of levels occurs: greedy, the same at every call."""
    draw, cases = random.Random(seed), []
    missing = sorted(pairs(), key=lambda pair: sorted(map(str, pair)))
    while missing:
        tries = [_filled(dict(missing[0]), draw) for _ in range(candidates)]
        best = max(tries, key=lambda levels: sum(pair <= levels.items() for pair in missing))
        missing = [pair for pair in missing if not pair <= best.items()]
        cases.append(Case(**best))
    return cases


def _filled(start: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A possible case that has these levels and otherwise random ones."""
    while True:
        levels = {name: start.get(name, draw.choice(choices)) for name, choices in FACTORS.items()}
        if is_possible(levels):
            return levels


COVERING = covering()

DROPOUT = [
    Case(kind, 2, bidirectional=bidirectional, layout=layout, dropout=0.5, loss="last")
    for kind in FACTORS["kind"]
    for layout in ("batch_first", "packed_unsorted")
    for bidirectional in (False, True)
]

SPECIAL = [
    Case("lstm", 2, loss="h_n_first_layer", name="loss_on_the_lower_layer_only"),
    Case("gru", 1, True, loss="last_forward_half", name="no_gradient_in_reverse"),
    Case("lstm", loss="c_n", layout="packed", name="cell_state_of_packed"),
    Case("rnn_tanh", time=1, lengths=(1,), name="one_step_one_sequence"),
    Case("gru", 2, True, time=1, lengths=(1, 1), name="one_step"),
    Case("lstm", hidden=1, name="one_unit_lstm"),
    Case("gru", 2, hidden=1, name="one_unit_gru"),
    Case("rnn_tanh", 1, True, hidden=1, lengths=(6,), name="one_unit_one_sequence"),
    Case("lstm_proj", 2, True, layout="packed", lengths=(6, 6, 6), loss="last", name="packed_of_equal_lengths"),
    Case("lstm", layout="packed", lengths=(5,), name="packed_of_one"),
    Case("rnn_relu", time=24, lengths=(24, 24), loss="last", name="vanishing_within_the_sequence"),
    Case("gru", loss="first", name="gradient_enters_at_the_first_step_only"),
    Case("lstm", 2, loss="two", hx="given_grad", name="two_anchors"),
]


def build(case: Case, seed: int = 0) -> Built:
    """The module, its input and the loss of a case."""
    torch.manual_seed(seed)
    module = build_module(case)
    x = torch.randn(case.time, len(case.lengths), INPUT, dtype=case.dtype)
    return Built(case, module, _laid_out(case, x), _build_hx(case), build_loss(case, seed))


def build_module(case: Case) -> nn.RNNBase:
    arguments = {
        "num_layers": case.layers,
        "bidirectional": case.bidirectional,
        "bias": case.bias,
        "batch_first": case.layout == "batch_first",
        "dropout": case.dropout,
        "dtype": case.dtype,
    }
    if case.kind.startswith("rnn"):
        return nn.RNN(INPUT, case.hidden, nonlinearity=case.kind.removeprefix("rnn_"), **arguments)
    if case.kind == "gru":
        return nn.GRU(INPUT, case.hidden, **arguments)
    return nn.LSTM(INPUT, case.hidden, proj_size=PROJECTION if case.kind == "lstm_proj" else 0, **arguments)


def _laid_out(case: Case, x: Tensor) -> Tensor | PackedSequence:
    if case.layout == "unbatched":
        return x[:, 0].contiguous()
    if case.layout == "batch_first":
        return x.transpose(0, 1).contiguous()
    if case.layout == "time_first":
        return x
    is_sorted = case.layout == "packed"
    lengths = sorted(case.lengths, reverse=True) if is_sorted else case.lengths
    return pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=is_sorted)


def _build_hx(case: Case) -> Any:
    if case.hx == "absent":
        return None
    batch = [] if case.layout == "unbatched" else [len(case.lengths)]
    output = PROJECTION if case.kind == "lstm_proj" else case.hidden
    states = [
        torch.randn(case.layers * (1 + case.bidirectional), *batch, width, dtype=case.dtype)
        for width in (output, case.hidden)
    ]
    for state in states:
        state.requires_grad_(case.hx == "given_grad")
    return tuple(states) if case.is_lstm else states[0]


def rows_of(output: Tensor | PackedSequence, time_dim: int) -> Tensor:
    """[time, ..., feature] of an output in any layout, padded with zeros."""
    if isinstance(output, PackedSequence):
        return pad_packed_sequence(output)[0]
    return output.transpose(0, time_dim)


def values_of(output: Tensor | PackedSequence) -> Tensor:
    """All that is valid, with its graph (`Tensor.data` would cut it off)."""
    return output.data if isinstance(output, PackedSequence) else output


def build_loss(case: Case, seed: int) -> Callable[[Any, Tensor, Tensor | None], Tensor]:
    """The loss of a case: a smooth function without symmetries, that works in any precision."""
    time_dim = 1 if case.layout == "batch_first" else 0

    def at(output: Any, chosen: Any) -> Tensor:
        return uneven(rows_of(output, time_dim)[chosen], seed)

    def last(output: Any, half: bool = False) -> Tensor:
        if isinstance(output, PackedSequence):
            rows, lengths = pad_packed_sequence(output)
            picked = rows[lengths - 1, torch.arange(len(lengths))]
        else:
            picked = rows_of(output, time_dim)[-1]
        return uneven(picked[..., : case.hidden] if half else picked, seed)

    return {
        "output": lambda output, h, c: uneven(values_of(output), seed),
        "last": lambda output, h, c: last(output),
        "last_forward_half": lambda output, h, c: last(output, half=True),
        "first": lambda output, h, c: at(output, slice(0, 1)),
        "some": lambda output, h, c: at(output, slice(1, None, 2)),
        "two": lambda output, h, c: at(output, slice(1, 4, 2)),
        "h_n": lambda output, h, c: uneven(h, seed),
        "h_n_first_layer": lambda output, h, c: uneven(h[0], seed),
        "c_n": lambda output, h, c: uneven(c, seed),
        "output_h_n": lambda output, h, c: uneven(values_of(output), seed) + uneven(h, seed + 1),
    }[case.loss]


def moved(value: Any, device: str) -> Any:
    """Tensors, packed sequences, and tuples of them, on another device."""
    return tuple(moved(part, device) for part in value) if type(value) is tuple else value.to(device)


def uneven(values: Tensor, seed: int = 0) -> Tensor:
    """A weighted sum and a weighted sum of squares, with weights that depend on the seed and the shape alone."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, values.numel(), generator=generator, dtype=torch.float64)
    flat = values.reshape(-1)
    return (first.to(flat) * flat).sum() + (second.to(flat) * flat * flat).sum()


def in_float32(case: Case) -> Case:
    return replace(case, dtype=torch.float32, name=f"{case}-float32")
