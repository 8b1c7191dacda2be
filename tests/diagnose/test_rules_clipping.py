"""The rules on clipping on hand-made records, on both sides of their thresholds."""

from __future__ import annotations

import math
from typing import Any

import pytest
from diagnose.made import FALLS, STALLS, Training, clip, course, key

from gradscope.diagnose.rules.clipping import excessive_clipping, missing_clipping
from gradscope.types.notes import CLIPPED_LATE

# --- clipping


def clipped(before: float, after: float, share: float = 1.0, moved: float = 0.01, optimizer: str = "SGD") -> Training:
    made = Training()
    made.loss, made.optimizer = STALLS, optimizer
    made.norm, made.update = course(1.0, 1.0 + moved), [math.nan] * 8
    made.clips = [clip(i, before, after if i < 100 * share else before, threshold=after) for i in range(100)]
    return made


@pytest.mark.parametrize(
    ("after", "share", "moved", "optimizer", "found"),
    [
        (0.09, 1.0, 0.01, "SGD", True),
        (0.11, 1.0, 0.01, "SGD", False),
        (0.09, 0.91, 0.01, "SGD", True),
        (0.09, 0.89, 0.01, "SGD", False),
        (0.09, 1.0, 0.19, "SGD", True),
        (0.09, 1.0, 0.21, "SGD", False),
        (0.09, 1.0, 0.049, "Adam", True),
        (0.09, 1.0, 0.051, "Adam", False),
    ],
)
def test_clipping_is_excessive_where_it_keeps_the_weights_still(
    after: float, share: float, moved: float, optimizer: str, found: bool
) -> None:
    """Adam makes its steps good, so that its weights have to be as good as still."""
    assert bool(excessive_clipping(clipped(1.0, after, share, moved, optimizer).seen())) is found


@pytest.mark.parametrize(("update", "found"), [(1.6e-3, True), (1.7e-3, False)])
def test_what_single_steps_change_says_how_far_weights_can_have_moved(update: float, found: bool) -> None:
    made = clipped(1.0, 0.001, moved=1.0)
    made.update = [update] * 8
    assert bool(excessive_clipping(made.seen())) is found


@pytest.mark.parametrize(
    ("optimizer", "loss", "update", "severity"),
    [
        ("Adam", FALLS, 8e-4, "info"),
        ("Adam", FALLS, 9e-4, None),
        ("Adam", STALLS, 4e-4, "critical"),
        ("Adam", STALLS, 8e-4, None),
        ("SGD", FALLS, 8e-4, "warning"),
        ("SGD", FALLS, 2e-3, None),
    ],
)
def test_tight_clipping_that_still_trains_is_no_fault_if_the_optimizer_makes_its_steps_good(
    optimizer: str, loss: list[float], update: float, severity: str | None
) -> None:
    made = clipped(1.0, 0.001, optimizer=optimizer)
    made.loss, made.update = loss, [update] * 8
    assert [finding.severity for finding in excessive_clipping(made.seen())] == ([severity] if severity else [])


@pytest.mark.parametrize("after", [0.09, 0.11])
def test_a_loss_that_falls_over_weights_that_clipping_leaves_as_drawn(after: float) -> None:
    made = clipped(1.0, after, optimizer="Adam").as_drawn()
    made.loss, made.update = FALLS, [2e-3] * 8
    findings = excessive_clipping(made.seen())
    assert [finding.severity for finding in findings] == (["warning"] if after < 0.1 else [])
    assert all("other layers learn alone" in finding.explanation for finding in findings)


@pytest.mark.parametrize(("count", "loss", "severity"), [(5, STALLS, "warning"), (5, FALLS, "info"), (4, STALLS, None)])
def test_clipping_after_the_step(count: int, loss: list[float], severity: str | None) -> None:
    """It limits nothing, however tight it is."""
    made = clipped(1.0, 0.001)
    made.loss = loss
    made.notes = [{"step": step, **key("", -1, "", -1), "reason": CLIPPED_LATE} for step in made.records[-count:]]
    findings = missing_clipping(made.seen())
    assert [finding.severity for finding in findings] == ([severity] if severity else [])
    assert bool(excessive_clipping(made.seen())) is (severity is None)
    for finding in findings:
        assert finding.remedies[0].code.endswith("max_norm=0.001)") and "after the optimizer's step" in finding.title


@pytest.mark.parametrize(("loss", "found"), [(FALLS, False), (STALLS, True)])
def test_spikes_in_a_training_that_gets_somewhere_are_no_fault(loss: list[float], found: bool) -> None:
    made = spiking(50.0)
    made.loss = loss
    assert bool(missing_clipping(made.seen())) is found


@pytest.mark.parametrize(("after", "found"), [(1.04, False), (1.06, True)])
def test_of_an_adaptive_optimizer_a_spike_has_to_have_done_harm(after: float, found: bool) -> None:
    made = spiking(50.0, "Adam")
    made.loss = [1.0] * 61 + [after] * 59
    assert bool(missing_clipping(made.seen())) is found


def test_noise_is_no_harm() -> None:
    made = spiking(50.0, "Adam")
    made.loss = [(1.0, 1.4, 0.6, 1.1)[i % 4] for i in range(61)] + [(1.15, 1.5, 0.7, 1.2)[i % 4] for i in range(59)]
    assert not missing_clipping(made.seen())


def test_spikes_behind_a_loss_that_fell_far_and_stands_are_a_fact() -> None:
    made = spiking(50.0)
    made.loss = [10.0, 5.0, 2.0] + [1.0] * 117
    assert [finding.severity for finding in missing_clipping(made.seen())] == ["info"]


@pytest.mark.parametrize(("at", "threshold"), [(6, "2"), (0, "1"), (30, "0.001")])
def test_an_early_spike_leaves_no_usual_norm_behind_it(at: int, threshold: str) -> None:
    """The weights are thrown off, and next to no gradient comes any more."""
    made = Training()
    made.loss, made.optimizer = STALLS, "SGD"
    made.grad_norm = [2.0] * at + [500.0] + [1e-3] * (119 - at)
    (finding,) = missing_clipping(made.seen())
    assert finding.remedies[0].code.endswith(f"max_norm={threshold})")


def test_calls_that_were_not_looked_at_say_nothing() -> None:
    made = clipped(1.0, 0.001)
    unknown = [{**row, "step": 100 + i, "norm_before": math.nan, "clipped": False} for i, row in enumerate(made.clips)]
    made.clips = made.clips + unknown
    (finding,) = excessive_clipping(made.seen())
    assert finding.evidence["clipped"] == 1.0


def test_steps_that_were_not_looked_at_make_no_spike_and_no_median() -> None:
    made = spiking(50.0)
    made.grad_norm = [norm if i % 2 == 0 else math.nan for i, norm in enumerate(made.grad_norm)]
    (finding,) = missing_clipping(made.seen())
    assert finding.evidence["grad_norm_median"] == 1.0


def test_dividing_by_hand_is_no_clipping() -> None:
    made = clipped(1.0, 0.01)
    for row in made.clips:
        row["kind"], row["how"] = "modified", "scaled"
    assert not excessive_clipping(made.seen())


def measured(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls with one more at every step that only measures the norm, as Transformers makes them."""
    return rows + [clip(row["step"], row["norm_after"], row["norm_after"], threshold=math.inf) for row in rows]


def test_calls_that_only_measure_do_not_hide_excessive_clipping() -> None:
    made = clipped(1.0, 0.001)
    (alone,) = excessive_clipping(made.seen())
    made.clips = measured(made.clips)
    (beside,) = excessive_clipping(made.seen())
    assert beside == alone and beside.evidence["clipped"] == 1.0


def test_calls_that_only_measure_are_no_clipping() -> None:
    made = spiking(50.0)
    made.clips = [clip(i, 2.0, 2.0, threshold=math.inf) for i in range(100)]
    assert missing_clipping(made.seen()) and not excessive_clipping(made.seen())


@pytest.mark.parametrize(("count", "found"), [(10, True), (11, False)])
def test_calls_that_only_measure_make_clipping_no_rarer(count: int, found: bool) -> None:
    made = spiking(50.0)
    made.clips = measured([clip(i, 2.0, 1.0 if i < count else 2.0) for i in range(1000)])
    assert bool(missing_clipping(made.seen())) is found


def test_the_threshold_that_is_recommended_is_the_ledgers_own() -> None:
    made = clipped(1.0, 0.001)
    for i, row in enumerate(made.clips):
        row["norm_before"] = 1.0 + i / 100
    (finding,) = excessive_clipping(made.seen())
    assert finding.evidence["norm_before_p90"] == pytest.approx(1.891)
    assert finding.remedies[0].code == "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.9)"


def spiking(peak: float, optimizer: str = "SGD", at: int = 60) -> Training:
    made = Training()
    made.loss, made.optimizer = STALLS, optimizer
    if optimizer.startswith("Adam"):
        made.loss = [1.0] * (at + 1) + [1.2] * (119 - at)
    made.grad_norm = [peak if i == at else 1.0 for i in range(120)]
    return made


@pytest.mark.parametrize(
    ("peak", "optimizer", "found"),
    [(4.9, "SGD", False), (5.1, "SGD", True), (29.9, "AdamW", False), (30.1, "AdamW", True)],
)
def test_spikes_that_nothing_clips(peak: float, optimizer: str, found: bool) -> None:
    findings = missing_clipping(spiking(peak, optimizer).seen())
    assert bool(findings) is found
    assert all(finding.evidence["steps"] == (60, 60) for finding in findings)


@pytest.mark.parametrize(("count", "found"), [(10, True), (11, False)])
def test_spikes_that_are_clipped_are_no_fault(count: int, found: bool) -> None:
    made = spiking(50.0)
    made.clips = [clip(i, 2.0, 1.0 if i < count else 2.0) for i in range(1000)]
    assert bool(missing_clipping(made.seen())) is found


@pytest.mark.parametrize(
    ("peak", "optimizer", "found"),
    [(1.19, "SGD", False), (1.21, "SGD", True), (29.9, "Adam", False), (30.1, "Adam", True)],
)
def test_gradients_that_are_small_at_the_end_make_no_spike_of_the_first(
    peak: float, optimizer: str, found: bool
) -> None:
    made = spiking(1.0, optimizer, at=29)
    made.grad_norm = [1.0] * 29 + [peak] + [0.01] * 90
    assert bool(missing_clipping(made.seen())) is found


@pytest.mark.parametrize(("steps", "found"), [(19, False), (20, True)])
def test_a_spike_needs_a_number_of_steps(steps: int, found: bool) -> None:
    made = spiking(50.0, at=10)
    made.grad_norm = made.grad_norm[:steps]
    made.nonfinite, made.skipped = [0] * steps, [False] * steps
    assert bool(missing_clipping(made.seen())) is found
