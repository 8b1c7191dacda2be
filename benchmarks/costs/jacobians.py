"""Frobenius sizes of step Jacobians: autograd's Jacobians against the closed form, for the same (t, b)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from costs.rounds import LEAST_ROUNDS, Ratio, now, without_gc
from costs.workloads import ANALYSED, Training, Workload
from gradscope.families.base import Layer, Piece, Trace
from gradscope.families.lstm import LSTM
from gradscope.families.measure import pieces
from gradscope.types import Weights

SIZES = "sizes, of factors that the reverse scan needs anyway"
CLOSED = "factors and sizes"
REBUILT = "gates rebuilt, factors and sizes"

CALLS = 5
AT_ONCE = 16  # pairs in one vmap: the fastest of 16, 32, 64, 256 and all of them; the analysed sequences of one t
MANY = 256  # their Jacobians pass through memory
WHOLE_BYTES = 2 << 30  # all pairs in one vmap, as one writes it first, where their Jacobians need no more
WHOLE_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Jacobians:
    """Cost of the sizes of all T x 16 step Jacobians of an LSTM.

    Attributes:
        pairs: how many (t, b) there are.
        sampled: how many of them `vmap(jacrev)` was run on.
        factors: its time per pair over the closed form's, by what of that is counted.
        many: the same with 256 pairs in one vmap.
        whole: the same with all of them in one; None where their Jacobians are too many for that.
        training_steps: time of `vmap(jacrev)` for all pairs, in bare training steps.
        closed_steps: time of the closed form for all pairs, in bare training steps.
        difference: largest relative difference between the two on the sampled pairs.
    """

    pairs: int
    sampled: int
    factors: dict[str, Ratio]
    many: dict[str, Ratio]
    whole: dict[str, Ratio] | None
    training_steps: float
    closed_steps: float
    difference: float


@torch.no_grad()
def observed_layer(training: Training) -> Layer:
    """The layer of a training, with 16 of its sequences."""
    rnn, x = training.model.rnn, training.x[:, :ANALYSED]
    weights = Weights(*(p.detach() for p in (rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0)))
    zeros = x.new_zeros(x.shape[1], rnn.hidden_size)
    return Layer(weights, x, zeros, zeros, rnn(x)[0])


def linearised(family: LSTM, trace: Trace) -> Iterator[Piece]:
    """All timesteps, the last piece first and one at a time, as a recorded step takes them.

    Without `torch.no_grad` around it, which would hold on to one piece while the next is made.
    """
    for start, stop in pieces(trace.layer, len(family.gates)):
        yield family.piece(trace, start, stop)


@torch.no_grad()
def sizes(family: LSTM, trace: Trace, given: Iterable[Piece]) -> Tensor:
    """`jacobian` of all (t, b) in closed form, [T, B]."""
    constants = family.constants(trace.layer.weights)
    squares: list[Tensor] = []
    for piece in given:
        squares.append(family.sizes(constants, piece)["jacobian"])
        del piece  # before the next one is made, as in a recorded step
    return (torch.cat(squares[::-1]) / (2 * trace.gates.shape[-1])).sqrt()


def by_autograd(trace: Trace, t: Tensor, b: Tensor) -> Tensor:
    """`jacobian` of the pairs (t, b) by `vmap(jacrev)` of one step, [N]."""
    layer, cells = trace.layer, trace.cells
    assert cells is not None
    w, width = layer.weights, trace.gates.shape[-1]

    def step(state: Tensor, x: Tensor) -> Tensor:
        h, c = state.split(width)
        gates = torch.nn.functional.linear(x, w.ih, w.b_ih) + torch.nn.functional.linear(h, w.hh, w.b_hh)
        i, f, g, o = gates.chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return torch.cat([o.sigmoid() * c.tanh(), c])

    states = torch.cat([trace.previous[t, b], cells[t, b]], -1)
    found = vmap(jacrev(step))(states, layer.input[t, b])
    return found.square().sum((1, 2)).div(2 * width).sqrt()


def measure_jacobians(workload: Workload, seconds: float) -> Jacobians:
    """Time both, in turn.

    Args:
        workload: an LSTM of one layer and direction.
        seconds: for all of it, roughly; it sets how many pairs `vmap(jacrev)` is run on.
    """
    training, family = Training(workload), LSTM()
    layer = observed_layer(training)
    trace = family.replay(layer)
    given = list(linearised(family, trace))
    known = sizes(family, trace, given)
    generator, device = torch.Generator().manual_seed(0), layer.output.device
    steps, batch = layer.output.shape[:2]
    training.step()
    by_autograd(trace, torch.arange(2, device=device), torch.arange(2, device=device))
    forms: dict[str, Callable[[], object]] = {
        SIZES: lambda: sizes(family, trace, given),
        CLOSED: lambda: sizes(family, trace, linearised(family, trace)),
        REBUILT: lambda: sizes(family, rebuilt := family.replay(layer), linearised(family, rebuilt)),
    }
    auto: list[float] = []
    many: list[float] = []
    bare: list[float] = []
    closed: dict[str, list[float]] = {name: [] for name in forms}
    difference, began = 0.0, now()
    while len(auto) < LEAST_ROUNDS or now() - began < seconds:
        t, b = _random_pairs(steps, batch, AT_ONCE, generator, device)
        found: list[Tensor] = []
        auto.append(timed(lambda t=t, b=b, found=found: found.append(by_autograd(trace, t, b))))
        for name, form in forms.items():
            closed[name].append(timed(form, CALLS))
        more = _random_pairs(steps, batch, MANY, generator, device)
        many.append(timed(lambda more=more: by_autograd(trace, *more)) / MANY * AT_ONCE)
        bare.append(timed(training.step))
        difference = max(difference, float(((found[0] - known[t, b]) / found[0]).abs().max()))
    scale = steps * batch / AT_ONCE
    return Jacobians(
        pairs=steps * batch,
        sampled=AT_ONCE * len(auto),
        factors={n: Ratio.of([scale * a / c for a, c in zip(auto, closed[n], strict=True)]) for n in forms},
        many={n: Ratio.of([scale * a / c for a, c in zip(many, closed[n], strict=True)]) for n in forms},
        whole=whole_at_once(trace, forms),
        training_steps=scale * statistics.median(a / s for a, s in zip(auto, bare, strict=True)),
        closed_steps=statistics.median(c / s for c, s in zip(closed[CLOSED], bare, strict=True)),
        difference=difference,
    )


def _random_pairs(
    steps: int, batch: int, count: int, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    t, b = (torch.randint(most, (count,), generator=generator).to(device) for most in (steps, batch))
    return t, b


def whole_at_once(trace: Trace, forms: dict[str, Callable[[], object]]) -> dict[str, Ratio] | None:
    """What all pairs in one vmap cost, over each closed form, in turn with it."""
    steps, batch, _, width = trace.gates.shape
    if steps * batch * (2 * width) ** 2 * trace.gates.element_size() > WHOLE_BYTES:
        return None
    sides = (torch.arange(size, device=trace.gates.device) for size in (steps, batch))
    t, b = (grid.flatten() for grid in torch.meshgrid(*sides, indexing="ij"))
    ratios: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(WHOLE_ROUNDS):
        auto = timed(lambda: by_autograd(trace, t, b))
        for name, form in forms.items():
            ratios[name].append(auto / timed(form, CALLS))
    return {name: Ratio.of(found) for name, found in ratios.items()}


def timed(call: Callable[[], object], times: int = 1) -> float:
    """Seconds of one call, the mean of several, after one that finds its own data in the cache again."""
    with without_gc():
        call()
        started = now()
        for _ in range(times):
            call()
        return (now() - started) / times
