"""One training and what is true of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.field.setup import Setup
from benchmarks.field.task import Task
from benchmarks.field.tasks import tasks

SOUND, ODD, UNRELATED, FAULTY = "healthy", "healthy, odd", "not recurrent", "faulty"
THIRD, FOURTH, FIFTH, SIXTH, SEVENTH, EIGHTH = "third", "fourth", "fifth", "sixth", "seventh", "eighth"
NINTH = "ninth"
"""Names of the later parts. Tasks of the third and fourth are those of either half, of the fifth the tuning half's, of
the sixth the held-out half's, of the seventh to ninth those of `tasks_other` besides both."""


@dataclass(frozen=True, slots=True)
class Case:
    """A training with its truth.

    Attributes:
        task: its name.
        what: in a few words, in which it differs from others of the task.
        truth: `SOUND`; `ODD` (looks strange and does no harm); `UNRELATED` (learns nothing, and neither its recurrence
            nor anything else that a finding is about is the reason); `FAULTY`.
        setup: how it is trained.
        codes: findings of which one must come first; the first of them names the fault.
        mended: the same training without what ails it; its own setup where nothing does.
        seed: of weights and data.
        part: it belongs to; its task's half where this is empty.
    """

    task: str
    what: str
    truth: str
    setup: Setup
    codes: tuple[str, ...]
    mended: Setup
    seed: int
    part: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.task}: {self.what}"

    @property
    def work(self) -> Task:
        """The task itself."""
        return tasks()[self.task]

    @property
    def half(self) -> str:
        """`"tuning"` or `"held-out"`, the task's; `"third"` to `"ninth"`."""
        return self.part or self.work.half

    @property
    def fine(self) -> bool:
        """Whether there is nothing to find."""
        return self.truth != FAULTY

    def key(self) -> str:
        """Of the training as it is."""
        return self.setup.key(self.task, self.seed)

    def twin_key(self) -> str:
        """Of the mended training; the same where nothing ails it."""
        return self.mended.key(self.task, self.seed)


def sound(task: str, what: str = "as usual", truth: str = SOUND, seed: int = 0, **changes: Any) -> Case:
    """A training that learns."""
    setup = tasks()[task].usual.but(**changes)
    return Case(task, what, truth, setup, (), setup, seed)


def odd(task: str, what: str, **changes: Any) -> Case:
    """A training that learns and looks strange."""
    return sound(task, what, ODD, **changes)


def ailing(
    task: str, what: str, codes: str, base: dict[str, Any], ails: dict[str, Any], mend: dict[str, Any] | None = None
) -> Case:
    """A training that does not learn: `base` is how it would, `ails` what is different.

    `codes` are names with blanks in between, none where there is nothing to find. With `mend`, what mends it is not
    to take `ails` away, but this on top.
    """
    healthy = tasks()[task].usual.but(**base)
    setup = healthy.but(**ails)
    truth = FAULTY if codes else UNRELATED
    return Case(task, what, truth, setup, tuple(codes.split()), setup.but(**mend) if mend else healthy, 0)
