"""Weight decay that has eaten the recurrence."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnose import loops, remedies
from gradscope.diagnose.frames import Frame, Seen
from gradscope.diagnose.progress import learning, severity
from gradscope.diagnose.trend import ENOUGH, Array, by_step, rests_on, span
from gradscope.diagnose.words import number, percent, place, plural
from gradscope.types import Finding, LayerKey
from gradscope.types.notes import DECAY

LEFT = 0.35
"""Share of its norm that is left of every block of a recurrence, or of one:"""
GONE = 0.1
STEADY = 0.8
"""Share of the way of its norm that goes down."""


def decayed_weights(seen: Seen) -> list[Finding]:
    """Find recurrences whose weights have shrunk, steadily, to a fraction of their size at the beginning.

    All of them to a third, or those of one gate to next to nothing. Where a decay is far too strong, the gradient may
    hold weights at a size all the same: there the optimizer's own numbers tell.
    """
    if len(seen.records) < ENOUGH or learning(seen).learns:
        return []
    found: list[Finding] = []
    for _, keys in seen.modules_seen:
        shrunk = {key: course for key in keys if (course := _course(seen, key)) is not None}
        if shrunk:
            key = min(shrunk, key=lambda one: _left(shrunk[one]))
            found.append(_finding(seen, key, shrunk[key], len(keys)))
    return found or list(_by_the_optimizer(seen))


def _by_the_optimizer(seen: Seen) -> Iterator[Finding]:
    """Where the optimizer is told to take so much away at every step that weights are what the last steps made them."""
    notes = seen["notes"]
    told = notes.loc[notes["reason"].str.startswith(DECAY), "reason"]
    if not len(told) or not learning(seen).fails:
        return
    share, _, how = str(told.iloc[0]).removeprefix(DECAY).partition(" of the recurrent weights ")
    rate = float(share.rstrip("%")) / 100
    share = percent(rate)
    lasting = plural(max(1, round(1 / rate)), "step")
    yield Finding(
        code="decayed_weights",
        severity=severity(seen),
        layer_key=None,
        title=f"weight decay takes {share} of the recurrent weights away at every step",
        explanation=(
            f"The optimizer takes {share} of the recurrent weights away at every step {how}. So the weights forget "
            f"within some {lasting} what the gradient has made of them, and noise is most of what is left; usual is "
            f"less than a thousandth of a percent. {learning(seen).sentence}"
        ),
        evidence={"steps": span(seen), "rate": rate, **learning(seen).evidence},
        remedies=(loops.no_decay(),),
    )


def _course(seen: Seen, key: LayerKey) -> Array | None:
    """Norms by record of the block that has lost most; None where too much is left."""
    blocks = [by_step(rows, "spectral_norm").to_numpy(dtype=np.float64) for rows in _blocks(seen, key)]
    known = [norms for norms in blocks if len(norms) >= ENOUGH and np.isfinite(norms).all() and norms[0] > 0]
    if not known or len(known) < len(blocks):
        return None
    least = min(known, key=_left)
    eaten = _left(least) <= GONE or all(_left(norms) <= LEFT for norms in known)
    return least if eaten and _steady(least) else None


def _left(norms: Array) -> float:
    return float(norms[-1] / norms[0])


def _steady(norms: Array) -> bool:
    moves = np.diff(norms)
    return float(-moves[moves < 0].sum()) >= STEADY * float(np.abs(moves).sum())


def _blocks(seen: Seen, key: LayerKey) -> Iterator[Frame]:
    weights = seen.of("weights", key)
    yield from (rows for _, rows in weights.groupby("gate", sort=False))


def _finding(seen: Seen, key: LayerKey, norms: Array, count: int) -> Finding:
    where, left = place(key, count == 1), _left(norms)
    again = remedies.start_again(key, seen.family(key.module), 2) if remedies.can_be_initialised(seen, key) else None
    return Finding(
        code="decayed_weights",
        severity=severity(seen, critical=left <= GONE),
        layer_key=key,
        title=f"{where}: {percent(left)} of the recurrent weights is left",
        explanation=(
            f"The recurrent weights of {where} have shrunk steadily: the spectral norm of a gate's block went from "
            f"{number(norms[0])} to {number(norms[-1])}. Learning makes them grow. Weight decay pulls them to zero "
            f"faster than the gradient holds them, and with them goes the memory. {learning(seen).sentence}"
            + rests_on(seen, key)
        ),
        evidence={"steps": span(seen), "left": left, "norm": (norms[0], norms[-1]), **learning(seen).evidence},
        remedies=(loops.no_decay(), *((again,) if again else ())),
    )
