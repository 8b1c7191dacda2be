"""Order of findings: causes before consequences."""

from __future__ import annotations

from collections.abc import Sequence

from gradscope.types import Finding

CAUSES = (
    "no_gradient",
    "stale_gradient",
    "unoptimized_parameters",
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
    "misread_output",
    "small_updates",
    "vanishing_gradient",
    "too_few_records",
)
"""Causes before their effects: a shut gate makes gradients vanish, large weights end in NaN."""
_SEVERITIES = ("critical", "warning", "info")
STILL = frozenset({"no_gradient", "single_timestep", "dead_units", "saturated_gate", "excessive_clipping"})
"""Findings that explain small steps, so that `small_updates` adds nothing."""

FACTS = {"excessive_clipping": "exploding_gradient", "vanishing_gradient": "dead_units"}
"""Mere facts beside the fault that explains them."""
THROWS = frozenset({"missing_clipping", "diverged"})
"""Findings that explain why no gradient comes any more."""


def without_consequences(findings: Sequence[Finding]) -> list[Finding]:
    """Drop findings and facts that another finding explains fully, and `too_few_records` beside any fault."""
    wrong = {finding.code for finding in findings if finding.severity != "info"}
    explained = {"small_updates"} if wrong & STILL else set[str]()
    explained |= {"too_few_records"} if wrong else set()
    explained |= {"missing_clipping"} if any(finding.evidence.get("thrown") for finding in findings) else set()
    facts = {code for code, fault in FACTS.items() if fault in wrong}
    return [one for one in findings if one.code not in explained and not (one.severity == "info" and one.code in facts)]


def root_causes_first(findings: Sequence[Finding]) -> list[Finding]:
    """Sort by probable cause, with mere facts (`info`) last; the worst finding of a code comes first.

    NaN is a cause of its own if nothing grew before. Spikes, large steps, growing weights or a missing gradient drive
    gates into saturation that were not saturated at the start, so these come before the gates. If a layer receives
    exactly zero, dead or saturated units of its module come before `no_gradient`. A gradient that explodes or ends only
    later does so because the training diverged and threw its weights far off.
    """
    return sorted(findings, key=lambda finding: _place(finding, findings))


def _place(finding: Finding, findings: Sequence[Finding]) -> tuple[bool, float, int]:
    return finding.severity == "info", _rank(finding, findings), _SEVERITIES.index(finding.severity)


def _rank(finding: Finding, findings: Sequence[Finding]) -> float:
    codes = {other.code for other in findings}
    wrong = {other.code for other in findings if other.severity != "info"}
    grew = "exploding_gradient" in codes or any("before_nan" in other.evidence for other in findings)
    if finding.code == "nonfinite_gradient" and not grew:
        return -1
    if "before_nan" in finding.evidence:
        return CAUSES.index("nonfinite_gradient") - 0.5
    if finding.code == "no_gradient" and "since" in finding.evidence:
        if _ended(finding) and THROWS & wrong:
            return CAUSES.index("diverged") + 0.5
        if _stopped_above(finding, findings):
            return CAUSES.index("saturated_gate") + 0.5
    if finding.evidence.get("thrown"):
        return CAUSES.index("saturated_gate") - 0.5
    if finding.code == "saturated_gate" and finding.evidence.get("from_start") is False:
        return CAUSES.index("vanishing_gradient" if "vanishing_gradient" in wrong else "diverged") + 0.5
    if finding.code == "exploding_gradient" and finding.evidence.get("from_start") is False and "diverged" in codes:
        return CAUSES.index("diverged") + 0.25
    return CAUSES.index(finding.code)


def _ended(finding: Finding) -> bool:
    """True if gradient came at first."""
    return bool(finding.evidence["since"] > finding.evidence["steps"][0])


def _stopped_above(finding: Finding, findings: Sequence[Finding]) -> bool:
    """True if units of the same module let no gradient pass, and so explain a gradient of exactly zero."""
    stops = [other for other in findings if other.code in ("dead_units", "saturated_gate") and other.severity != "info"]
    module = finding.layer_key.module if finding.layer_key else None
    return any(other.layer_key is not None and other.layer_key.module == module for other in stops)
