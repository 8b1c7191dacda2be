"""Remedies that `whatif` can try on a copy: from the findings, then the usual ones for each kind of recurrence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gradscope.diagnose import remedies
from gradscope.diagnose.frames import Tables
from gradscope.types import Finding, LayerKey, Remedy


class Candidate(NamedTuple):
    """A remedy, and its module."""

    module: str
    remedy: Remedy


def candidates(tables: Tables, findings: Sequence[Finding]) -> list[Candidate]:
    """List every remedy that changes a module once, module by module; the module of the first finding comes first.

    The list has no remedies that change the loop, such as clipping or another learning rate: they do not change `reach`
    on one batch.
    """
    unique: dict[tuple[str, str], Candidate] = {}
    for candidate in (*_of_findings(tables, findings), *_usual(tables)):
        if candidate.remedy.apply is not None:
            unique.setdefault((candidate.module, candidate.remedy.code), candidate)
    order = list(dict.fromkeys(module for module, _ in unique))
    return sorted(unique.values(), key=lambda candidate: order.index(candidate.module))


def _of_findings(tables: Tables, findings: Sequence[Finding]) -> Iterator[Candidate]:
    known = {module for module, _ in tables.by_module}
    for finding in findings:
        if finding.layer_key is not None and finding.layer_key.module in known:
            yield from (Candidate(finding.layer_key.module, remedy) for remedy in finding.remedies)


def _usual(tables: Tables) -> Iterator[Candidate]:
    for module, keys in tables.by_module:
        if remedies.can_be_initialised(tables, keys[0]):
            usual = _usual_for(tables, keys[0], len(keys))
            yield from (Candidate(module, remedy) for remedy in usual if remedy is not None)


def _usual_for(tables: Tables, key: LayerKey, layers: int) -> list[Remedy | None]:
    family = tables.family(key.module)
    timesteps = int(tables.of("layers", key)["timesteps"].max())
    whole, chrono = remedies.orthogonal(tables, key, layers), remedies.chrono(key, timesteps)
    normalised, bridged = remedies.layer_norm(tables, key), remedies.residual(tables, key)
    if family == "lstm":
        return [whole, remedies.forget_bias(key), chrono, normalised, bridged]
    if family == "gru":
        return [whole, chrono, normalised, bridged]
    if family in ("rnn_tanh", "rnn_relu"):
        return [
            whole,
            remedies.identity(key),
            remedies.gated(tables, key, "LSTM"),
            remedies.gated(tables, key, "GRU"),
            normalised,
            bridged,
        ]
    return []
