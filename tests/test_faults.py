"""The fault benchmark's own book-keeping: what is confirmed, what is left out, and what is tried again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.faults import cures, pursue, scaling, store  # noqa: E402
from benchmarks.faults.__main__ import arguments, chosen_cases  # noqa: E402
from benchmarks.faults.cases import Case, all_cases  # noqa: E402
from benchmarks.faults.confirm import NOT_TRAINED, configurations, confirm, confirm_one  # noqa: E402
from benchmarks.faults.evaluate import interval, judge  # noqa: E402
from benchmarks.faults.interventions import FAULTS  # noqa: E402
from benchmarks.faults.predictions import Prediction, predictions  # noqa: E402
from benchmarks.faults.training import train  # noqa: E402

FAULTY = [Case("tuning", "adding", "rnn_tanh", "fused", seed, "small recurrence", 0.02) for seed in (0, 1, 2)]


def keep(out: Path, case: Case, score: float) -> None:
    store.keep(store.folder(case, out), {"score": score, "norms": [], "zeros": []})


@pytest.mark.parametrize(
    ("faulty", "healthy", "why"),
    [
        ((0.1, 0.2, 0.4), (0.9, 0.9, 0.9), ""),
        ((0.1, 0.2), (0.9, 0.9, 0.9), NOT_TRAINED),
        ((0.1, 0.2, 0.4), (0.9, 0.9), NOT_TRAINED),
        ((0.1, 0.46), (0.9, 0.9), "the fault does not prevent learning"),
        ((), (0.9, 0.49), "the healthy one does not learn at every seed"),
        ((0.1, 0.2, 0.25), (0.5, 0.5, 0.5), ""),
        ((0.1, 0.2, 0.26), (0.5, 0.5, 0.5), "the fault does not prevent learning"),
    ],
)
def test_what_is_confirmed(tmp_path: Path, faulty: tuple[float], healthy: tuple[float], why: str) -> None:
    for scores, cases in ((faulty, FAULTY), (healthy, [case.twin() for case in FAULTY])):
        for score, case in zip(scores, cases):  # noqa: B905 - later seeds may not be there
            keep(tmp_path, case, score)
    told, kept = confirm_one(FAULTY, tmp_path)
    assert told.partition(":")[0] == why
    assert [one.score for one in kept] == ([] if why else list(faulty))


def test_no_more_is_trained_of_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Case] = []

    def watch(case: Case, place: Path, **_: Any) -> dict[str, Any]:
        trained.append(case)
        return {"score": 0.9, "norms": [], "zeros": []}

    monkeypatch.setattr(pursue, "watch", watch)
    pursue.train_all(FAULTY, tmp_path)
    assert trained == [FAULTY[0].twin(), FAULTY[0]]
    pursue.train_all(FAULTY, tmp_path)
    assert len(trained) == 2


def test_one_of_every_kind_of_fault_comes_first() -> None:
    planned = chosen_cases(arguments(["train", "--part", "held-out"]))
    assert {members[0].fault for members in planned[: len(FAULTS)]} == {fault.name for fault in FAULTS}
    assert len({members[0].group for members in planned}) == len(planned)
    halves = [chosen_cases(arguments(["train", "--shard", f"{i}/2"])) for i in (0, 1)]
    assert sum(map(len, halves)) == len(configurations(all_cases()))


def test_tuning_and_held_out_part_share_nothing() -> None:
    parts: dict[str, set[str]] = {"tuning": set(), "held-out": set()}
    for case in all_cases():
        parts[case.part] |= {case.task, f"seed {case.seed}"}
    assert not parts["tuning"] & parts["held-out"]


def test_a_share_of_the_cases_is_trained_at_other_scales() -> None:
    cases = all_cases()
    assert 0.06 < sum(map(scaling.chosen, cases)) / len(cases) < 0.16


@pytest.mark.parametrize(
    ("before", "predicted", "came", "span", "direction", "near"),
    [
        (3, 20, 16, 20, True, True),
        (3, 20, 14, 20, True, False),
        (3, 20, 3, 20, False, False),
        (1e9, 2.0, 15.0, 0, True, True),
        (1e9, 2.0, 25.0, 0, True, False),
        (float("inf"), 2.0, float("inf"), 0, False, False),
    ],
)
def test_predictions(before: float, predicted: float, came: float, span: float, direction: bool, near: bool) -> None:
    prediction = Prediction("", before, predicted, came, span)
    assert (prediction.direction, prediction.near) == (direction, near)


def test_intervals_are_wilsons() -> None:
    assert interval(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert interval(0, 0) == (0.0, 1.0)


def test_a_training_is_the_same_watched_or_not_and_goes_all_the_way(tmp_path: Path) -> None:
    case = FAULTY[0]
    store.begin(store.folder(case, tmp_path))
    result = train(case, store.folder(case, tmp_path), change={"steps": 8})
    assert train(case, None, change={"steps": 8}).score == result.score
    keep(tmp_path, case, 0.0)
    keep(tmp_path, case.twin(), 1.0)
    (verdict,) = judge(confirm([case], tmp_path).faulty)
    assert verdict.codes == ["vanishing_gradient"]
    assert predictions([verdict], tmp_path) == []
    store.begin(store.folder(case, tmp_path, cures.CURED))
    code = cures.first_remedy(verdict)
    train(case, store.folder(case, tmp_path, cures.CURED), cures.cure_for(code), {"steps": 8})
    told = {"code": code, "score": 0.8, "goal": 1.0, "tried": True}
    store.keep(store.folder(case, tmp_path, cures.CURED), told)
    (prediction,) = predictions([verdict], tmp_path)
    assert prediction.predicted > prediction.before
    assert [cure["restored"] for cure in cures.cures([verdict], tmp_path).values()] == [True]
