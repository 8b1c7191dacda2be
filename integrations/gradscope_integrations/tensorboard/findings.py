"""Findings as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradscope_integrations.tensorboard.names import Key, compact

if TYPE_CHECKING:
    from gradscope import Finding


def as_json(step: int | None, findings: Sequence[Finding]) -> bytes:
    """The record of the tag `run/findings`.

    Args:
        step: the last step.
        findings: the findings, most probable cause first.
    """
    return compact({"step": step, "findings": [_finding(finding) for finding in findings]})


def _finding(finding: Finding) -> dict[str, Any]:
    key = None if finding.layer_key is None else Key(*finding.layer_key)
    return {
        **{name: getattr(finding, name) for name in ("code", "severity", "title", "explanation")},
        "layer": None if key is None else {"key": str(key), **key._asdict()},
        "evidence": plain(finding.evidence),
        "remedies": [{"title": remedy.title, "code": remedy.code} for remedy in finding.remedies],
    }


def plain(value: Any) -> Any:
    """Convert a value for JSON: non-finite numbers become words, unknown types their text.

    >>> plain({"horizon": float("inf"), "steps": (0, 9)})
    {'horizon': 'inf', 'steps': [0, 9]}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return plain(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset, range)):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)
