"""A state that passes from call to call without its gradient, within one training step."""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnose import loops
from gradscope.diagnose.frames import KEY, Tables
from gradscope.diagnose.progress import learning, severity
from gradscope.diagnose.trend import ENOUGH, span
from gradscope.diagnose.words import percent, plural, typed
from gradscope.types import Finding, LayerKey, Severity
from gradscope.types.notes import DETACHED

SAME_STEP = "same step"
OFTEN = 0.5
"""Share of the recorded steps with a detached state."""
FEW = 2
"""So many records suffice within a step: many pieces make records expensive, and all steps are cut alike."""
TINY = 4
"""Nobody intends a truncation to so few timesteps."""


def detached_state(tables: Tables) -> list[Finding]:
    """Find modules whose calls within a step are cut off from each other, or whose windows are tiny.

    A state detached between optimizer steps is truncated backpropagation through time, and no fault.
    """
    findings: list[Finding] = []
    for module, share, within in _detached(tables):
        layers = tables["layers"][tables["layers"]["module"] == module]
        if share < OFTEN or not len(layers) or len(tables.records) < (FEW if within else ENOUGH):
            continue
        longest, chains = int(layers["timesteps"].max()), int(layers.groupby("step")["chain"].nunique().median())
        if within or (longest <= TINY and not learning(tables).learns):
            findings.append(_finding(tables, module, share, longest, chains, within=within))
    return findings


def cut_within_steps(tables: Tables) -> set[str]:
    """Return modules whose calls within a step are cut off from each other: the last send no gradient to the first."""
    return {module for module, share, within in _detached(tables) if within and share >= OFTEN}


def _detached(tables: Tables) -> Iterator[tuple[str, float, bool]]:
    """Yield modules with a detached state, the share of recorded steps, and whether calls of one step are cut off."""
    notes, records = tables["notes"], max(1, len(tables.records))
    notes = notes[notes["reason"].str.contains(DETACHED, regex=False)]
    for module, rows in notes.groupby("module", sort=False):
        within = rows["reason"].str.contains(SAME_STEP, regex=False)
        share = min(1.0, rows["step"].nunique() / records)
        yield str(module), share, bool(within.mean() >= OFTEN)


def _severity(tables: Tables, longest: int, *, within: bool) -> Severity:
    """Warn if the training fails, or if the state is detached after so few timesteps that nobody intends it."""
    if within and (learning(tables).fails or longest <= TINY):
        return "warning"
    return severity(tables)


def _finding(tables: Tables, module: str, share: float, longest: int, chains: int, *, within: bool) -> Finding:
    first = tables["layers"][tables["layers"]["module"] == module][KEY].iloc[0]
    key = LayerKey(module, int(first["layer"]), first["direction"], int(first["chain"]))
    return Finding(
        code="detached_state",
        severity=_severity(tables, longest, within=within),
        layer_key=key,
        title=f"{typed(module)}: the gradient ends after {plural(longest, 'timestep')}, where the state is detached",
        explanation=(
            f"In {percent(share)} of the recorded steps {typed(module)} received a detached state from an earlier "
            f"call. The gradient splits into {plural(chains, 'piece')} a step (median), the longest of "
            f"{plural(longest, 'timestep')}: the network cannot learn from anything further back. This matters only "
            f"if the answer needs it. {learning(tables).sentence}"
        ),
        evidence={
            "steps": span(tables),
            "timesteps": longest,
            "chains": chains,
            "share": share,
            **learning(tables).evidence,
        },
        remedies=(loops.keep_graph(key), loops.LONGER_WINDOW),
    )
