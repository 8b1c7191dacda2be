"""The list of all trainings."""

from __future__ import annotations

import functools

from benchmarks.field import (
    cases_again,
    cases_eighth,
    cases_fifth,
    cases_fresh,
    cases_inout,
    cases_loop,
    cases_ninth,
    cases_recurrence,
    cases_seventh,
    cases_sound,
    cases_unrelated,
)
from benchmarks.field.case import EIGHTH, FIFTH, FOURTH, NINTH, SEVENTH, SIXTH, THIRD, Case
from benchmarks.field.tasks import HALVES

PARTS = (*HALVES, THIRD, FOURTH, FIFTH, SIXTH, SEVENTH, EIGHTH, NINTH)


@functools.cache
def all_cases() -> list[Case]:
    """Every case once, always in the same order."""
    rooms = (
        cases_sound,
        cases_unrelated,
        cases_recurrence,
        cases_loop,
        cases_inout,
        cases_again,
        cases_fresh,
        cases_fifth,
        cases_seventh,
        cases_eighth,
        cases_ninth,
    )
    return [case for room in rooms for case in room.cases()]
