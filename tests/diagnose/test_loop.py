"""The rules on the loop on hand-made records: what is left over, left out, too small, or too large."""

from __future__ import annotations

import math

import numpy as np
import pytest
from diagnose.made import FALLS, GROWS, LOST, STALLS, Training, clip, key

from gradscope.diagnose.rules.diverged import diverged
from gradscope.diagnose.rules.few import too_few_records
from gradscope.diagnose.rules.stale import stale_gradient
from gradscope.diagnose.rules.unoptimized import unoptimized_parameters
from gradscope.diagnose.rules.updates import small_updates
from gradscope.types.notes import STALE, UNOPTIMIZED

# --- gradients of earlier steps


def stale(count: int, before: float = 3.0, after: float = 4.0) -> Training:
    made = Training(records=11)
    told = f"{STALE}: norm {before:.3g}, {after:.3g} after the pass"
    made.notes = [{"step": step, **key("", -1, "", -1), "reason": told} for step in made.records[1 : 1 + count]]
    made.grad_norm, made.nonfinite, made.skipped = [1.0] * 200, [0] * 200, [False] * 200
    return made


@pytest.mark.parametrize(("count", "found"), [(10, True), (3, True), (2, False)])
def test_gradients_that_nobody_clears(count: int, found: bool) -> None:
    findings = stale_gradient(stale(count).seen())
    assert bool(findings) is found
    for finding in findings:
        assert finding.severity == "warning" and finding.remedies[0].code == "optimizer.zero_grad()"
        assert finding.evidence["kept"] == 0.75


@pytest.mark.parametrize(("before", "found"), [(0.39, False), (0.41, True)])
def test_what_is_left_over_has_to_be_much(before: float, found: bool) -> None:
    assert bool(stale_gradient(stale(10, before).seen())) is found


# --- parameters that no optimizer steps


@pytest.mark.parametrize(
    ("names", "loss", "severity", "remedy"),
    [
        ("32x32, 32", STALLS, "warning", "ModuleList"),
        ("32x32, 32", FALLS, "warning", "ModuleList"),
        ("head.weight, head.bias", STALLS, "warning", "[model.head.weight, model.head.bias]"),
        ("head.weight", FALLS, "warning", "[model.head.weight]"),
        ("encoder.weight_hh_l0, embed.weight", FALLS, "info", "[model.encoder.weight_hh_l0, model.embed.weight]"),
    ],
)
def test_parameters_that_no_optimizer_steps(names: str, loss: list[float], severity: str, remedy: str) -> None:
    made = Training()
    made.loss = loss
    made.notes = [{"step": 16, **key("", -1, "", -1), "reason": UNOPTIMIZED + names}]
    (finding,) = unoptimized_parameters(made.seen())
    assert finding.severity == severity and names.split(", ")[0] in finding.title
    assert remedy in finding.remedies[0].code


@pytest.mark.parametrize(
    ("norm", "radius", "severity"),
    [
        (1.155, 0.577, "warning"),  # as torch draws them, uniform within 1 / sqrt(H)
        (1.28, 0.577, "info"),
        (1.155, 0.70, "info"),
        (3.0, 3.0, "warning"),  # orthogonal, times 3
        (3.0, 2.9, "info"),
    ],
)
def test_nobody_freezes_recurrent_weights_that_are_as_torch_draws_them(
    norm: float, radius: float, severity: str
) -> None:
    made = Training()
    made.norm, made.radius = [norm] * 8, [radius] * 8
    made.notes = [{"step": 16, **key("", -1, "", -1), "reason": UNOPTIMIZED + "encoder.weight_hh_l0"}]
    (finding,) = unoptimized_parameters(made.seen())
    assert finding.severity == severity
    assert ("initialisation" in finding.explanation) is ("in spite of" in finding.explanation) is (severity != "info")


# --- steps


@pytest.mark.parametrize(
    ("update", "loss", "severity"),
    [
        (4.1e-4, STALLS, "warning"),
        (4.3e-4, STALLS, None),
        (4e-5, STALLS, "critical"),
        (4e-5, FALLS, None),
        (0.0, FALLS, None),
    ],
)
def test_steps_that_leave_the_weights_where_they_are(update: float, loss: list[float], severity: str | None) -> None:
    made = Training()
    made.update, made.loss = [update] * 8, loss
    findings = small_updates(made.seen())
    assert [finding.severity for finding in findings] == ([severity] if severity else [])
    for finding in findings:  # to steps of a hundredth of the weights' norm
        assert finding.remedies[0].code.endswith(f'group["lr"] *= {10.0 ** round(math.log10(1e-2 / update)):g}')


@pytest.mark.parametrize(
    ("late", "gradient", "found"),
    [(0.9e-6, 1.0, True), (1.1e-6, 1.0, False), (0.9e-6, 0.11, True), (0.9e-6, 0.09, False)],
)
def test_a_learning_rate_that_has_run_out(late: float, gradient: float, found: bool) -> None:
    """A gradient that has shrunk as well makes small steps itself."""
    made = Training()
    made.update, made.loss = [1e-3] * 2 + [late] * 6, STALLS
    made.grad_norm = [1.0] * 60 + [gradient] * 60
    assert any("scheduler" in finding.remedies[0].code for finding in small_updates(made.seen())) is found


@pytest.mark.parametrize(("update", "drawn", "found"), [(1e-6, True, True), (5e-4, True, False), (1e-6, False, False)])
def test_a_loss_that_falls_over_recurrent_weights_that_nothing_moves(update: float, drawn: bool, found: bool) -> None:
    """One group of the parameters has next to no learning rate."""
    made = Training().as_drawn() if drawn else Training()
    made.update = [update] * 8
    assert [finding.severity for finding in small_updates(made.seen())] == (["warning"] if found else [])


@pytest.mark.parametrize(("late", "severity"), [(0.9e-8, "warning"), (1.1e-8, "info")])
def test_nobody_means_a_learning_rate_of_which_nothing_is_left(late: float, severity: str) -> None:
    """Whatever the losses say."""
    made = Training()
    made.update = [1e-3] * 2 + [late] * 6
    made.loss = [*FALLS[:60], *[0.1] * 60]
    assert [finding.severity for finding in small_updates(made.seen())] == [severity]


def test_gradients_that_are_cleared_before_the_step() -> None:
    made = Training()
    made.update, made.loss = [0.0] * 8, STALLS
    (finding,) = small_updates(made.seen())
    assert finding.severity == "critical" and finding.remedies[0].code.startswith("optimizer.zero_grad()")


def test_the_factor_follows_from_the_size_of_the_steps() -> None:
    made = Training()
    made.update, made.loss = [1e-6] * 8, STALLS
    assert "*= 1000" in small_updates(made.seen())[0].remedies[0].code


@pytest.mark.parametrize(("loss", "severity"), [(FALLS, None), (STALLS, None), (GROWS, "critical"), (LOST, "critical")])
def test_losses_that_rise_for_good(loss: list[float], severity: str | None) -> None:
    made = Training()
    made.loss = loss
    findings = diverged(made.seen())
    assert [finding.severity for finding in findings] == ([severity] if severity else [])
    for finding in findings:
        assert "*= 0.1" in finding.remedies[0].code and "clip_grad_norm_" in finding.remedies[1].code


@pytest.mark.parametrize(
    ("first", "loss", "severity"),
    [
        ([0.19] * 3, STALLS, None),
        ([0.21] * 3, STALLS, "warning"),
        ([1.1] * 3, STALLS, "critical"),
        ([0.21] * 3, FALLS, None),
        ([0.99] * 3, FALLS, None),
        ([1.1] * 3, FALLS, "warning"),
        ([0.01, 0.01, 5.0], STALLS, None),
        ([0.6, 0.01, 0.01], STALLS, "warning"),
        ([7.0, 0.7, 0.4], FALLS, "warning"),
        ([0.4, 0.01, 0.01], STALLS, None),
    ],
)
def test_first_steps_that_throw_the_weights_off(first: list[float], loss: list[float], severity: str | None) -> None:
    made = Training()
    made.update, made.loss = [*first, *[1e-3] * 5], loss
    findings = diverged(made.seen())
    assert [finding.severity for finding in findings] == ([severity] if severity else [])
    factor = "0.01" if first[0] == 7 else "0.1"  # first steps are to move the weights by a twentieth
    assert all(finding.remedies[0].code.endswith(f"*= {factor}") for finding in findings)


@pytest.mark.parametrize(("end", "update", "found"), [(2.6, 0.026, True), (2.4, 0.026, False), (2.6, 0.024, False)])
def test_a_loss_that_large_steps_drive_up_bit_by_bit(end: float, update: float, found: bool) -> None:
    made = Training()
    made.loss, made.update = [*(1 + (end - 1) * i / 100 for i in range(100)), *[end] * 20], [update] * 8
    assert bool(diverged(made.seen())) is found


@pytest.mark.parametrize(
    ("peak", "end", "update", "found"),
    [(2.1, 1.0, 0.026, True), (1.9, 1.0, 0.026, False), (2.1, 1.0, 0.024, False), (2.1, 0.1, 0.026, False)],
)
def test_a_loss_that_large_steps_drove_up_and_that_has_only_come_down_to_its_beginning(
    peak: float, end: float, update: float, found: bool
) -> None:
    made = Training()
    up, down = np.linspace(1, peak, 20), np.linspace(peak, end, 80)
    made.loss, made.update = [1.0, 1.0, 1.0, *up.tolist(), *down.tolist(), *[end] * 17], [update] * 8
    assert [finding.title for finding in diverged(made.seen())] == ["large steps drove the loss up to 2.1"] * found


@pytest.mark.parametrize(("norm", "found"), [(0.24, False), (0.26, True)])
def test_steps_that_make_next_to_nothing_large_throw_nothing_off(norm: float, found: bool) -> None:
    made = Training()
    made.update, made.loss, made.norm = [1.1] * 3 + [1e-3] * 5, STALLS, [norm, *[4.0] * 7]
    assert bool(diverged(made.seen())) is found


def test_a_training_that_clips_is_not_told_to() -> None:
    made = Training()
    made.loss, made.clips = LOST, [clip(i, 2.0, 1.0) for i in range(100)]
    (finding,) = diverged(made.seen())
    assert len(finding.remedies) == 1


# --- too few records


@pytest.mark.parametrize(("records", "found"), [(0, True), (2, True), (3, False)])
def test_too_few_records_say_what_to_type(records: int, found: bool) -> None:
    findings = too_few_records(Training(records=records).seen())
    assert bool(findings) is found
    assert all("every=1" in finding.remedies[0].code and finding.severity == "info" for finding in findings)
