"""Which remedies can be tried on a copy: those of the findings, then what is usual for each kind of recurrence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gradscope.diagnose import remedies, swaps
from gradscope.diagnose.frames import Seen
from gradscope.types import Finding, LayerKey, Remedy


class Candidate(NamedTuple):
    """A remedy, and the module that it is for."""

    module: str
    remedy: Remedy


def candidates(seen: Seen, findings: Sequence[Finding]) -> list[Candidate]:
    """Every remedy that changes a module, once: module by module, that of the first finding first.

    Remedies that change the loop, such as clipping or another learning rate, are not among them: they leave `reach` on
    a given batch as it is.
    """
    found: dict[tuple[str, str], Candidate] = {}
    for candidate in (*_of_findings(seen, findings), *_usual(seen)):
        if candidate.remedy.apply is not None:
            found.setdefault((candidate.module, candidate.remedy.code), candidate)
    order = list(dict.fromkeys(module for module, _ in found))
    return sorted(found.values(), key=lambda candidate: order.index(candidate.module))


def _of_findings(seen: Seen, findings: Sequence[Finding]) -> Iterator[Candidate]:
    known = {module for module, _ in seen.modules_seen}
    for finding in findings:
        if finding.layer_key is not None and finding.layer_key.module in known:
            yield from (Candidate(finding.layer_key.module, remedy) for remedy in finding.remedies)


def _usual(seen: Seen) -> Iterator[Candidate]:
    for module, keys in seen.modules_seen:
        if remedies.can_be_initialised(seen, keys[0]):
            usual = _usual_for(seen, keys[0], len(keys))
            yield from (Candidate(module, remedy) for remedy in usual if remedy is not None)


def _usual_for(seen: Seen, key: LayerKey, layers: int) -> list[Remedy | None]:
    family = seen.family(key.module)
    timesteps = int(seen.of("layers", key)["timesteps"].max())
    whole, chrono = remedies.orthogonal(seen, key, layers), remedies.chrono(key, timesteps)
    normalised, bridged = swaps.layer_norm(seen, key), swaps.residual(seen, key)
    if family == "lstm":
        return [whole, remedies.forget_bias(key), chrono, normalised, bridged]
    if family == "gru":
        return [whole, chrono, normalised, bridged]
    if family in ("rnn_tanh", "rnn_relu"):
        return [
            whole,
            remedies.identity(key),
            swaps.gated(seen, key, "LSTM"),
            swaps.gated(seen, key, "GRU"),
            normalised,
            bridged,
        ]
    return []
