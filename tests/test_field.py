"""The field set's own book-keeping: what a case is, what is confirmed, one tiny training all the way to a figure."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.field import remedies, report, store  # noqa: E402
from benchmarks.field.__main__ import arguments, chosen_cases  # noqa: E402
from benchmarks.field.case import (  # noqa: E402
    EIGHTH,
    FAULTY,
    FIFTH,
    FOURTH,
    NINTH,
    ODD,
    SEVENTH,
    SIXTH,
    SOUND,
    THIRD,
    UNRELATED,
    Case,
    ailing,
    sound,
)
from benchmarks.field.cases import all_cases  # noqa: E402
from benchmarks.field.confirm import NOT_TRAINED, why_not  # noqa: E402
from benchmarks.field.judge import Verdict, confirmed, judge  # noqa: E402
from benchmarks.field.loop import train  # noqa: E402
from benchmarks.field.tasks import HALVES, tasks  # noqa: E402
from benchmarks.field.watch import MODES, watched  # noqa: E402
from gradscope.types import Finding, Remedy  # noqa: E402

TINY: dict[str, Any] = {"hidden": 8, "steps": 8, "batch": 4, "length": 12}


def tiny(case: Case) -> Case:
    return replace(case, setup=case.setup.but(**TINY), mended=case.mended.but(**TINY))


def finding(code: str, *lines: str, severity: str = "warning") -> Finding:
    return Finding(code, severity, None, "", "", {}, tuple(Remedy("", line) for line in lines))  # type: ignore[arg-type]


def test_the_halves_share_no_task_and_both_have_every_kind_of_work_and_of_fault() -> None:
    by_half = {half: [case for case in all_cases() if case.half == half] for half in HALVES}
    assert not {c.task for c in by_half["tuning"]} & {c.task for c in by_half["held-out"]}
    for half in HALVES:
        assert len({tasks()[case.task].kind for case in by_half[half]}) >= 9
        assert len({case.codes[0] for case in by_half[half] if case.codes}) == 17
        assert sum(case.fine for case in by_half[half]) >= 35 and sum(not case.fine for case in by_half[half]) >= 35


@pytest.mark.parametrize("part", [THIRD, FOURTH, FIFTH, SIXTH, SEVENTH, EIGHTH, NINTH])
def test_later_parts_have_every_kind_of_fault_in_other_trainings(part: str) -> None:
    mine = [case for case in all_cases() if case.half == part]
    assert len({case.codes[0] for case in mine if case.codes}) == 17
    assert {case.truth for case in mine} == {SOUND, ODD, UNRELATED, FAULTY}
    assert "## The " + part + " part" in report.report(mine, [part], Path("nowhere"))


def test_cases_differ_in_name_and_in_setup() -> None:
    cases = all_cases()
    assert len({case.name for case in cases}) == len({case.key() for case in cases}) == len(cases)
    assert all((case.key() == case.twin_key()) == (case.truth in ("healthy", "healthy, odd")) for case in cases)
    names = {case.name for case in chosen_cases(arguments(["judge", "--half", "tuning", "--only", "maze"]))}
    assert names == {case.name for case in cases if case.half == "tuning" and case.task == "maze"}


@pytest.mark.parametrize(
    ("own", "twin", "why"),
    [
        (0.1, 0.9, ""),
        (0.65, 0.9, "nothing ails it"),
        (0.0, 0.2, "the healthy one does not learn"),
        (None, 0.9, NOT_TRAINED),
    ],
)
def test_what_is_confirmed(tmp_path: Path, own: float | None, twin: float, why: str) -> None:
    case = ailing("maze", "no zero_grad", "stale_gradient", {}, {"zero_grad": False})
    for key, score in ((case.key(), own), (case.twin_key(), twin)):
        if score is not None:
            store.keep(tmp_path / "bare" / key, {"score": score, "losses": []})
    assert why_not(case, tmp_path).partition(":")[0] == why


def test_what_is_only_info_neither_accuses_nor_counts() -> None:
    case = ailing("maze", "no zero_grad", "stale_gradient", {}, {"zero_grad": False})
    said = (finding("vanishing_gradient", severity="info"), finding("stale_gradient"), finding("diverged"))
    assert Verdict(case, "default", said).first
    assert not Verdict(case, "default", said[::-1]).first and Verdict(case, "default", said[::-1]).found
    assert Verdict(sound("maze"), "default", said[:1]).right and not Verdict(sound("maze"), "default", said).right


@pytest.mark.parametrize(
    ("line", "setup"),
    [
        ("optimizer.zero_grad()", {"zero_grad": True}),
        ("x = (x - x.mean((0, 1))) / (x.std((0, 1)) + 1e-8)", {"inputs": 1.0}),
        ("output, state = model.rnn(x, state)  # the state as it came, without .detach() or .data", {"detach": 0}),
        ("x = x[:, -7:]", {"cut": 7}),
    ],
)
def test_remedies_that_are_switches_of_the_loop(line: str, setup: dict[str, Any]) -> None:
    case = ailing("keywords", "much at once", "x", {}, {"zero_grad": False, "inputs": 9.0, "detach": 3})
    tried = remedies.tried(finding("x", line), case)
    assert tried is not None and tried[0] == case.setup.but(**setup)
    assert remedies.tried(finding("x", "print(1)"), case) is None


def test_remedies_that_are_typed_beside_the_optimizer() -> None:
    case = sound("keywords")
    tried = remedies.tried(finding("x", 'for group in optimizer.param_groups: group["lr"] *= 0.1'), case)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    assert tried is not None and tried[1].optimizer is not None
    tried[1].optimizer(model, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_switches_that_change_nothing_but_what_they_say() -> None:
    work, setup = tasks()["beats"], tasks()["beats"].usual.but(**TINY, clip=1e-3)

    def losses(**changes: Any) -> list[float]:
        return train(work, setup.but(**changes), 0).losses

    assert losses(clip_late=True) == losses(clip=0.0) != losses()
    assert losses() != losses(zero_grad=False, cleared="encoder") != losses(zero_grad=False)
    assert losses(decay=1.0) == losses() != losses(decay=0.5)


def test_a_training_is_the_same_watched_or_not_and_goes_all_the_way(tmp_path: Path) -> None:
    case = tiny(ailing("keywords", "state detached", "detached_state", {}, {"detach": 1}))
    found = watched(case, tmp_path)
    assert found["score"] == train(case.work, case.setup, case.seed).score == watched(case, tmp_path)["score"]
    store.keep(tmp_path / "watched" / case.key(), {**found, "score": 0.0})
    store.keep(tmp_path / "bare" / case.twin_key(), {"score": 0.9, "losses": []})
    assert confirmed([case], tmp_path)[0] == [case]
    for mode in MODES:
        said = replace(judge(case, mode, tmp_path), findings=(finding("detached_state", "x # state as it came"),))
        came = remedies.try_remedy(said, tmp_path)
        assert came is not None and came["tried"] and not came["restored"]
    assert case.truth == FAULTY and "1 faulty" in report.report([case], ["tuning"], tmp_path)
