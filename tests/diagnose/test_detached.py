"""The rule of detached states: within a step, or in windows of next to nothing."""

from __future__ import annotations

import pytest
from diagnose.made import Training, course, key

from gradscope.diagnose.rules.detached import detached_state

STALLED = course(1.0, 0.95)
WITHIN = "the state was detached: it is that of an earlier call of the same step, but no gradient goes back to it"
CARRIED = "the state was detached: it was carried over from an earlier step, as truncated backpropagation does"


def detached(reason: str, share: float = 1.0, timesteps: int = 5, chains: int = 4) -> Training:
    made = Training()
    made.direct, made.timesteps, made.chains = STALLED, timesteps, chains
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


@pytest.mark.parametrize(("left", "found"), [(0.59, False), (0.61, True)])
def test_tiny_windows_that_are_enough_are_no_fault(left: float, found: bool) -> None:
    made = detached(CARRIED, timesteps=2)
    made.direct = course(1.0, left)
    assert bool(detached_state(made.seen())) is found
