"""Weight decay, and penalties of the weights, on hand-made records, on both sides of their thresholds."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from diagnose.made import FALLS, STALLS, Training, key

from gradscope.diagnose.rules.decayed import decayed_weights
from gradscope.types.notes import DECAY, OUTWEIGHS, PENALTY


@pytest.mark.parametrize(
    ("last", "loss", "severity"),
    [
        (0.34, STALLS, "warning"),
        (0.36, STALLS, None),
        (0.09, STALLS, "critical"),
        (0.09, FALLS, "warning"),
        (0.11, FALLS, None),
    ],
)
def test_recurrent_weights_that_are_eaten(last: float, loss: list[float], severity: str | None) -> None:
    made = Training()
    made.norm, made.loss = [1 + (last - 1) * i / 7 for i in range(8)], loss
    findings = decayed_weights(made.seen())
    assert [finding.severity for finding in findings] == ([severity] if severity else [])
    assert all("weight_decay" in finding.remedies[0].code for finding in findings)


@pytest.mark.parametrize(("least", "found"), [(0.34, True), (0.36, False)])
def test_noise_that_comes_back_does_not_undo_it(least: float, found: bool) -> None:
    made = Training()
    made.norm, made.loss = [1.0, 0.8, 0.5, least, 0.9, 1.2, 1.3, 1.2], STALLS
    assert bool(decayed_weights(made.seen())) is found


def test_weights_that_go_up_and_down_are_not_eaten() -> None:
    made = Training()
    made.norm, made.loss = [1.0, 3.0, 0.5, 3.0, 0.5, 3.0, 0.5, 0.05], STALLS
    assert not decayed_weights(made.seen())


@pytest.mark.parametrize(
    ("rate", "loss", "found"),
    [(0.006, FALLS, False), (0.06, FALLS, True), (0.006, STALLS, True), (0.06, STALLS, True)],
)
def test_a_decay_that_the_gradient_holds_out_against_is_told_by_the_optimizer(
    rate: float, loss: list[float], found: bool
) -> None:
    made = Training()
    made.loss = loss
    told = f"{DECAY}{rate:.2%} of the recurrent weights (AdamW, lr=0.003, weight_decay=20)"
    made.notes = [{"step": 0, **key("", -1, "", -1), "reason": told}]
    findings = decayed_weights(made.seen())
    assert bool(findings) is found
    for finding in findings:
        assert finding.severity == "warning" and finding.evidence["rate"] == pytest.approx(rate)
        assert "(AdamW, lr=0.003, weight_decay=20)" in finding.explanation
        assert f"{round(1 / rate)} steps" in finding.explanation


@pytest.mark.parametrize(
    ("records", "found"),
    [
        (range(2), False),
        (range(3), True),
        (range(1, 4), True),
        (range(2, 5), False),
        (range(4, 16), False),
        (range(16), True),
    ],
)
@pytest.mark.parametrize(
    ("note", "how", "line"),
    [
        (OUTWEIGHS, "(Adam, weight_decay=0.1)", "weight_decay"),
        (PENALTY, "(of their squares)", "without the penalty of the weights"),
    ],
)
@pytest.mark.parametrize("loss", [FALLS, STALLS])
def test_a_decay_that_outweighs_the_loss_from_the_first_quarter_on(
    records: Iterable[int], note: str, how: str, line: str, loss: list[float], found: bool
) -> None:
    """At the end it may: a minimum of both balances them."""
    made = Training(records=16)
    made.loss = loss
    told = f"{note}norm 1.2, loss gradient 0.3 {how}"
    made.notes = [{"step": made.records[i], **key("", -1, "", -1), "reason": told} for i in records]
    findings = decayed_weights(made.seen())
    assert bool(findings) is found
    for finding in findings:
        assert (finding.severity, finding.evidence["ratio"]) == ("warning", pytest.approx(4))
        assert how in finding.explanation and line in finding.remedies[0].code


@pytest.mark.parametrize(("noted", "what"), [(True, "The penalty of the weights in the loss"), (False, "Weight decay")])
def test_what_has_shrunk_the_weights_is_named(noted: bool, what: str) -> None:
    made = Training(records=8)
    made.norm, made.loss = [2.0 ** (-i) for i in range(8)], STALLS
    told = f"{PENALTY}norm 1.2, loss gradient 0.3 (of their squares)"
    made.notes = [{"step": made.records[0], **key("", -1, "", -1), "reason": told}] * noted
    (finding,) = decayed_weights(made.seen())
    assert f"{what} pulls them to zero" in finding.explanation
    assert ("penalty" in finding.remedies[0].code) is noted
