"""Does a training learn? On losses of known kinds, noisy and not, and by the loss gradient where there are none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diagnose.made import FALLS, GROWS, LOST, STALLS, Training, course

from gradscope.diagnose.learning import LEAST, read
from gradscope.diagnose.progress import learning, severity

Array = np.ndarray[Any, np.dtype[np.float64]]
Random = np.random.Generator


def steps(losses: Array) -> Array:
    return np.arange(len(losses), dtype=np.float64)


def verdict(losses: Any) -> str:
    array = np.asarray(losses, dtype=np.float64)
    return read(steps(array), array).verdict


@pytest.mark.parametrize(
    ("losses", "expected"),
    [(FALLS, "learns"), (STALLS, "stalls"), (LOST, "lost"), (GROWS, "lost"), ([math.nan] * 120, "unknown")],
)
def test_plain_courses(losses: list[float], expected: str) -> None:
    assert verdict(losses) == expected


@pytest.mark.parametrize(("fall", "expected"), [(10, "stalls"), (70, "learns")])
def test_what_falls_at_once_and_then_stands_has_learnt_one_answer_for_all(fall: int, expected: str) -> None:
    """From 0.6 to 0.16, as where two numbers are to be added and their mean is answered."""
    noise = np.random.default_rng(0).normal(0, 0.015, 260)
    assert verdict(np.concatenate([np.linspace(0.6, 0.16, fall), np.full(260 - fall, 0.16)]) + noise) == expected


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([4.0] * 10 + [40.0] * 20 + [16.0] * 170, "lost"),
        ([4.0] * 10 + [16.0] * 190, "lost"),
        ([4.0] * 10 + [12.0] * 100 + [4.1] * 90, "stalls"),
        ([4.0] * 10 + [12.0] * 100 + [2.9] * 90, "learns"),
        (np.geomspace(0.01, 0.06, 200), "stalls"),
        (np.geomspace(0.01, 0.2, 200), "lost"),
    ],
    ids=[
        "comes down again",
        "at a blow",
        "to its beginning",
        "below it",
        "as targets that the network makes grow",
        "without end",
    ],
)
def test_a_loss_that_is_far_above_its_beginning(losses: Any, expected: str) -> None:
    assert verdict(losses) == expected


@pytest.mark.parametrize(("last", "expected"), [(0, "lost"), (60, "learns")])
def test_a_loss_that_rises_to_the_very_end_does_not_fall_again(last: int, expected: str) -> None:
    """Its last losses differ much, and the typical one of them is far below the largest level."""
    losses = np.concatenate([np.geomspace(0.6, 0.03, 120), np.geomspace(0.03, 2.0, 120), np.geomspace(1, 0.03, last)])
    assert verdict(losses * np.exp(np.random.default_rng(0).normal(0, 0.3, len(losses)))) == expected


@pytest.mark.parametrize(("count", "expected"), [(LEAST - 1, "unknown"), (LEAST, "learns")])
def test_a_few_losses_tell_nothing(count: int, expected: str) -> None:
    assert verdict(np.linspace(1, 0.1, count)) == expected


def test_what_is_not_known_is_left_out() -> None:
    losses = np.array(FALLS)
    losses[::3], losses[1::7] = math.nan, math.inf
    assert verdict(losses) == "learns"


def test_a_loss_that_reaches_zero_has_been_learnt() -> None:
    assert verdict([*FALLS[:60], *[0.0] * 60]) == "learns"


def test_a_first_step_that_throws_the_loss_off_is_no_beginning() -> None:
    assert verdict([1.0, 30.0, 20.0, 8.0, 4.0, 3.0] + [2.5] * 114) == "stalls"


@pytest.mark.parametrize(("first", "expected"), [(0, "stalls"), (12, "stalls"), (13, "unknown")])
def test_of_a_resumed_run_that_stands_nobody_knows_what_it_had_learnt(first: int, expected: str) -> None:
    losses = np.ones(120)
    found = read(first + steps(losses), losses)
    assert found.verdict == expected
    assert ("earlier learning is unknown" in found.sentence) is (expected == "unknown")


def test_a_resumed_run_keeps_the_numbers_of_its_steps() -> None:
    losses = np.array([1.0] * 30 + [0.5 + 0.5 * 0.8**i for i in range(90)])
    found = read(5000 + steps(losses), losses)
    assert found.verdict == "learns" and 5040 < (found.stopped or 0) < 5070


# --- many curves of each kind


def power(u: Array, begin: float, end: float, knee: float, exponent: float = 1.0) -> Array:
    return end + (begin - end) * (1 + u / knee) ** -exponent


def first_fall(r: Random, u: Array, begin: float) -> Array:
    level = begin * r.uniform(0.75, 1)
    return level + (begin - level) * np.exp(-u / r.uniform(0.005, 0.03))


def learns(r: Random, u: Array, begin: float) -> Array:
    return power(u, begin, begin * r.uniform(0.05, 0.5), r.uniform(0.03, 0.3), r.uniform(0.5, 1.5))


def learns_late(r: Random, u: Array, begin: float) -> Array:
    gone = r.uniform(0.3, 0.9) / (1 + np.exp(-(u - r.uniform(0.3, 0.8)) * 25))
    return first_fall(r, u, begin) * (1 - gone)


def warm_up(r: Random, u: Array, begin: float) -> Array:
    return power(np.maximum(u - r.uniform(0.1, 0.4), 0), begin, begin * r.uniform(0.1, 0.5), 0.1)


def to_the_floor(r: Random, u: Array, begin: float) -> Array:
    return begin * 10 ** (-r.uniform(2, 5) * np.sqrt(u))


def below_zero(r: Random, u: Array, begin: float) -> Array:
    return power(u, begin, begin - r.uniform(2, 6), r.uniform(0.03, 0.2))


def curriculum(r: Random, u: Array, begin: float) -> Array:
    inside = u * r.integers(2, 5) % 1
    return begin * (r.uniform(0.15, 0.3) + r.uniform(0.4, 0.8) * np.exp(-4 * inside))


def flat(r: Random, u: Array, begin: float) -> Array:
    return np.full_like(u, begin)


def hardly(r: Random, u: Array, begin: float) -> Array:
    return begin * (1 - r.uniform(0.001, 0.02) * u)


def jump(r: Random, u: Array, begin: float) -> Array:
    return np.where(u < r.uniform(0.3, 0.8), power(u, begin, begin / 10, 0.08), begin * r.uniform(0.8, 2))


def drift(r: Random, u: Array, begin: float) -> Array:
    away = np.clip((u - r.uniform(0.3, 0.6)) / 0.3, 0, 1)
    return power(u, begin, begin / 10, 0.06) + away * begin * r.uniform(0.6, 0.9)


def agent(r: Random, u: Array, begin: float) -> Array:
    """What an agent collects is learnt for some steps, and then replaced: each time by a harder or an easier sample."""
    rounds = r.integers(6, 14)
    level = begin * np.exp(r.uniform(-0.5, 0.7, rounds))
    inside = u * rounds % 1
    return level[np.minimum((u * rounds).astype(int), rounds - 1)] * (1 - r.uniform(0.05, 0.25) * inside)


def rare_class(r: Random, u: Array, begin: float) -> Array:
    """Of 32 answers none, one or two are of the rare class, which the network comes to expect as often as it is."""
    rare = r.choice([0.01, 0.03])
    told = rare + (0.5 - rare) * np.exp(-u / 0.02)
    seen = r.binomial(32, rare, len(u))
    return -(seen * np.log(told) + (32 - seen) * np.log(1 - told)) / 32


def around_zero(r: Random, u: Array, begin: float) -> Array:
    return r.uniform(0.1, 2) * r.standard_normal(len(u))


KINDS: list[tuple[Callable[[Random, Array, float], Array], str, float]] = [
    (learns, "learns", 0.93),
    (learns_late, "learns", 0.95),
    (warm_up, "learns", 0.95),
    (to_the_floor, "learns", 0.97),
    (below_zero, "learns", 0.93),
    (curriculum, "learns", 0.93),
    (flat, "stalls", 0.97),
    (first_fall, "stalls", 0.97),
    (hardly, "stalls", 0.97),
    (jump, "lost", 0.97),
    (drift, "lost", 0.97),
    (around_zero, "unknown", 0.9),
    (agent, "not lost", 0.9),
    (rare_class, "stalls", 0.7),
]


@pytest.mark.parametrize(("kind", "expected", "least"), KINDS, ids=[kind.__name__ for kind, _, _ in KINDS])
def test_of_many_noisy_courses_nearly_all_are_read_right(
    kind: Callable[[Random, Array, float], Array], expected: str, least: float
) -> None:
    """60 to 3,000 steps; noise of up to 30 % from batch to batch, independent or not."""
    r = np.random.default_rng(0)
    right = 0
    for _ in range(150):
        u = np.linspace(0, 1, int(r.choice([60, 100, 200, 400, 1000, 3000])))
        losses = kind(r, u, float(r.choice([0.69, 1, 2.3, 4.2, 9])))
        found = verdict(losses + noise(r, losses))
        right += found != "lost" if expected == "not lost" else found == expected
    assert right / 150 >= least


def noise(r: Random, losses: Array) -> Array:
    if losses.min() < 0:
        return 0.1 * r.standard_normal(len(losses))
    size = r.choice([0.0, 0.03, 0.1, 0.3])
    drawn = r.standard_normal(len(losses))
    if r.random() < 0.3:
        drawn = np.convolve(drawn, 0.6 ** np.arange(8))[: len(losses)] * 0.8
    return losses * (np.exp(size * drawn) - 1)


# --- in words, and without a loss


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        (FALLS, "The loss has fallen by 98 %, from 0.842 to 0.0"),
        (STALLS, "The loss stalls: it was 1.00, and is 1.00."),
        ([5.0, 2.0] + [1.0] * 118, "The loss stalls: "),
        (
            [5.0, 4.8, 4, 3, 2.5] + [1.0] * 115,
            "The loss stalls: it fell from 1.75 to 1.00 at first, and has stood still since step",
        ),
        (LOST, "The loss had fallen from 0.597 to 0.0"),
        (GROWS, "The loss was 1.00 and is now 9"),
        ([math.nan] * 120, "The losses do not show whether the training learns"),
    ],
)
def test_the_verdict_in_words(losses: list[float], told: str) -> None:
    array = np.asarray(losses, dtype=np.float64)
    if losses[:2] == [5.0, 2.0]:
        told = "The loss stalls: it was 1.00, and is 1.00."
    assert read(steps(array), array).sentence.startswith(told)


@pytest.mark.parametrize(
    ("left", "expected"), [(0.34, "learns"), (0.36, "unknown"), (0.59, "unknown"), (0.61, "stalls")]
)
def test_without_a_loss_the_loss_gradient_is_a_rough_sign(left: float, expected: str) -> None:
    made = Training()
    made.loss, made.direct = [math.nan] * 120, course(1.0, left)
    found = learning(made.seen())
    assert (found.verdict, found.source) == (expected, "loss gradient")
    assert found.sentence.startswith("By the loss gradient")


def test_a_loss_is_believed_before_the_loss_gradient() -> None:
    made = Training()
    made.direct = course(1.0, 2.0)
    assert learning(made.seen()).learns


@pytest.mark.parametrize(
    ("loss", "direct", "records", "expected"),
    [
        (STALLS, 1.0, 8, "critical"),
        (STALLS, 1.0, 2, "info"),
        (LOST, 1.0, 8, "critical"),
        (FALLS, 1.0, 8, "info"),
        ([math.nan] * 120, 0.95, 8, "warning"),
        ([math.nan] * 120, 0.45, 8, "info"),
    ],
)
def test_how_bad_a_fault_is_depends_on_whether_the_training_learns(
    loss: list[float], direct: float, records: int, expected: str
) -> None:
    made = Training(records=records)
    made.loss, made.direct = loss, course(1.0, direct, records)
    assert severity(made.seen(), critical=True) == expected


def test_a_training_that_is_lost_to_nan_fails() -> None:
    made = Training()
    made.loss, made.nonfinite = [math.nan] * 120, [1] * 120
    assert severity(made.seen(), critical=True) == "critical"


@pytest.mark.parametrize(("end", "expected"), [(-0.014, "unknown"), (-0.017, "lost")])
def test_a_loss_below_zero_that_comes_near_it_need_not_have_lost_anything(end: float, expected: str) -> None:
    """The surprise of an agent that has learnt is near zero."""
    losses = [-0.01] * 4 + [-0.1] * 12 + [end] * 104
    assert read(np.arange(120.0), np.array(losses)).verdict == expected
