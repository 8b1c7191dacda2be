"""A state that is handed from call to call without its gradient, within one training step."""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnose import loops
from gradscope.diagnose.frames import KEY, Seen
from gradscope.diagnose.progress import learning, severity
from gradscope.diagnose.trend import ENOUGH, span
from gradscope.diagnose.words import percent, plural, typed
from gradscope.types import Finding, LayerKey

DETACHED = "the state was detached"
SAME_STEP = "same step"
OFTEN = 0.5
"""Share of the recorded steps in which it happens."""
FEW = 2
"""Records that show it within a step: many pieces make a record dear, and every step is cut alike."""
TINY = 4
"""A window of so few timesteps is no truncation that anyone means."""


def detached_state(seen: Seen) -> list[Finding]:
    """Find modules whose calls within a step are cut off from each other, or whose windows are tiny.

    That the state is detached between optimizer steps is truncated backpropagation through time, and no fault.
    """
    found: list[Finding] = []
    for module, share, within in _detached(seen):
        layers = seen["layers"][seen["layers"]["module"] == module]
        if share < OFTEN or not len(layers) or len(seen.records) < (FEW if within else ENOUGH):
            continue
        longest, chains = int(layers["timesteps"].max()), int(layers.groupby("step")["chain"].nunique().median())
        if within or (longest <= TINY and not learning(seen).learns):
            found.append(_finding(seen, module, share, longest, chains, within=within))
    return found


def cut_within_steps(seen: Seen) -> set[str]:
    """Modules whose calls within a step are cut off from each other: the first get no gradient from the last."""
    return {module for module, share, within in _detached(seen) if within and share >= OFTEN}


def _detached(seen: Seen) -> Iterator[tuple[str, float, bool]]:
    """Modules with notes of a detached state: in which share of the recorded steps, and whether within one step."""
    notes, records = seen["notes"], max(1, len(seen.records))
    told = notes[notes["reason"].str.contains(DETACHED, regex=False)]
    for module, rows in told.groupby("module", sort=False):
        within = rows["reason"].str.contains(SAME_STEP, regex=False)
        share = min(1.0, rows["step"].nunique() / records)
        yield str(module), share, bool(within.mean() >= OFTEN)


def _finding(seen: Seen, module: str, share: float, longest: int, chains: int, *, within: bool) -> Finding:
    first = seen["layers"][seen["layers"]["module"] == module][KEY].iloc[0]
    key = LayerKey(module, int(first["layer"]), first["direction"], int(first["chain"]))
    return Finding(
        code="detached_state",
        severity="warning" if within and learning(seen).fails else severity(seen),
        layer_key=key,
        title=f"{typed(module)}: the gradient ends after {plural(longest, 'timestep')}, where the state is detached",
        explanation=(
            f"In {percent(share)} of the recorded steps {typed(module)} was given a state that came from an earlier "
            f"call and had been detached. The gradient was in {plural(chains, 'piece')} a step (median), the longest "
            f"of {plural(longest, 'timestep')}: nothing that lies further back can be learnt. That is the matter if "
            f"the answer needs it. {learning(seen).sentence}"
        ),
        evidence={
            "steps": span(seen),
            "timesteps": longest,
            "chains": chains,
            "share": share,
            **learning(seen).evidence,
        },
        remedies=(loops.keep_graph(key), loops.longer_window()),
    )
