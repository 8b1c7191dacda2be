"""Whether what `scope.whatif` predicts for the first remedy comes true in the training with that remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import gradscope
from benchmarks.faults import store
from benchmarks.faults.cures import CURED, PREDICTED, first_remedy, known_cure
from benchmarks.faults.evaluate import Verdict
from benchmarks.faults.tasks import TASKS, Data
from benchmarks.faults.training import BATCH, build, prepare, scores
from gradscope.diagnose import Tables, read_tables
from gradscope.diagnose.trend import horizons, peak_reach
from gradscope.types import LayerKey
from gradscope.whatif import UNCHANGED, what_if

NEAR = 0.25  # of the longest lag
DECADES = 1.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """One number before and after, as predicted on the first batch and as it came in the last quarter of the training.

    Attributes:
        code: of the fault.
        before: as it is, on the first batch.
        predicted: with the remedy, on the first batch.
        came: with the remedy, in the last quarter of the training with it.
        span: the longest lag; 0 for the size of `reach`.
    """

    code: str
    before: float
    predicted: float
    came: float
    span: float = 0.0

    @property
    def direction(self) -> bool:
        """Whether the number came to lie on the side of the old one that was predicted, or was to stay and stayed."""
        sides = [int(value > self.before) - int(value < self.before) for value in (self.predicted, self.came)]
        return sides[0] == sides[1]

    @property
    def near(self) -> bool:
        """Whether it came near: a horizon within a quarter of the sequence, a size within a factor of 10."""
        if self.span:
            return abs(self.came - self.predicted) <= NEAR * self.span
        return abs(math.log10(self.came / self.predicted)) <= DECADES


def predictions(verdicts: Sequence[Verdict], out: Path) -> list[Prediction]:
    """Of all faults that vanish or explode and were trained again with a remedy that changes the model."""
    found = [_predict(verdict, out) for verdict in verdicts if known_cure(verdict, out) is not None]
    return [prediction for prediction in found if prediction is not None]


def _predict(verdict: Verdict, out: Path) -> Prediction | None:
    case, remedy = verdict.kept.case, first_remedy(verdict)
    key = next((finding.layer_key for finding in verdict.findings if finding.remedies), None)
    if case.kind is None or case.kind.code not in PREDICTED or key is None:
        return None
    place = store.folder(case, out, CURED)
    if not (place / "run.tables").exists():
        return None
    net, task, loop = build(case), TASKS[case.task], case.loop()
    data = torch.Generator().manual_seed(1000 + case.seed)
    batch = prepare(task.draw(data, BATCH, False), task, loop, data)

    def loss(model: nn.Module, given: Data) -> torch.Tensor:
        return task.loss(scores(model, given, loop, None)[0], given)  # type: ignore[arg-type]

    tried = what_if(net, batch, loss, verdict.findings, lambda copy: gradscope.attach(copy, every=1)).layers
    mine = tried[(tried["module"] == key.module) & (tried["layer"] == key.layer)]
    mine = mine[(mine["direction"] == key.direction) & (mine["chain"] == key.chain)]
    before, after = mine[mine["remedy"] == UNCHANGED], mine[mine["code"] == remedy]
    if not len(before) or not len(after):
        return None
    return _compared(case.kind.code, before.iloc[0], after.iloc[0], read_tables(store.run(place)), key)


def _compared(code: str, before: dict[str, float], after: dict[str, float], cured: Tables, key: LayerKey) -> Prediction:
    if code == "vanishing_gradient":
        _, late, longest = horizons(cured, key)
        return Prediction(code, before["horizon"], after["horizon"], late, longest)
    return Prediction(code, _size(before["peak"]), _size(after["peak"]), _size(peak_reach(cured, key)[1]))


def _size(peak: float) -> float:
    """What overflows is larger than anything."""
    return peak if math.isfinite(peak) else math.inf
