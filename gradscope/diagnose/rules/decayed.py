"""Weight decay, or a penalty in the loss, that has shrunk the recurrent weights away or outweighs the loss."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from gradscope.diagnose import loops, remedies
from gradscope.diagnose.frames import Frame, Tables
from gradscope.diagnose.progress import in_spite, learning, severity
from gradscope.diagnose.trend import ENOUGH, Array, by_step, early_and_late, rests_on, span
from gradscope.diagnose.words import number, percent, place, plural
from gradscope.types import Finding, LayerKey
from gradscope.types.notes import DECAY, OUTWEIGHS, PENALTY

LEFT = 0.35
"""No block has more than this share of its norm left,"""
GONE = 0.1
"""or one block has no more than this share left."""
FORGETS = 0.01
"""Weights that lose this share at every step forget within a hundred steps: nobody intends it, even if they learn."""
STEADY = 0.8
"""Share of the movement of a norm that goes down."""
SHRINKING = (
    (
        OUTWEIGHS,
        "weight decay",
        "The optimizer adds the weight decay to the gradient of the recurrent layers",
        loops.NO_DECAY,
    ),
    (
        PENALTY,
        "the penalty of the weights",
        "The loss contains a penalty of the recurrent weights",
        loops.NO_PENALTY,
    ),
)
"""Notes, the name of the thing, where it is, and its remedy."""
_NORMS = re.compile(r": norm (?P<decay>[\d.e+-]+), loss gradient (?P<gradient>[\d.e+-]+) \((?P<how>.*)\)")


def decayed_weights(tables: Tables) -> list[Finding]:
    """Find recurrences whose weights have shrunk steadily to a fraction of their first size.

    All blocks have shrunk to a third, or the block of one gate to next to nothing. The gradient may hold the weights
    even against a decay that is far too strong: then the optimizer's own numbers decide. Decay that it adds to the
    gradient is too strong if it is larger than the gradient of the loss while there is most to learn; at a minimum of
    both it always is as large.
    """
    if len(tables.records) < ENOUGH:
        return []
    by_settings = [*_outweighing(tables), *_by_settings(tables)][:1]
    findings: list[Finding] = []
    for _, keys in tables.by_module:
        shrunk = {key: course for key in keys if (course := _course(tables, key)) is not None}
        if shrunk and (_gone(tables, keys) or not learning(tables).learns):
            key = min(shrunk, key=lambda key: _left(shrunk[key]))
            findings.append(_finding(tables, key, shrunk[key], len(keys)))
    return findings or by_settings


def _outweighing(tables: Tables) -> Iterator[Finding]:
    """Find decay that outweighs the gradient of the loss from the first quarter of the steps on, or a large penalty."""
    for note, name, where, remedy in SHRINKING:
        notes = tables.noted(note)
        layers = tables["layers"].assign(noted=tables["layers"]["step"].isin(notes["step"]).astype(float))
        if early_and_late(by_step(layers, "noted"))[0] < 1:
            continue
        found = [match for reason in notes["reason"] if (match := _NORMS.search(str(reason)))]
        ratio = float(np.median([float(match["decay"]) / float(match["gradient"]) for match in found]))
        yield Finding(
            code="decayed_weights",
            severity=severity(tables, built=True),
            layer_key=None,
            title=f"{name} adds {number(ratio)} times as much to the gradient as the loss does",
            explanation=(
                f"{where} ({found[0]['how']}). In {plural(len(found), 'record')} from step {int(notes['step'].min())} "
                f"on, {name} is {number(ratio)} times as large as the gradient of the loss (median). So the optimizer "
                f"makes the weights small before it makes the loss small. {learning(tables).sentence}{in_spite(tables)}"
            ),
            evidence={"steps": span(tables), "ratio": ratio, **learning(tables).evidence},
            remedies=(remedy,),
        )


def _by_settings(tables: Tables) -> Iterator[Finding]:
    """Find an optimizer whose weight decay leaves the weights no more than the last steps."""
    reasons = tables.noted(DECAY)["reason"]
    if not len(reasons):
        return
    share, _, how = str(reasons.iloc[0]).removeprefix(DECAY).partition(" of the recurrent weights ")
    rate = float(share.rstrip("%")) / 100
    if rate < FORGETS and not learning(tables).fails:
        return
    share = percent(rate)
    lasting = plural(max(1, round(1 / rate)), "step")
    yield Finding(
        code="decayed_weights",
        severity=severity(tables, built=rate >= FORGETS),
        layer_key=None,
        title=f"weight decay removes {share} of the recurrent weights at every step",
        explanation=(
            f"The optimizer removes {share} of the recurrent weights at every step {how}; less than a thousandth of a "
            f"percent is usual. So within some {lasting} the weights lose what they have learnt, and mostly noise is "
            f"left. {learning(tables).sentence}{in_spite(tables)}"
        ),
        evidence={"steps": span(tables), "rate": rate, **learning(tables).evidence},
        remedies=(loops.NO_DECAY,),
    )


def _course(tables: Tables, key: LayerKey) -> Array | None:
    """Return the norms by record of the block that has lost most, down to its least; None if too much is left.

    What comes back later is noise that the decay has not taken yet.
    """
    blocks = [by_step(rows, "spectral_norm").to_numpy(dtype=np.float64) for rows in _blocks(tables, key)]
    known = [norms for norms in blocks if len(norms) >= ENOUGH and np.isfinite(norms).all() and norms[0] > 0]
    if not known or len(known) < len(blocks):
        return None
    most = np.stack([norms / norms[0] for norms in known]).max(axis=0)
    until = max(int(most.argmin()) + 1, ENOUGH)
    falling = [norms[:until] for norms in known]
    least = min(falling, key=_left)
    shrunk = _left(least) <= GONE or all(_left(norms) <= LEFT for norms in falling)
    return least if shrunk and _steady(least) else None


def _gone(tables: Tables, keys: Sequence[LayerKey]) -> bool:
    """True if next to nothing is left of any block: a loss that still falls has a penalty of the weights in it."""
    norms = [by_step(rows, "spectral_norm").to_numpy(dtype=np.float64) for key in keys for rows in _blocks(tables, key)]
    return all(_left(course) <= GONE for course in norms)


def _left(norms: Array) -> float:
    return float(norms[-1] / norms[0])


def _steady(norms: Array) -> bool:
    moves = np.diff(norms)
    return float(-moves[moves < 0].sum()) >= STEADY * float(np.abs(moves).sum())


def _blocks(tables: Tables, key: LayerKey) -> Iterator[Frame]:
    weights = tables.of("weights", key)
    yield from (rows for _, rows in weights.groupby("gate", sort=False))


def _finding(tables: Tables, key: LayerKey, norms: Array, count: int) -> Finding:
    where, left, penalised = place(key, count == 1), _left(norms), len(tables.noted(PENALTY)) > 0
    what = "The penalty of the weights in the loss" if penalised else "Weight decay"
    again = (
        remedies.start_again(key, tables.family(key.module), 2) if remedies.can_be_initialised(tables, key) else None
    )
    return Finding(
        code="decayed_weights",
        severity=severity(tables, critical=left <= GONE, built=learning(tables).learns),
        layer_key=key,
        title=f"{where}: {percent(left)} of the recurrent weights is left",
        explanation=(
            f"The recurrent weights of {where} have shrunk steadily: the spectral norm of a gate's block went from "
            f"{number(norms[0])} to {number(norms[-1])}. Learning makes them grow. {what} pulls them to zero "
            f"faster than the gradient rebuilds them, and the memory fades with them. {learning(tables).sentence}"
            + in_spite(tables)
            + rests_on(tables, key)
        ),
        evidence={"steps": span(tables), "left": left, "norm": (norms[0], norms[-1]), **learning(tables).evidence},
        remedies=(loops.NO_PENALTY if penalised else loops.NO_DECAY, *((again,) if again else ())),
    )
