"""The origin of non-finite values, and its text in a note."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Phase = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of NaN or infinity in one layer: the first non-finite value in causal order.

    Attributes:
        phase: the pass of the origin.
        what: in the forward pass the name of a weight, `"initial state"`, `"state between calls"` (the loop computed
            it), `"input"` or `"state"` (the inputs of the step are finite, its result is not); in the backward pass
            `"gradient from above"` (the entering gradient is not finite) or `"recurrence"`. For a module observed by
            position: the name of a parameter, a buffer or an argument, `"input"`, `"output"`, `"gradient from above"`
            or `"way back"`.
        gate: the first non-finite gates, joined by `+`; empty if the origin is no gate.
        t: timestep in the order of the input; None for all timesteps.
        sequence: number of the sequence in the batch, in a pack from the longest on; None for all sequences.
        sequences: number of analysed sequences with such values.
        analysed: number of analysed sequences.
        entire: whether these are the whole batch.
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
        """The text of the note; `read` parses it."""
        gate = f", gate {self.gate}" if self.gate else ""
        when = "" if self.t is None else f", at t = {self.t}"
        which = "" if self.sequence is None else f", sequence {self.sequence}"
        share = f"{self.sequences} of {self.analysed} {'' if self.entire else 'analysed '}sequences"
        return f"values that are not finite begin in the {self.phase} pass: {self.what}{gate}{when}{which} ({share})"

    @classmethod
    def read(cls, reason: str) -> Origin | None:
        """Parse a note; None if it is no note of an origin."""
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
