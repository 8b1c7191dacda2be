"""The rule of detached states: within a step, or in windows of next to nothing."""

from __future__ import annotations

import pytest
from diagnose.made import FALLS, LOST, STALLS, Training, key

from gradscope.diagnose.rules.detached import detached_state

WITHIN = "the state was detached: it is that of an earlier call of the same step, but no gradient goes back to it"
CARRIED = "the state was detached: it was carried over from an earlier step, as truncated backpropagation does"


def detached(reason: str, share: float = 1.0, timesteps: int = 5, chains: int = 4) -> Training:
    made = Training()
    made.loss, made.timesteps, made.chains = STALLS, timesteps, chains
    noted = made.records[: round(share * len(made.records))]
    made.notes = [{"step": step, **key(), "reason": reason} for step in noted]
    return made


@pytest.mark.parametrize(
    ("reason", "share", "timesteps", "found"),
    [
        (WITHIN, 1.0, 5, True),
        (WITHIN, 0.5, 5, True),
        (WITHIN, 0.375, 5, False),
        (CARRIED, 1.0, 5, False),
        (CARRIED, 1.0, 4, True),
        ("the layer was not called", 1.0, 1, False),
    ],
)
def test_detached_within_a_step_or_after_every_few(reason: str, share: float, timesteps: int, found: bool) -> None:
    findings = detached_state(detached(reason, share, timesteps).seen())
    assert bool(findings) is found
    assert all(finding.evidence["chains"] == 4 and finding.evidence["timesteps"] == timesteps for finding in findings)


@pytest.mark.parametrize(("loss", "found"), [(FALLS, False), (STALLS, True), (LOST, True)])
def test_tiny_windows_that_are_enough_are_no_fault(loss: list[float], found: bool) -> None:
    made = detached(CARRIED, timesteps=2)
    made.loss = loss
    assert bool(detached_state(made.seen())) is found


@pytest.mark.parametrize(("reason", "records", "found"), [(WITHIN, 1, False), (WITHIN, 2, True), (CARRIED, 2, False)])
def test_two_records_show_what_is_the_same_in_every_step(reason: str, records: int, found: bool) -> None:
    made = Training(records=records)
    made.loss, made.timesteps, made.chains = STALLS, 4, 4
    made.notes = [{"step": step, **key(), "reason": reason} for step in made.records]
    assert [finding.severity for finding in detached_state(made.seen())] == (["warning"] if found else [])


@pytest.mark.parametrize(
    ("loss", "timesteps", "severity"),
    [(FALLS, 5, "info"), (FALLS, 4, "warning"), (STALLS, 5, "warning")],
)
def test_a_state_that_is_detached_within_a_step_matters_where_the_training_fails_or_the_pieces_are_tiny(
    loss: list[float], timesteps: int, severity: str
) -> None:
    made = detached(WITHIN, timesteps=timesteps)
    made.loss = loss
    assert [finding.severity for finding in detached_state(made.seen())] == [severity]
