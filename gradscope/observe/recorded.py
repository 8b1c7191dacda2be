"""The rows of a recorded step: its analysis, and notes on mistakes and on modules that could not be observed."""

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
from gradscope.types.notes import FROZEN

WHOLE_MODEL = LayerKey("", -1, "", -1)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, eq=False)
class RecordedRows:
    """Collects the rows of a recorded step from the parts of the observer.

    Attributes:
        tree: the model.
        modules: returns the observed modules by name.
        calls: holds the step's recording.
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
        """Rows of the step so far; the step continues.

        Args:
            step: its number.
            share: identities of the stepped parameters; None for all.
            stepped: True if the step is over, and parameters have changed.
        """
        recording = self.calls.recording
        rows = None if recording is None else self.guard.call(self._analysed, step, recording, share, stepped)
        return [*(rows or []), *(_note(step, WHOLE_MODEL, reason) for reason in self.guard.reasons)]

    def close_step(self, step: int, share: set[int] | None) -> list[Rows]:
        """The rows of a step that is over; see `rows`."""
        rows = self.rows(step, share, stepped=True)
        self.guard.take_reasons()  # the rows have them
        if self.calls.recording is not None:
            self.calls.recording.close()
            self.calls.seen.step()
        return rows

    def _analysed(self, step: int, recording: Recording, share: set[int] | None, stepped: bool) -> list[Rows]:
        summaries: list[Rows] = []
        for module, chain, analyses in recording.analyse(self.ledger.scaling.factor, stepped=stepped):
            for analysis in analyses:
                key = LayerKey(module, analysis.layer, analysis.direction, chain)
                summaries.extend(summarise(step, key, analysis))
        return [
            *(rows for rows in summaries if keep(rows, self.wanted)),
            *(self.guard.call(self._origin, step, recording, summaries) or []),
            *self._remarks(step, recording),
            *self.unseen(step, self.arrivals),
            *((self.guard.call(self._checked, step, recording, share) or []) if stepped else []),
        ]

    def _origin(self, step: int, recording: Recording, summaries: Sequence[Rows]) -> list[Rows]:
        """A note on the origin of values that are not finite, if there are any."""
        if not summaries or not (any(map(nonfinite, summaries)) or self.ledger.nonfinite or recording.spoilt):
            return []
        origin = recording.origin(self.ledger.scaling.factor)
        return [] if origin is None else [_note(step, origin[0], origin[1].reason)]

    def _remarks(self, step: int, recording: Recording) -> list[Rows]:
        """Notes on states that could not be followed between calls."""
        remarks = recording.following.messages()
        once = [r for r in remarks if any(part in r[1] for part in ONCE)]
        new = [(m, r) for m, r in remarks if (m, r) not in once or self._first(step, m, r)]
        return [_note(step, _module(m), r) for m, r in new]

    def unseen(self, step: int, arrived: Container[int]) -> list[Rows]:
        """Notes on modules with gradients for unseen calls, and on modules that are no longer part of the model.

        Args:
            step: its number.
            arrived: numbers of the observed modules that have received gradients.
        """
        notes: list[Rows] = []
        for name, reason in self.calls.seen.unseen(self.tree, arrived):
            if reason == NO_CALL and not self._first(step, name, reason):
                continue
            if reason.startswith((COMPILED, REPLACED)):
                self.guard.warn(f"{name or 'the model'}: {reason}")
            notes.append(_note(step, _module(name), reason))
        return notes

    def _checked(self, step: int, recording: Recording, share: set[int] | None) -> list[Rows]:
        """Notes on mistakes of the loop."""
        modules = self.modules()
        called = {name: why for name, why in recording.silent.items() if name in modules and self.passes.any}
        stepped = {n for n in called if share is None or any(id(p) in share for p in modules[n].parameters())}
        silent = {name: why for name, why in called.items() if name in stepped or why == FROZEN}
        notes = self.checks.notes(share, silent, self.owners.optimizers, self.parameters.ids)
        return [_note(step, _module(name), reason) for name, reason in notes]

    def _first(self, step: int, module: str, reason: str) -> bool:
        """True if a remark that is made once in a run belongs to this step."""
        return self.calls.once.setdefault((module, reason), step) == step


def _module(name: str) -> LayerKey:
    return WHOLE_MODEL._replace(module=name)


def _note(step: int, key: LayerKey, reason: str) -> Rows:
    return Rows("notes", {"step": step, **key._asdict(), "reason": reason})
