"""What frames of `steps` and `clips` say in one number, whatever is missing in them."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan
from typing import Any

import pandas as pd
import pytest

from gradscope.types.clips import limiting, share
from gradscope.types.loss import Change, change, number


def _steps(loss: Sequence[float], nonfinite: Sequence[int] = (), norm: Sequence[float] = (), first: int = 0) -> Any:
    count = len(loss)
    told = {"loss": list(loss), "nonfinite": [*nonfinite] or [0] * count, "grad_norm": [*norm] or [1.0] * count}
    return pd.DataFrame({"step": range(first, first + count), **told})


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        (_steps([2.5]), Change(2.5, 2.5, 1, 0)),
        (_steps([3, 1]), Change(3, 1, 1, 1)),
        (_steps([3.0] * 9 + [9, 1] + [-1.0] * 9, first=700), Change(3, -1, 2, 2)),
        (_steps([float(step) for step in range(5000)]), Change(4.5, 4949.5, 10, 100)),
        (_steps([nan] * 5 + [4.0] * 10 + [nan] * 5), Change(4, 4, 1, 1)),
        (_steps([2, 1, nan], [0, 0, 3]), Change(2, inf, 1, 1)),
        (_steps([2, 1, nan], [0, 0, 0]), Change(2, 1, 1, 1)),
        (_steps([inf, 1, -inf]), Change(inf, -inf, 1, 1)),
        (_steps([nan] * 3), None),
        (_steps([nan] * 3, [1, 1, 1]), None),
        (_steps([]), None),
    ],
)
def test_change_of_the_loss(steps: Any, found: Change | None) -> None:
    assert change(steps) == found


def test_one_odd_batch_at_an_end_changes_nothing() -> None:
    calm = [2.0] * 50 + [1.0] * 50
    assert change(_steps([900.0, *calm[1:-1], -900.0])) == change(_steps(calm)) == Change(2, 1, 10, 10)


def test_several_processes_are_taken_together() -> None:
    both = pd.concat([_steps([3.0, 1.0]).assign(rank=0), _steps([5.0, 2.0]).assign(rank=1)])
    assert change(both) == Change(4, 1.5, 1, 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.3, "2.30"), (1.386, "1.39"), (123.4, "123"), (1234.5, "1,234"), (0.0, "0"), (-0.5, "-0.500"),
     (1e-7, "1.00e-07"), (3e7, "3.00e+07"), (inf, "not finite"), (nan, "not finite")],
)  # fmt: skip
def test_a_loss_in_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_change_in_words() -> None:
    assert str(Change(2.3, 1.386, 4, 4)) == "2.30 -> 1.39"
    assert str(Change(2.3, 2.3, 1, 0)) == "2.30"


def _calls(*calls: tuple[int, str, float, bool], how: str = "", threshold: float = 1.0, nonfinite: int = 0) -> Any:
    rows = [dict(zip(("step", "kind", "norm_before", "clipped"), call, strict=True)) for call in calls]
    columns = ["step", "kind", "norm_before", "clipped", "how", "threshold", "nonfinite"]
    return pd.DataFrame(
        [{**row, "how": how, "threshold": threshold, "nonfinite": nonfinite} for row in rows], None, columns
    )


@pytest.mark.parametrize(
    ("calls", "count"),
    [
        (_calls((0, "norm", 2.0, True)), 1),
        (_calls((0, "norm", 2.0, False), threshold=inf), 0),
        (_calls((0, "value", nan, False)), 0),
        (_calls((0, "value", nan, False), nonfinite=2), 1),
        (_calls((0, "value", inf, True)), 1),
        (_calls((0, "modified", 2.0, False), how="scaled"), 0),
        (_calls((0, "modified", 2.0, True), how="clamped"), 1),
    ],
)
def test_only_measured_calls_that_limit_count(calls: Any, count: int) -> None:
    assert len(limiting(calls)) == count


UNSEEN = [nan, nan, 1.0, nan]


@pytest.mark.parametrize(
    ("norm", "calls", "found"),
    [
        ([1.0] * 4, _calls(), 0.0),
        (UNSEEN, _calls(), 0.0),
        ([nan] * 4, _calls(), nan),
        (UNSEEN, _calls((2, "modified", 2.0, True), how="clamped"), 1.0),
        (UNSEEN, _calls(*((step, "norm", 2.0, step > 0) for step in range(4))), 0.75),
        (UNSEEN, _calls(*((step, "value", norm, step == 2) for step, norm in enumerate(UNSEEN))), 1.0),
        ([nan, 1, 1, nan], _calls(*((s, "value", n, s == 2) for s, n in enumerate([nan, 1, 1, nan]))), 0.5),
        (UNSEEN, _calls((0, "norm", 2.0, True)), 0.25),
        (UNSEEN, pd.concat([_calls((0, "norm", 2.0, True)), _calls((0, "value", nan, False))]), 0.0),
    ],
)
def test_share_of_clipped_steps_is_of_those_of_which_it_is_known(norm: list[float], calls: Any, found: float) -> None:
    assert share(_steps([nan] * 4, norm=norm), calls) == pytest.approx(found, nan_ok=True)
