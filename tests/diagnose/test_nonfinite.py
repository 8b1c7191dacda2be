"""Gradients that are not finite: where they were born, and what follows from that."""

from __future__ import annotations

import math

import numpy as np
import pytest
from diagnose.made import FALLS, Training, clip, key

from gradscope.diagnose import root_causes_first
from gradscope.diagnose.rules.clipping import missing_clipping
from gradscope.diagnose.rules.nonfinite import nonfinite_gradient
from gradscope.types import Finding, Origin


def spoilt(loss_at: float = 1.0, recorded: bool = False, origin: Origin | None = None, note_at: int = 48) -> Training:
    """A training that is lost from step 40 on; its records are at multiples of 16, or at the step too."""
    made = Training()
    made.nonfinite = [int(i >= 40) for i in range(120)]
    made.loss = [*FALLS[:40], loss_at, *[math.nan] * 79]
    if recorded:
        made.records = [0, 8, 16, 24, 32, 40, 48, 56]
    if origin is not None:
        made.notes = [{"step": 40 if recorded else note_at, **key(), "reason": origin.reason}]
    return made


def the(made: Training) -> Finding:
    (finding,) = nonfinite_gradient(made.seen())
    return finding


def test_gradients_that_are_not_finite() -> None:
    made = Training()
    made.nonfinite = [int(i >= 40) for i in range(120)]
    finding = the(made)
    assert finding.severity == "critical"
    before = ((0, 1.0, 0.55, 1.0), (16, 1.0, 0.55, 1.0), (32, 1.0, 0.55, 1.0))
    told = {"steps": (40, 119), "count": 80, "share": 80 / 120, "lasting": True}
    assert {name: finding.evidence[name] for name in told} == told
    np.testing.assert_allclose(finding.evidence["before"], before)
    assert "step 32: 1, 0.55, 1." in finding.explanation
    assert "from step 40 on" in finding.title


def test_a_loss_that_is_infinite_is_named_and_its_remedies_are_about_the_sample() -> None:
    finding = the(spoilt(math.inf))
    assert finding.title.endswith("from step 40 on: the loss was inf")
    assert "gradscope did not record step 40" in finding.explanation
    codes = [remedy.code for remedy in finding.remedies]
    assert "isfinite" in codes[0] and "zero_infinity=True" in codes[1] and "step == 40" in codes[2]
    assert not any("clip" in code for code in codes)


def test_of_a_loss_that_is_nan_the_batch_comes_first() -> None:
    """Other batches had a loss, so that a step without this one mends the training."""
    finding = the(spoilt(math.nan))
    assert finding.title.endswith("the loss was nan")
    assert finding.remedies[0].code.startswith("if loss.isfinite()") and "step == 40" in finding.remedies[1].code
    assert not any("clip" in remedy.code or "CTC" in remedy.code for remedy in finding.remedies)


def test_a_loss_that_is_nan_from_the_start_may_be_so_in_every_batch() -> None:
    made = Training()
    made.nonfinite, made.loss = [0] * 9 + [1] * 111, [1.0] * 9 + [math.nan] * 111
    assert "step == 9" in the(made).remedies[0].code


def test_lost_weights_in_the_next_record_are_no_birth() -> None:
    consequence = Origin("forward", "weight_ih", sequences=8, analysed=8, entire=True)
    finding = the(spoilt(math.inf, origin=consequence))
    assert "born_step" not in finding.evidence and "forward" not in finding.title


def test_a_birth_after_finite_steps_is_one() -> None:
    made = spoilt(1.0, origin=Origin("forward", "input", t=3, sequences=1, analysed=8))
    made.nonfinite = [int(i in (40, 48)) for i in range(120)]
    assert the(made).evidence["born_step"] == 48


@pytest.mark.parametrize(
    ("origin", "remedy"),
    [
        (Origin("forward", "input", t=3, sequences=1, analysed=8), "look at the batch of step 40"),
        (Origin("forward", "state", t=3, sequences=1, analysed=8), "orthogonal recurrent weights"),
        (Origin("backward", "recurrence", t=3, sequences=1, analysed=8), "orthogonal recurrent weights"),
        (Origin("backward", "gradient from above", sequences=8, analysed=8), "roots, logarithms and divisions"),
    ],
)
def test_remedies_follow_from_the_birth(origin: Origin, remedy: str) -> None:
    finding = the(spoilt(0.5, recorded=True, origin=origin))
    assert remedy in finding.remedies[0].title
    assert f"which begin in the {origin.phase} pass" in finding.title
    assert finding.evidence["born_step"] == 40


def test_a_finite_loss_sends_the_reader_to_the_way_back() -> None:
    finding = the(spoilt(0.5, recorded=True, origin=Origin("backward", "gradient from above", sequences=8, analysed=8)))
    assert "The loss of step 40 was finite (0.5)" in finding.explanation


def test_clipping_is_for_gradients_that_grew() -> None:
    made = spoilt(math.inf)
    made.grad_norm = [1.0] * 38 + [500.0, 900.0] + [math.nan] * 80
    assert "clip_grad_norm_" in the(made).remedies[0].code


@pytest.mark.parametrize(
    ("losses", "clipped", "codes"),
    [
        ([1.8, 5e4], False, ["missing_clipping", "nonfinite_gradient"]),
        ([1.8, 100.0], False, ["nonfinite_gradient"]),
        ([1.8, 5e4], True, ["nonfinite_gradient"]),
        ([1.8] * 30 + [5e4], False, ["missing_clipping", "nonfinite_gradient"]),
    ],
)
def test_a_loss_that_grew_before_it_was_nan_is_for_clipping(
    losses: list[float], clipped: bool, codes: list[str]
) -> None:
    """No record has to show it."""
    made = Training(records=4)
    made.loss = [*losses, *[math.nan] * (120 - len(losses))]
    made.nonfinite, made.grad_norm = [int(math.isnan(loss)) for loss in made.loss], [math.nan] * 120
    made.clips = [clip(step, 2.0, 1.0) for step in range(120)] if clipped else []
    tables = made.seen()
    findings = root_causes_first([*nonfinite_gradient(tables), *missing_clipping(tables)])
    assert [finding.code for finding in findings] == codes
    assert ("clip_grad_norm_" in findings[0].remedies[0].code) is (5e4 in losses)


@pytest.mark.parametrize(("bad", "severity"), [(10, "warning"), (11, "critical")])
def test_a_single_accident_is_a_warning(bad: int, severity: str) -> None:
    made = Training()
    made.grad_norm, made.skipped = [1.0] * 1000, [False] * 1000
    made.nonfinite = [int(40 <= i < 40 + bad) for i in range(1000)]
    assert the(made).severity == severity


def test_steps_that_a_scaler_skips_are_no_fault() -> None:
    made = Training()
    made.nonfinite = made.skipped = [i == 3 for i in range(120)]  # type: ignore[assignment]
    assert not nonfinite_gradient(made.seen())


@pytest.mark.parametrize(("every", "severity"), [(5, None), (4, "warning"), (1, "critical")])
def test_a_scaler_that_finds_no_scale(every: int, severity: str | None) -> None:
    made = Training()
    made.nonfinite = made.skipped = [i % every == 0 for i in range(120)]  # type: ignore[assignment]
    findings = nonfinite_gradient(made.seen())
    assert [finding.severity for finding in findings] == ([severity] if severity else [])
    assert all("GradScaler" in finding.title for finding in findings)
