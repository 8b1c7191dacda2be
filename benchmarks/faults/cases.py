"""The list of trainings: every sound one, every fault and every control, for the tuning and the held-out part."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.faults.interventions import CONTROLS, FAULTS, Control, Fault, Loop
from benchmarks.faults.nets import FAMILIES, FORMS

PARTS = {"tuning": (("adding", "copy", "digits"), (0, 1, 2)), "held-out": (("agreement", "tagging"), (10, 11, 12))}
LR = {"rnn_tanh": 0.003, "rnn_relu": 0.003, "lstm": 0.01, "gru": 0.01}
PER_FAULT = {"tuning": 5, "held-out": 6}  # configurations, each trained from three seeds
PER_CONTROL = {"tuning": 2, "held-out": 2}
_FAULTS = {fault.name: fault for fault in FAULTS}
_CONTROLS = {control.name: control for control in CONTROLS}


@dataclass(frozen=True, slots=True)
class Case:
    """One training.

    Attributes:
        part: `"tuning"` or `"held-out"`.
        task: its name.
        family: of the recurrence.
        form: how it is called.
        fault: name of the fault, or empty.
        strength: of the fault.
        control: name of the control, or empty.
        seed: of weights and data.
        twin_of: for a healthy twin, the fault whose loop it has.
    """

    part: str
    task: str
    family: str
    form: str
    seed: int
    fault: str = ""
    strength: float = 0.0
    control: str = ""
    twin_of: str = ""

    @property
    def group(self) -> str:
        """All but the seed: what is confirmed together."""
        what = self.fault or self.control or "sound"
        strength = f"={self.strength:g}" if self.fault or self.twin_of else ""
        twin = f" (twin of {self.twin_of})" if self.twin_of else ""
        return f"{self.task}, {self.family}, {self.form}: {what}{twin}{strength}"

    @property
    def name(self) -> str:
        """A folder name."""
        safe = "".join(c if c.isalnum() or c in ".-=" else "_" for c in self.group)
        return f"{safe}-{self.seed}"

    @property
    def kind(self) -> Fault | None:
        """What was done to it."""
        return _FAULTS.get(self.fault)

    @property
    def cover(self) -> Control | None:
        """What makes it look faulty."""
        return _CONTROLS.get(self.control)

    def twin(self) -> Case:
        """The healthy one that differs from it by the intervention alone."""
        kind = self.kind
        own = kind is not None and kind.base is not None
        twin_of, strength = (self.fault, self.strength) if own else ("", 0.0)
        return replace(self, fault="", control="", strength=strength, twin_of=twin_of)

    def loop(self) -> Loop:
        """How it is trained."""
        loop = Loop(lr=LR[self.family])
        base = _FAULTS[self.fault or self.twin_of].base if self.fault or self.twin_of else None
        if base is not None:
            loop = base(loop, self.strength)
        if self.kind is not None and self.kind.change is not None:
            loop = self.kind.change(loop, self.strength)
        if self.cover is not None and self.cover.change is not None:
            loop = self.cover.change(loop)
        return loop


def all_cases() -> list[Case]:
    """Every case once, the twins of the faulty ones included, always in the same order."""
    found: dict[str, Case] = {}
    for part, (tasks, seeds) in PARTS.items():
        for case in (*_sound(part, tasks), *_controls(part, tasks), *_faulty(part, tasks)):
            for one in (case, case.twin()) if case.fault else (case,):
                for seed in seeds:
                    found.setdefault(f"{part}/{one.group}/{seed}", replace(one, seed=seed))
    return list(found.values())


def _sound(part: str, tasks: tuple[str, ...]) -> Iterator[Case]:
    for task in tasks:
        for family in FAMILIES:
            for form in FORMS:
                yield Case(part, task, family, form, 0)


def _controls(part: str, tasks: tuple[str, ...]) -> Iterator[Case]:
    for control in CONTROLS:
        own = tuple(task for name, task in control.tasks if name == part) or tasks
        drawn = _drawn(control.name, part, own, control.families, control.forms)
        for task, family, form in drawn[: PER_CONTROL[part] + control.more]:
            yield Case(part, task, family, form, 0, control=control.name)


def _faulty(part: str, tasks: tuple[str, ...]) -> Iterator[Case]:
    for fault in FAULTS:
        suited = tuple(task for task in tasks if not (fault.last_answer and task == "tagging"))
        drawn = _drawn(fault.name, part, suited, fault.families, fault.forms)
        wanted = PER_FAULT[part] + fault.more
        for i, (task, family, form) in enumerate(drawn[:wanted]):
            yield Case(part, task, family, form, 0, fault.name, fault.strengths[i % len(fault.strengths)])


def _drawn(
    name: str, part: str, tasks: tuple[str, ...], families: tuple[str, ...], forms: tuple[str, ...]
) -> list[tuple[str, str, str]]:
    """All combinations in an order that depends on the name alone."""
    combinations = [(task, family, form) for task in tasks for family in families for form in forms]
    random.Random(f"{name}/{part}").shuffle(combinations)
    return combinations
