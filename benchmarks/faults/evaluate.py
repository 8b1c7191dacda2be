"""What the rules and the baselines say of the confirmed trainings, and how often they were right."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.faults import store
from benchmarks.faults.confirm import Saved
from gradscope.diagnose import diagnose
from gradscope.types import Finding

Z = 1.96


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """A training, and what was said of it."""

    kept: Saved
    findings: tuple[Finding, ...]

    @property
    def codes(self) -> list[str]:
        """Codes of the findings in their order, `healthy` left out."""
        return [finding.code for finding in self.findings if finding.code != "healthy"]

    @property
    def accused(self) -> list[str]:
        """Codes of those that say more than a fact."""
        return [finding.code for finding in self.findings if finding.severity != "info"]


def judge(kept: Iterable[Saved]) -> list[Verdict]:
    """Diagnose each training from its folder."""
    return [Verdict(one, tuple(diagnose(store.run(one.place)))) for one in kept]


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if not count:
        return 0.0, 1.0
    share, spread = hits / count, Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def told(hits: int, count: int) -> str:
    """A share with its count and interval."""
    if not count:
        return "none"
    low, high = interval(hits, count)
    return f"{hits / count:.2f} ({hits}/{count}; {low:.2f} to {high:.2f})"


def table(faulty: Sequence[Verdict], healthy: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """For each code: recall, false alarms among the healthy, and whether an accepted cause comes first."""
    expected = {v: v.kept.case.kind for v in faulty}
    rows: list[tuple[str, ...]] = []
    for code in sorted({kind.code for kind in expected.values() if kind}):
        mine = [v for v in faulty if (kind := expected[v]) and kind.code == code]
        recalled = sum(code in v.codes for v in mine)
        first = sum(bool(v.codes) and v.codes[0] in expected[v].first for v in mine)  # type: ignore[union-attr]
        alarms = sum(code in v.accused for v in healthy)
        rows.append((code, told(recalled, len(mine)), told(alarms, len(healthy)), told(first, len(mine))))
    recalled = sum(expected[v].code in v.codes for v in faulty)  # type: ignore[union-attr]
    first = sum(bool(v.codes) and v.codes[0] in expected[v].first for v in faulty)  # type: ignore[union-attr]
    alarms = sum(bool(v.accused) for v in healthy)
    rows.append(("all", told(recalled, len(faulty)), told(alarms, len(healthy)), told(first, len(faulty))))
    return rows


def misses(faulty: Sequence[Verdict], healthy: Sequence[Verdict]) -> list[str]:
    """Every training of which something wrong was said, by group."""
    counted: Counter[str] = Counter()
    for verdict in faulty:
        kind = verdict.kept.case.kind
        if kind and (kind.code not in verdict.codes or verdict.codes[0] not in kind.first):
            counted[f"{verdict.kept.case.group}: {', '.join(verdict.codes) or 'healthy'}"] += 1
    for verdict in healthy:
        if verdict.accused:
            counted[f"{verdict.kept.case.group}: {', '.join(verdict.accused)}"] += 1
    return [f"{count} x {what}" for what, count in sorted(counted.items())]


# --- baselines

Baseline = Callable[[Saved], bool]


def norm_threshold(kept: Saved) -> bool:
    """Some weight matrix's gradient norm below 1e-7 or above 70 at some recorded step, or not finite."""
    return any(not 1e-7 <= norm <= 70 for norms in kept.result["norms"] for norm in norms)


def layer_ratio(kept: Saved) -> bool:
    """AutoTrainer's rule: first over last layer's norm below 1e-3, with the first below 1e-4, or above 70.

    Also gradients 70 % of which are zero, or that are not finite. Thresholds as in the authors' code
    (https://github.com/shiningrain/AUTOTRAINER).
    """
    for norms, zeros in zip(kept.result["norms"], kept.result["zeros"], strict=True):
        ratio = norms[0] / norms[-1] if norms[-1] else 1.0
        if any(not math.isfinite(norm) for norm in norms) or zeros >= 0.7:
            return True
        if (ratio < 1e-3 and norms[0] < 1e-4) or ratio > 70:
            return True
    return False


BASELINES: dict[str, Baseline] = {
    "gradient norm below 1e-7 or above 70": norm_threshold,
    "first to last layer (AutoTrainer)": layer_ratio,
}


def baselines(faulty: Sequence[Saved], healthy: Sequence[Saved]) -> list[tuple[str, ...]]:
    """Whether each rule says anything at all: of the faulty, and of the healthy."""
    return [
        (name, told(sum(map(rule, faulty)), len(faulty)), told(sum(map(rule, healthy)), len(healthy)))
        for name, rule in BASELINES.items()
    ]
