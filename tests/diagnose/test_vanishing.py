"""A short reach on hand-made records: a fact where the loss falls, a question where it stalls."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from diagnose.made import FALLS, LOST, STALLS, Training, course, key

from gradscope.diagnose import Tables
from gradscope.diagnose.rules.vanishing import vanishing_gradient


def vanishing(early: float, late: float, loss: list[float] = STALLS, records: int = 8) -> Training:
    made = Training(records=records)
    made.horizon, made.loss = course(early, late, records), loss
    return made


@pytest.mark.parametrize(
    ("early", "late", "found"),
    [(17, 12, True), (17, 13, False), (18, 12, False), (3, 3, True), (20, 20, False), (3, 20, False), (20, 3, False)],
)
def test_a_horizon_is_short_early_and_late(early: float, late: float, found: bool) -> None:
    assert bool(vanishing_gradient(vanishing(early, late).seen())) is found


@pytest.mark.parametrize(
    ("late", "loss", "found"), [(12, FALLS, 0), (5, FALLS, 0), (4, FALLS, 1), (5, STALLS, 1), (5, LOST, 1)]
)
def test_a_short_horizon_is_no_fault_where_the_loss_falls(late: float, loss: list[float], found: int) -> None:
    findings = vanishing_gradient(vanishing(late, late, loss).seen())
    assert len(findings) == found
    if loss is FALLS:
        assert all(finding.severity == "info" and finding.explanation.count(". ") < 3 for finding in findings)


@pytest.mark.parametrize(
    ("early", "late", "found"), [(4, 4, True), (5, 4, False), (4, 5, False), (2, 1, True), (16, 11, False)]
)
def test_where_the_loss_enters_everywhere_only_a_horizon_of_next_to_nothing_is_short(
    early: float, late: float, found: bool
) -> None:
    made = vanishing(early, late)
    made.enters = dict.fromkeys(range(21), 1.0)
    assert bool(vanishing_gradient(made.seen())) is found
    made.loss = FALLS
    assert bool(vanishing_gradient(made.seen())) is (max(early, late) <= 2)


@pytest.mark.parametrize(("radius", "severity"), [(0.11, "warning"), (0.13, "info")])
def test_recurrent_weights_next_to_nothing_carry_nothing_in_any_family(radius: float, severity: str) -> None:
    made = Training("gru")
    made.horizon, made.loss, made.radius = [9.0] * 8, STALLS, [radius, *[3.0] * 7]
    assert [finding.severity for finding in vanishing_gradient(made.seen())] == [severity]


@pytest.mark.parametrize(
    ("count", "share", "found"),
    [(9, 1.0, True), (10, 1.0, False), (20, 0.11, False), (20, 0.09, True)],
)
def test_the_loss_enters_everywhere_from_half_of_the_timesteps_on(count: int, share: float, found: bool) -> None:
    made = vanishing(16, 11)
    made.enters = {**dict.fromkeys(range(count), share), 20: 1.0}
    assert bool(vanishing_gradient(made.seen())) is found


def test_what_a_vanishing_finding_says() -> None:
    (finding,) = vanishing_gradient(vanishing(8, 7).seen())
    assert finding.severity == "info"
    assert finding.layer_key == ("encoder", 0, "forward", 0)
    assert finding.evidence["horizon_early"] == 8
    assert finding.evidence["horizon_late"] == 7
    assert finding.evidence["steps"] == (0, 112)
    assert finding.evidence["loss_enters"] == 1 / 21
    assert finding.evidence["learning"] == "stalls"
    assert "7 of 20 steps" in finding.title
    assert "cannot learn from anything older than 7 steps: this matters only if the answer needs it." in (
        finding.explanation
    )
    assert "keep the last 7 timesteps" in finding.remedies[0].title
    assert finding.remedies[1].code == "print(scope.whatif(batch, loss))"
    assert finding.remedies[2].code == "torch.nn.init.orthogonal_(model.encoder.weight_hh_l0)"


@pytest.mark.parametrize(
    ("horizon", "radius", "first", "severity"),
    [
        (8, 1.0, 8, "info"),
        (8, 0.34, 8, "warning"),
        (8, 0.36, 8, "info"),
        (4, 1.0, 4, "warning"),
        (4, 1.0, 5, "info"),
        (5, 1.0, 5, "info"),
    ],
)
def test_it_is_a_fault_where_the_network_was_made_so(horizon: int, radius: float, first: int, severity: str) -> None:
    made = vanishing(horizon, horizon)
    made.radius, made.horizon[0] = [radius] * 8, float(first)
    (finding,) = vanishing_gradient(made.seen())
    assert finding.severity == severity
    assert ("orthogonal_" in finding.remedies[0].code) is (severity == "warning")


def test_without_a_loss_it_is_no_more_than_a_fact() -> None:
    made = vanishing(2, 2, [np.nan] * 120)
    made.direct = course(1.0, 0.95)
    (finding,) = vanishing_gradient(made.seen())
    assert finding.severity == "info" and "By the loss gradient" in finding.explanation


@pytest.mark.parametrize(("records", "found"), [(2, False), (3, True)])
def test_two_records_show_no_course(records: int, found: bool) -> None:
    assert bool(vanishing_gradient(vanishing(3, 3, records=records).seen())) is found


def test_too_short_sequences_say_nothing() -> None:
    made = vanishing(1, 1)
    made.timesteps = 4
    assert not vanishing_gradient(made.seen())
    made.timesteps = 5
    assert vanishing_gradient(made.seen())


def test_nothing_vanishes_where_it_had_no_way_to_go() -> None:
    made = vanishing(0, 0)
    assert vanishing_gradient(made.seen())
    made.longest_lag = 0  # as in the reverse direction of a layer that is read at `[:, -1]`
    assert not vanishing_gradient(made.seen())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_scale_of_the_loss_does_not_matter(scale: float) -> None:
    assert vanishing_gradient(vanishing(7, 7, [scale * x for x in STALLS]).seen())
    assert not vanishing_gradient(vanishing(7, 7, [scale * x for x in FALLS]).seen())


def stack(comes_down: float, layers: int = 2, horizon: float = 7.0) -> Tables:
    """A stack whose gradient vanishes in time in every layer, and of which so much enters the lowest one."""
    parts: list[Training] = []
    for layer in range(layers):
        made = vanishing(horizon, horizon)
        made.where = key(layer=layer)
        made.direct = [size * (1.0 if layer == layers - 1 else comes_down) for size in made.direct]
        parts.append(made)
    tables = [made.tables() for made in parts]
    whole = ("steps", "clips", "notes")
    joined = {
        name: frame if name in whole else pd.concat([t[name] for t in tables]) for name, frame in tables[0].items()
    }
    known = {"class": "RNN", "mode": "RNN_TANH", "input_size": 3, "hidden_size": 4, "num_layers": layers}
    return Tables(joined, {"encoder": known})


@pytest.mark.parametrize(("comes_down", "bridged"), [(0.09, True), (0.11, False), (2.0, False)])
def test_a_stack_that_the_gradient_does_not_come_down_is_bridged_as_well(comes_down: float, bridged: bool) -> None:
    (finding,) = vanishing_gradient(stack(comes_down))
    codes = [remedy.code for remedy in finding.remedies]
    assert finding.evidence["passed_down"] == pytest.approx(comes_down)
    assert "gradscope.cells.orthogonal_(model.encoder)" in codes
    assert ('skip="residual"' in codes[-1]) is bridged is ("comes down to the lowest" in finding.explanation)


@pytest.mark.parametrize(("comes_down", "found"), [(0.009, True), (0.011, False)])
def test_a_stack_that_next_to_nothing_comes_down_is_a_fault_whatever_the_horizon(
    comes_down: float, found: bool
) -> None:
    findings = vanishing_gradient(stack(comes_down, horizon=20.0))
    assert bool(findings) is found
    for finding in findings:
        assert finding.severity == "warning" and "does not come down the stack" in finding.title
        assert 'skip="residual"' in finding.remedies[0].code


@pytest.mark.parametrize(
    ("loss", "first", "found"), [(FALLS, 9e-4, True), (FALLS, 1.1e-3, False), (STALLS, 9e-4, True)]
)
def test_a_stack_that_nothing_comes_down_at_first_is_built_so(loss: list[float], first: float, found: bool) -> None:
    """Whatever comes down later, and even if the training learns."""
    tables = stack(1.0, horizon=20.0)
    rows = tables.frames["timesteps"]
    lowest = (rows["quantity"] == "grad_h_direct") & (rows["layer"] == 0) & (rows["step"] == 0)
    frames = {**tables.frames, "timesteps": rows.assign(mean=rows["mean"].where(~lowest, first * rows["mean"]))}
    frames["steps"] = frames["steps"].assign(loss=np.resize(loss, len(frames["steps"])))
    findings = vanishing_gradient(Tables(frames, tables.modules))
    assert [finding.severity for finding in findings] == (["warning"] if found else [])
    assert all("in the first record" in finding.explanation for finding in findings)


def test_one_layer_has_nothing_to_bridge() -> None:
    (finding,) = vanishing_gradient(stack(0.01, layers=1))
    assert "passed_down" not in finding.evidence and not any("skip=" in remedy.code for remedy in finding.remedies)
