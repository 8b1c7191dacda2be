"""States that a loop carries from a recorded step into the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from gradscope.capture.layout import copy_states
from gradscope.observe.following import CARRIED, DetachedState, Finals, Following


@dataclass(slots=True)
class CarriedStates:
    """Copies the initial states of the first calls after a recorded step; the next recorded step compares them.

    Args:
        limit: the most sequences to analyse; None for all.

    Attributes:
        expected: the last states of the recorded step before, by the modules that have not been called since.
    """

    limit: int | None
    expected: dict[str, Finals] = field(default_factory=dict[str, "Finals"])
    _copies: list[DetachedState] = field(default_factory=list["DetachedState"])

    def begin_idle(self, last: Following | None, remarked: Mapping[tuple[str, str], int]) -> None:
        """Begin a step that is not recorded.

        Args:
            last: the step before, if it was recorded.
            remarked: module and reason of the remarks that have been made; these modules need no copy.
        """
        recent = {} if last is None else last.recent
        self.expected = {name: finals for name, finals in recent.items() if (name, CARRIED) not in remarked}

    def begin_recorded(self, following: Following, last: Following | None) -> None:
        """Begin a recorded step: it compares the copies, and its own first states with those of the step before."""
        self.expected = {}
        following.detached, self._copies = self._copies, []
        if last is not None:
            following.previous = last.recent

    def check(self, module: str, state: Sequence[Tensor], rows: int) -> None:
        """Copy the state of the first call of a module, if it may be carried over from the recorded step.

        Args:
            module: its name.
            state: the parts, with the sequences in dimension `rows`.
            rows: 0 or 1.
        """
        finals = self.expected.pop(module, None)
        if finals is not None and state and not any(part.requires_grad for part in state):
            copies = copy_states(state, self.limit, rows)
            self._copies.append(DetachedState(module, copies, [(CARRIED, list(finals))]))
