"""Which of several findings is the cause of the others."""

from __future__ import annotations

from collections.abc import Sequence

from gradscope.types import Finding

CAUSES = (
    "detached_state",
    "dead_units",
    "saturated_gate",
    "exploding_gradient",
    "nonfinite_gradient",
    "missing_clipping",
    "excessive_clipping",
    "vanishing_gradient",
)
"""Causes before what they bring about: a shut gate makes gradients vanish, large weights end in NaN."""


def root_causes_first(findings: Sequence[Finding]) -> list[Finding]:
    """Sort by probable cause; among findings of one code the worst comes first.

    NaN in a training in which nothing grew is a cause of its own; gates that were not saturated at the start have been
    driven there, by spikes or by weights that grew.
    """
    return sorted(findings, key=lambda finding: (_rank(finding, findings), _SEVERITIES.index(finding.severity)))


_SEVERITIES = ("critical", "warning", "info")


def _rank(finding: Finding, findings: Sequence[Finding]) -> int:
    codes = {other.code for other in findings}
    if finding.code == "nonfinite_gradient" and "exploding_gradient" not in codes:
        return -1
    if finding.code == "saturated_gate" and finding.evidence.get("from_start") is False:
        return CAUSES.index("missing_clipping") + 1
    return CAUSES.index(finding.code)
