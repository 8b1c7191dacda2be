"""The rows of a recorded step: what its analysis shows, and notes on what is wrong or could not be seen."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from gradscope.observe.calls import CallReceiver
from gradscope.observe.checks import Checks
from gradscope.observe.following import ONCE
from gradscope.observe.guard import Guard
from gradscope.observe.ledger import Ledger
from gradscope.observe.owners import Owners
from gradscope.observe.parameters import Parameters
from gradscope.observe.passes import Passes
from gradscope.observe.quantities import keep
from gradscope.observe.step import Recording
from gradscope.observe.tree import Tree
from gradscope.observe.unseen import COMPILED, NO_CALL, REPLACED
from gradscope.record.summary import nonfinite, summarise
from gradscope.types import LayerKey, Rows

WHOLE_MODEL = LayerKey("", -1, "", -1)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, eq=False)
class RecordedRows:
    """Asks all who have heard of a recorded step.

    Attributes:
        tree: the model.
        modules: gives the observed modules by name.
        calls: has the step's recording.
        passes: the backward passes.
        owners: which optimizers step observed parameters.
        ledger: clipping and loss scaling.
        parameters: of the observed layers.
        arrivals: numbers of the modules that have received gradients.
        checks: of the loop.
        guard: for failures.
        wanted: names of the quantities.
    """

    tree: Tree
    modules: Callable[[], Mapping[str, nn.Module]]
    calls: CallReceiver
    passes: Passes
    owners: Owners
    ledger: Ledger
    parameters: Parameters
    arrivals: Container[int]
    checks: Checks
    guard: Guard
    wanted: frozenset[str]

    def rows(self, step: int, share: set[int] | None, *, stepped: bool) -> list[Rows]:
        """Rows of the step so far; the step goes on.

        Args:
            step: its number.
            share: identities of the parameters that were stepped; None for all.
            stepped: the step is over, and parameters have changed.
        """
        recording = self.calls.recording
        found = None if recording is None else self.guard.call(self._analysed, step, recording, share, stepped)
        return [*(found or []), *(_note(step, WHOLE_MODEL, reason) for reason in self.guard.reasons)]

    def _analysed(self, step: int, recording: Recording, share: set[int] | None, stepped: bool) -> list[Rows]:
        found: list[Rows] = []
        for module, chain, analyses in recording.analyse(self.ledger.scaling.factor, stepped=stepped):
            for analysis in analyses:
                key = LayerKey(module, analysis.layer, analysis.direction, chain)
                found.extend(summarise(step, key, analysis))
        return [
            *(rows for rows in found if keep(rows, self.wanted)),
            *(self.guard.call(self._origin, step, recording, found) or []),
            *self._remarks(step, recording),
            *self.unseen(step, self.arrivals),
            *((self.guard.call(self._checked, step, recording, share) or []) if stepped else []),
        ]

    def _origin(self, step: int, recording: Recording, found: Sequence[Rows]) -> list[Rows]:
        """Where values that are not finite were born, where there are any."""
        if not found or not (any(map(nonfinite, found)) or self.ledger.nonfinite or recording.spoilt):
            return []
        born = recording.origin(self.ledger.scaling.factor)
        return [] if born is None else [_note(step, born[0], born[1].reason)]

    def _remarks(self, step: int, recording: Recording) -> list[Rows]:
        """Notes on what could not be followed between calls."""
        remarks = recording.following.tell()
        once = [r for r in remarks if any(part in r[1] for part in ONCE)]
        told = [(m, r) for m, r in remarks if (m, r) not in once or self._first(step, m, r)]
        return [_note(step, _module(m), r) for m, r in told]

    def unseen(self, step: int, arrived: Container[int]) -> list[Rows]:
        """Notes on what has received gradient for calls that were not seen, or is not there any more.

        Args:
            step: its number.
            arrived: numbers of the observed modules that have received gradients.
        """
        found: list[Rows] = []
        for name, reason in self.calls.seen.unseen(self.tree, arrived):
            if reason == NO_CALL and not self._first(step, name, reason):
                continue
            if reason.startswith((COMPILED, REPLACED)):
                self.guard.warn(f"{name or 'the model'}: {reason}")
            found.append(_note(step, _module(name), reason))
        return found

    def _checked(self, step: int, recording: Recording, share: set[int] | None) -> list[Rows]:
        """Notes on what is wrong with the loop."""
        modules = self.modules()
        called = [name for name in recording.silent if name in modules] if self.passes.any else []
        silent = [n for n in called if share is None or any(id(p) in share for p in modules[n].parameters())]
        told = self.checks.notes(share, silent, self.owners.optimizers, self.parameters.ids)
        return [_note(step, _module(name), reason) for name, reason in told]

    def _first(self, step: int, module: str, reason: str) -> bool:
        """Whether a remark that is made once in a run is made in this step."""
        return self.calls.once.setdefault((module, reason), step) == step


def _module(name: str) -> LayerKey:
    return WHOLE_MODEL._replace(module=name)


def _note(step: int, key: LayerKey, reason: str) -> Rows:
    return Rows("notes", {"step": step, **key._asdict(), "reason": reason})
