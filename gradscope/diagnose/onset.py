"""The onset of non-finite gradients: the first such step, its loss, and the origin if a record shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gradscope.diagnose.frames import Tables
from gradscope.diagnose.words import number, place
from gradscope.types import LayerKey, Origin
from gradscope.types.notes import LOST

JUMP = 100.0
"""Gradients or losses so many times the usual have grown before the onset."""
MEANING = {
    "input": "the layer's input already contains them: look at the data, or at the modules below the layer",
    "initial state": "the layer's initial state already contains them",
    "state between calls": "the training loop turned a finite state into them, between two calls",
    "state": "the inputs of the step are finite and its result is not: numbers have overflowed",
    "output": "the inputs of the module are finite and its output is not",
    "gradient from above": "the states are finite and the gradient that enters the layer is not: the loss, or an "
    "operation between the layer and the loss, makes them, such as the root or logarithm of zero",
    "recurrence": "the states and the entering gradient are finite, and the gradient overflows on its way back "
    "through time",
    "way back": "the module's activations and the entering gradient are finite, and the gradient of its input is not: "
    "a root or logarithm of zero within the module, or an overflow",
}


@dataclass(frozen=True, slots=True)
class Onset:
    """The first step with non-finite gradients.

    Attributes:
        first: number of the step.
        loss: loss of the step; NaN if the loss was NaN or is unknown, see `has_loss`.
        has_loss: whether the run has losses.
        step: step of the record that shows an origin: the first, or a later one after finite steps; None.
        key: layer of the origin, or of the first non-finite gradients.
        origin: the origin, if a record shows it.
        parameters: the note's names of non-finite gradients, if the step was not recorded.
        grew: whether gradients or losses had grown before.
    """

    first: int
    loss: float
    has_loss: bool
    step: int | None
    key: LayerKey | None
    origin: Origin | None
    parameters: str
    grew: bool

    @property
    def in_loss(self) -> bool:
        """True if the loss was not finite, and no record shows an earlier origin."""
        entered = self.origin is None or self.origin.what == "gradient from above"
        return self.has_loss and not math.isfinite(self.loss) and entered

    @property
    def where(self) -> str:
        """End of a title."""
        if self.in_loss:
            return f": the loss was {number(self.loss)}"
        return "" if self.origin is None else f", which begin in the {self.origin.phase} pass"


def find_onset(tables: Tables, first: int) -> Onset:
    """Collect what records, notes and losses show about the first step with non-finite gradients."""
    steps = tables["steps"].drop_duplicates("step").set_index("step")
    losses = steps["loss"]
    recorded, note = _recorded(tables, first), _note(tables, first)
    step, key, origin = recorded or (None, note[0] if note else None, None)
    return Onset(
        first=first,
        loss=float(losses.get(first, math.nan)),
        has_loss=bool(losses[losses.index < first].notna().any()),
        step=step,
        key=key,
        origin=origin,
        parameters=note[1].removeprefix(LOST) if note else "",
        grew=growth(tables, first) >= JUMP,
    )


def _recorded(tables: Tables, first: int) -> tuple[int, LayerKey, Origin] | None:
    """Return the origin in the first such step, or in a later one after finite steps.

    A record with weights that are already non-finite shows the consequences, not the origin.
    """
    steps = tables["steps"].set_index("step")
    finite = steps.index[(steps["nonfinite"] == 0) & (steps.index > first)]
    notes = tables["notes"]
    for row in notes[notes["step"] >= first].sort_values("step", kind="stable").itertuples(index=False):
        origin, step = Origin.read(str(row.reason)), int(row.step)
        anew = bool((finite < step).any()) or (origin is not None and origin.what == "gradient from above")
        if origin is not None and (step == first or anew):
            return step, _key(row), origin
    return None


def _note(tables: Tables, first: int) -> tuple[LayerKey, str] | None:
    """Return the note about the parameters with non-finite gradients at a step that was not recorded."""
    notes = tables.noted(LOST)
    rows = notes[notes["step"] == first]
    return next(((_key(row), str(row.reason)) for row in rows.itertuples(index=False)), None)


def _key(row: Any) -> LayerKey:
    return LayerKey(str(row.module), int(row.layer), row.direction, int(row.chain))


def growth(tables: Tables, first: int) -> float:
    """Return how many times the usual the last gradient norms or losses before a step are; 0 if nobody knows."""
    steps = tables["steps"]
    before, found = steps[steps["step"] < first].sort_values("step", kind="stable"), [0.0]
    for column in ("grad_norm", "loss"):
        sizes = before[column].abs()
        sizes = sizes[sizes.map(math.isfinite) & (sizes > 0)]
        if len(sizes) >= 2:
            found.append(float(sizes.tail(2).max() / sizes.iloc[: max(1, len(sizes) // 2)].median()))
    return max(found)


def explain(tables: Tables, onset: Onset) -> str:
    """Say when and where the non-finite values begin, and what that means."""
    parts = [_of_loss(onset)] if onset.has_loss else []
    if onset.step != onset.first and onset.parameters and onset.key is not None:
        where = _where(tables, onset.key)
        at_end = f"at its end the gradients of {where} were not finite in {onset.parameters}"
        parts.append(f"gradscope did not record step {onset.first}; {at_end}.")
    elif onset.step != onset.first:
        parts.append(f"gradscope did not record step {onset.first}.")
    if onset.origin is not None and onset.key is not None:
        parts.append(_of_record(tables, onset, onset.origin, onset.key))
    return " ".join(parts)


def _of_loss(onset: Onset) -> str:
    if math.isfinite(onset.loss):
        return f"The loss of step {onset.first} was finite ({number(onset.loss)}): they arise in the backward pass."
    return f"The loss of step {onset.first} was {number(onset.loss)}: they arise in the loss, or before it."


def _of_record(tables: Tables, onset: Onset, origin: Origin, key: LayerKey) -> str:
    gate = f", gate {origin.gate}" if origin.gate else ""
    when = "" if origin.t is None else f" at t = {origin.t}"
    when += "" if origin.sequence is None else f" of sequence {origin.sequence}"
    among = f"{origin.sequences} of {origin.analysed} {'' if origin.entire else 'analysed '}sequences"
    kind = "input" if origin.what.startswith("argument ") else origin.what
    meaning = MEANING.get(kind, "the weights themselves are not finite")
    where = f"the {origin.phase} pass of {_where(tables, key)}"
    return f"At step {onset.step} they begin in {where}: {origin.what}{gate}{when}, in {among}; {meaning}."


def _where(tables: Tables, key: LayerKey) -> str:
    alone = len({k[1:3] for k in tables.keys if k.module == key.module}) < 2
    return place(key, alone)


def evidence(onset: Onset) -> dict[str, Any]:
    """Return the numbers of the explanation, by name."""
    numbers: dict[str, Any] = {"loss": onset.loss} if onset.has_loss else {}
    numbers |= {"parameters": onset.parameters} if onset.parameters else {}
    origin = onset.origin
    if origin is None or onset.key is None:
        return numbers
    numbers |= {"born_step": onset.step, "phase": origin.phase, "what": origin.what}
    numbers |= {"layer": onset.key.layer, "direction": onset.key.direction}
    numbers |= {"gate": origin.gate} if origin.gate else {}
    numbers |= {} if origin.sequence is None else {"sequence": origin.sequence}
    return numbers if origin.t is None else {**numbers, "timesteps": (origin.t, origin.t)}
