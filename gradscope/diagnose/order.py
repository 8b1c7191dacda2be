"""Which of several findings is the cause of the others."""

from __future__ import annotations

from collections.abc import Sequence

from gradscope.types import Finding

CAUSES = (
    "no_gradient",
    "stale_gradient",
    "single_timestep",
    "detached_state",
    "decayed_weights",
    "unscaled_input",
    "dead_units",
    "saturated_gate",
    "exploding_gradient",
    "nonfinite_gradient",
    "missing_clipping",
    "excessive_clipping",
    "diverged",
    "unoptimized_parameters",
    "misread_output",
    "small_updates",
    "vanishing_gradient",
    "too_few_records",
)
"""Causes before what they bring about: a shut gate makes gradients vanish, large weights end in NaN."""
_SEVERITIES = ("critical", "warning", "info")
STILL = frozenset({"no_gradient", "single_timestep", "dead_units", "saturated_gate", "excessive_clipping"})
"""What leaves weights where they are: that steps are small is then no finding of its own."""


def without_consequences(findings: Sequence[Finding]) -> list[Finding]:
    """Leave out what another finding explains wholly, and that there are too few records where something was found."""
    wrong = {finding.code for finding in findings if finding.severity != "info"}
    told = {"small_updates"} if wrong & STILL else set[str]()
    told |= {"too_few_records"} if wrong else set()
    told |= {"missing_clipping"} if any(finding.evidence.get("thrown") for finding in findings) else set()
    return [finding for finding in findings if finding.code not in told]


def root_causes_first(findings: Sequence[Finding]) -> list[Finding]:
    """Sort by probable cause, what is no more than a fact behind the rest; of one code the worst comes first.

    NaN in a training in which nothing grew is a cause of its own. Gates that were not saturated at the start have been
    driven there, by spikes, by steps that were too large, by weights that grew, or in vain: no gradient comes back.
    Where exactly zero comes to a layer, units of its module that let nothing pass come first. A gradient that did not
    explode at the start does so where a training diverged and its weights were thrown far off.
    """
    return sorted(findings, key=lambda finding: _place(finding, findings))


def _place(finding: Finding, findings: Sequence[Finding]) -> tuple[bool, float, int]:
    return finding.severity == "info", _rank(finding, findings), _SEVERITIES.index(finding.severity)


def _rank(finding: Finding, findings: Sequence[Finding]) -> float:
    codes = {other.code for other in findings}
    wrong = {other.code for other in findings if other.severity != "info"}
    if finding.code == "nonfinite_gradient" and "exploding_gradient" not in codes:
        return -1
    if finding.code == "no_gradient" and "since" in finding.evidence and _stopped_above(finding, findings):
        return CAUSES.index("saturated_gate") + 0.5
    if finding.evidence.get("thrown"):
        return CAUSES.index("saturated_gate") - 0.5
    if finding.code == "saturated_gate" and finding.evidence.get("from_start") is False:
        return CAUSES.index("vanishing_gradient" if "vanishing_gradient" in wrong else "diverged") + 0.5
    if finding.code == "exploding_gradient" and finding.evidence.get("from_start") is False and "diverged" in codes:
        return CAUSES.index("diverged") + 0.25
    return CAUSES.index(finding.code)


def _stopped_above(finding: Finding, findings: Sequence[Finding]) -> bool:
    """Whether units of the same module let nothing pass: then exactly zero is what comes of it."""
    stops = [one for one in findings if one.code in ("dead_units", "saturated_gate") and one.severity != "info"]
    module = finding.layer_key.module if finding.layer_key else None
    return any(one.layer_key is not None and one.layer_key.module == module for one in stops)
