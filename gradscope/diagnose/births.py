"""Where the first value that is not finite was born: in a recorded step, or in one of which only the loss is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gradscope.diagnose.frames import Seen
from gradscope.diagnose.words import number, place
from gradscope.types import LayerKey, Origin

LOST = "gradients are not finite at the optimizer: "
"""How the note of a step begins that tells whose gradients they were."""
JUMP = 100.0
"""Gradients or losses so many times larger than usual have grown before they were lost."""
MEANING = {
    "input": "the layer was given them: look at the data, or at what is below the layer",
    "initial state": "the layer was given an initial state with them",
    "state between calls": "the training loop made them of a finite state, between two calls",
    "state": "everything the step was given was finite, and what it made of that was not: numbers have overflowed",
    "output": "all that the module was given was finite, and what it made of that was not",
    "gradient from above": "states are finite, and the gradient enters the layer like that: they are born in the loss "
    "or in what is between it and the layer, as by the root or logarithm of zero",
    "recurrence": "states are finite and so is what enters, and on the way back through time it is so no longer: "
    "gradients have overflowed",
    "way back": "what went through the module is finite and so is the gradient that enters it, and the one that it "
    "hands down is not: a root or logarithm of zero within it, or an overflow",
}


@dataclass(frozen=True, slots=True)
class Birth:
    """What is known of the first step whose gradients were not finite.

    Attributes:
        first: that step.
        loss: its loss; NaN where that was NaN or is not known, `told` says which.
        told: whether losses are known in this training.
        step: the step of the record in which a birth is seen: the first, or a later one after finite steps; None.
        key: where it was born, or whose gradients were not finite.
        origin: how, as far as it was recorded.
        lost: whose gradients they were, as a note says it, where the step was not recorded.
        grew: whether gradients or losses had grown before.
    """

    first: int
    loss: float
    told: bool
    step: int | None
    key: LayerKey | None
    origin: Origin | None
    lost: str
    grew: bool

    @property
    def in_loss(self) -> bool:
        """Whether the loss itself was not finite, and nothing before it is known not to be."""
        entered = self.origin is None or self.origin.what == "gradient from above"
        return self.told and not math.isfinite(self.loss) and entered

    @property
    def where(self) -> str:
        """In a title."""
        if self.in_loss:
            return f": the loss was {number(self.loss)}"
        return "" if self.origin is None else f", born in the {self.origin.phase} pass"


def birth(seen: Seen, first: int) -> Birth:
    """What the records, the notes and the losses say of the first step whose gradients were not finite."""
    steps = seen["steps"].drop_duplicates("step").set_index("step")
    losses = steps["loss"]
    found, lost = _recorded(seen, first), _lost(seen, first)
    step, key, origin = found or (None, lost[0] if lost else None, None)
    return Birth(
        first=first,
        loss=float(losses.get(first, math.nan)),
        told=bool(losses[losses.index < first].notna().any()),
        step=step,
        key=key,
        origin=origin,
        lost=lost[1].removeprefix(LOST) if lost else "",
        grew=_grew(steps[steps.index < first]),
    )


def _recorded(seen: Seen, first: int) -> tuple[int, LayerKey, Origin] | None:
    """The birth in the first such step, or in a later one before which all was finite again.

    A record of weights that are lost already shows what became of it, and not how it came.
    """
    steps = seen["steps"].set_index("step")
    finite = steps.index[(steps["nonfinite"] == 0) & (steps.index > first)]
    notes = seen["notes"]
    for row in notes[notes["step"] >= first].sort_values("step", kind="stable").itertuples(index=False):
        origin, step = Origin.read(str(row.reason)), int(row.step)
        anew = bool((finite < step).any()) or (origin is not None and origin.what == "gradient from above")
        if origin is not None and (step == first or anew):
            return step, _key(row), origin
    return None


def _lost(seen: Seen, first: int) -> tuple[LayerKey, str] | None:
    """Whose gradients they were, at a step that was not recorded."""
    notes = seen["notes"]
    rows = notes[(notes["step"] == first) & notes["reason"].str.startswith(LOST)]
    return next(((_key(row), str(row.reason)) for row in rows.itertuples(index=False)), None)


def _key(row: Any) -> LayerKey:
    return LayerKey(str(row.module), int(row.layer), row.direction, int(row.chain))


def _grew(before: Any) -> bool:
    """Whether the last known gradient norms or losses before it are far above what was usual."""
    for column in ("grad_norm", "loss"):
        sizes = before[column].abs()
        sizes = sizes[sizes.map(math.isfinite) & (sizes > 0)]
        if len(sizes) >= 3 and float(sizes.tail(2).max()) >= JUMP * float(
            sizes.iloc[: max(1, len(sizes) // 2)].median()
        ):
            return True
    return False


def story(seen: Seen, birth: Birth) -> str:
    """Where it began, when, and what that means."""
    parts = [_of_loss(birth)] if birth.told else []
    if birth.step != birth.first and birth.lost and birth.key is not None:
        parts.append(
            f"Step {birth.first} itself was not recorded; at its end {_where(seen, birth.key)} had {birth.lost}."
        )
    elif birth.step != birth.first:
        parts.append(f"Step {birth.first} itself was not recorded.")
    if birth.origin is not None and birth.key is not None:
        parts.append(_of_record(seen, birth, birth.origin, birth.key))
    return " ".join(parts)


def _of_loss(birth: Birth) -> str:
    if math.isfinite(birth.loss):
        return f"The loss of step {birth.first} was finite ({number(birth.loss)}): the way back from it made them."
    born = "it, or what it was made from, is where they come from"
    return f"The loss of step {birth.first} was {number(birth.loss)}: {born}."


def _of_record(seen: Seen, birth: Birth, origin: Origin, key: LayerKey) -> str:
    gate = f", gate {origin.gate}" if origin.gate else ""
    when = "" if origin.t is None else f" at t = {origin.t}"
    when += "" if origin.sequence is None else f" of sequence {origin.sequence}"
    among = f"{origin.sequences} of {origin.analysed} {'' if origin.entire else 'analysed '}sequences"
    given = origin.what.startswith("argument ")
    meaning = MEANING["input"] if given else MEANING.get(origin.what, "the weights themselves are not finite")
    return (
        f"At step {birth.step} they begin in the {origin.phase} pass of {_where(seen, key)}: {origin.what}{gate}{when},"
        f" in {among}; {meaning}."
    )


def _where(seen: Seen, key: LayerKey) -> str:
    alone = len({k[1:3] for k in seen.keys if k.module == key.module}) < 2
    return place(key, alone)


def evidence(birth: Birth) -> dict[str, Any]:
    """The same by name."""
    found: dict[str, Any] = {"loss": birth.loss} if birth.told else {}
    found |= {"parameters": birth.lost} if birth.lost else {}
    origin = birth.origin
    if origin is None or birth.key is None:
        return found
    found |= {"born_step": birth.step, "phase": origin.phase, "what": origin.what}
    found |= {"layer": birth.key.layer, "direction": birth.key.direction}
    found |= {"gate": origin.gate} if origin.gate else {}
    found |= {} if origin.sequence is None else {"sequence": origin.sequence}
    return found if origin.t is None else {**found, "timesteps": (origin.t, origin.t)}
