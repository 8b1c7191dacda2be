"""Where the first value that is not finite was born, and how a note says it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Phase = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Origin:
    """The birth of NaN or infinity in one layer: what is named is the first that is not finite, in causal order.

    Attributes:
        phase: the pass in which it was born.
        what: in the forward pass the name of a weight, `"initial state"`, `"state between calls"` (the loop made it
            so), `"input"` or `"state"` (all that the step was given is finite, and what it made of it is not); in the
            backward pass `"gradient from above"` (it enters the layer like that) or `"recurrence"`. Of a module that is
            observed by position: the name of a parameter, a buffer or an argument, `"input"`, `"output"`, `"gradient
            from above"` or `"way back"`.
        gate: the gates in which it shows first, joined by `+`; empty where it is not a gate's.
        t: timestep in the order of the input; None where it is in all of them.
        sequence: number in the batch of the sequence, in a pack from the longest on; None where it is in all of them.
        sequences: how many of those looked at have such values.
        analysed: how many were looked at.
        entire: whether that is the whole batch.
    """

    phase: Phase
    what: str
    gate: str = ""
    t: int | None = None
    sequence: int | None = None
    sequences: int = 0
    analysed: int = 0
    entire: bool = False

    @property
    def reason(self) -> str:
        """What the note says; `read` reads it."""
        gate = f", gate {self.gate}" if self.gate else ""
        when = "" if self.t is None else f", at t = {self.t}"
        which = "" if self.sequence is None else f", sequence {self.sequence}"
        share = f"{self.sequences} of {self.analysed} {'' if self.entire else 'analysed '}sequences"
        return f"values that are not finite begin in the {self.phase} pass: {self.what}{gate}{when}{which} ({share})"

    @classmethod
    def read(cls, reason: str) -> Origin | None:
        """What a note says; None where it speaks of something else."""
        match = _REASON.fullmatch(reason)
        if match is None:
            return None
        phase: Phase = "forward" if match["phase"] == "forward" else "backward"
        t, sequence = (None if (text := match[name]) is None else int(text) for name in ("t", "sequence"))
        counts = int(match["sequences"]), int(match["analysed"])
        return cls(phase, match["what"], match["gate"] or "", t, sequence, *counts, entire=not match["some"])


_REASON = re.compile(
    r"values that are not finite begin in the (?P<phase>forward|backward) pass: (?P<what>[^,()\n]+)"
    r"(?:, gate (?P<gate>[^,()\n]+))?(?:, at t = (?P<t>\d{1,18}))?"
    r"(?:, sequence (?P<sequence>\d{1,18}))? "
    r"\((?P<sequences>\d{1,18}) of (?P<analysed>\d{1,18}) (?P<some>analysed )?sequences\)"
)
