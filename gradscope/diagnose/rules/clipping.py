"""Clipping that removes nearly all of the gradient, and spikes that nothing clips."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradscope.diagnose import loops
from gradscope.diagnose.curve import SURE, spread
from gradscope.diagnose.drawn import elsewhere, untrained
from gradscope.diagnose.frames import Frame, Tables
from gradscope.diagnose.onset import JUMP, growth
from gradscope.diagnose.progress import broken, had_fallen, learning, severity
from gradscope.diagnose.rules.updates import typical_update
from gradscope.diagnose.trend import ENOUGH, Array
from gradscope.diagnose.words import number, percent
from gradscope.types import Finding
from gradscope.types.clips import limiting
from gradscope.types.notes import CLIPPED_LATE

ADAPTIVE = ("adam", "adagrad", "adadelta", "adamax", "rmsprop", "rprop", "lion", "lamb", "shampoo", "adafactor")
"""Parts of the names of optimizers whose steps do not shrink with the gradient."""
NEARLY_ALWAYS = 0.9
TIGHT = 0.1
"""Share of the gradient that clipping leaves."""
STILL = 0.05
"""Weights that have moved less than this, relative to their norm, are untrained."""
LITTLE = 0.1
"""Weights that have moved less than this have not come far, though the loss may fall."""
SLOWED = 0.2
"""The same if clipping shrinks the optimizer's steps: an adaptive optimizer makes its steps good."""
SELDOM = 0.01
SPIKE = {False: 5.0, True: 30.0}
"""Largest over median gradient norm of a spike; adaptive optimizers tolerate more."""
BEGINNING = {False: 1.2, True: 30.0}
"""The same over the median of the beginning: small late gradients do not make early ones spikes."""
AROUND, HARM = 10, 0.05
"""A spike does not enlarge an adaptive optimizer's step, so it counts only if it did harm: the loss of so many steps
after the spike exceeds the loss before it by this share."""
STEPS = 20
"""Fewer steps do not distinguish a spike from the usual spread."""


def excessive_clipping(tables: Tables) -> list[Finding]:
    """Find clipping that removes nearly all of nearly every gradient, so that the weights do not move.

    With an adaptive optimizer even tight clipping may do no harm: the criterion is that the weights do not move. If the
    loss falls all the same, it is that they have moved little, or are still those of the initialisation. Any other
    optimizer makes its steps as much smaller as clipping makes the gradients: nobody means this if the weights move
    little.
    """
    clips = limiting(tables["clips"])
    if not len(clips) or len(tables.records) < ENOUGH or _too_late(tables):
        return []
    share, left, moved = float(clips["clipped"].mean()), _left(clips), _moved(tables)
    learns = learning(tables).learns
    if share < NEARLY_ALWAYS or not left <= TIGHT:
        return []
    little = LITTLE if learns else STILL
    if not (moved <= (little if _adaptive(tables) else SLOWED) or (learns and untrained(tables))):
        return []
    return [_excessive(tables, clips, share, left, moved)]


def _excessive(tables: Tables, clips: Frame, share: float, left: float, moved: float) -> Finding:
    before = _finite(clips["norm_before"])
    usual = float(np.quantile(before, 0.9)) if len(before) else math.nan
    threshold = float(clips["threshold"].median())
    return Finding(
        code="excessive_clipping",
        severity=severity(tables, critical=left <= TIGHT / 10, built=untrained(tables) or not _adaptive(tables)),
        layer_key=None,
        title=f"clipping leaves {percent(left)} of the gradient, at nearly every step",
        explanation=(
            f"{percent(share)} of the clipping calls changed the gradients, and left {percent(left)} of their norm "
            f"(median). The threshold is {number(threshold)}; in 90 % of the calls the norm before clipping is at most "
            f"{number(usual)}. No recurrent weight block has moved by more than {percent(moved)} of its norm. "
            f"{learning(tables).sentence}{elsewhere(tables)}"
        ),
        evidence={
            "steps": (int(clips["step"].min()), int(clips["step"].max())),
            "clipped": share,
            "kept": left,
            "threshold": threshold,
            "norm_before_p90": usual,
            "weights_moved": moved,
            **learning(tables).evidence,
        },
        remedies=(loops.clip(usual), loops.LOOK_AT_OPTIMIZER),
    )


def missing_clipping(tables: Tables) -> list[Finding]:
    """Find failing trainings without effective clipping whose gradient spikes, or grows until it is not finite.

    Clipping that comes after the step is a fact in any training: nobody means it.
    """
    if _too_late(tables):
        return [_after_the_step(tables)]
    clips, steps = limiting(tables["clips"]), tables["steps"]
    norms = _finite(steps["grad_norm"])
    if (len(clips) and float(clips["clipped"].mean()) > SELDOM) or learning(tables).learns:
        return []
    grown = list(_before_nan(tables)) if broken(tables) else []
    if grown or len(norms) < STEPS:
        return grown
    median, peak = float(np.median(norms)), float(norms.max())
    adaptive = _adaptive(tables)
    begin = float(np.median(norms[:STEPS]))
    if not (median > 0 and peak >= SPIKE[adaptive] * median and peak >= BEGINNING[adaptive] * begin):
        return []
    place = int(steps["grad_norm"].where(np.isfinite(steps["grad_norm"]), -1).to_numpy().argmax())
    at = int(steps["step"].iloc[place])
    if adaptive and not _harmful(steps, at):
        return []
    return [_missing(tables, norms, at, _finite(steps["grad_norm"].iloc[:place]), adaptive=adaptive)]


def _late(tables: Tables) -> Frame:
    """Return the steps with a clipping call between the last step and the first backward pass."""
    return tables["notes"].loc[tables["notes"]["reason"] == CLIPPED_LATE, "step"]


def _too_late(tables: Tables) -> bool:
    """True if most records have such a call."""
    return bool(2 * _late(tables).isin(tables.records).sum() > len(tables.records))


def _after_the_step(tables: Tables) -> Finding:
    clips, late = limiting(tables["clips"]), _late(tables)
    norms = clips[clips["kind"] == "norm"]
    threshold = float(norms["threshold"].median()) if len(norms) else 1.0
    return Finding(
        code="missing_clipping",
        severity=severity(tables),
        layer_key=None,
        title="the loop clips gradients after the optimizer's step, which changes nothing",
        explanation=(
            f"From step {int(late.min())} on, the loop clips the gradients when the optimizer has stepped and before "
            "the next backward pass computes new ones. So the optimizer gets every gradient unclipped. "
            f"{learning(tables).sentence}"
        ),
        evidence={"steps": (int(late.min()), int(late.max())), "threshold": threshold, **learning(tables).evidence},
        remedies=(loops.clip(threshold),),
    )


def _before_nan(tables: Tables) -> Iterator[Finding]:
    """Find growth, of the gradient or of the loss, that ends in gradients that are not finite."""
    steps = tables["steps"]
    first = int(steps.loc[(steps["nonfinite"] > 0) & ~steps["skipped"].astype(bool), "step"].min())
    times = growth(tables, first)
    if times < JUMP:
        return
    yield Finding(
        code="missing_clipping",
        severity=severity(tables, critical=True),
        layer_key=None,
        title=f"loss or gradient grows {number(times)} times before it is not finite, and nothing clips",
        explanation=(
            f"In the steps before step {first}, the first with NaN or infinite gradients, the loss or the norm of the "
            f"gradient was {number(times)} times as large as usual. Nothing clips the gradients, so that one step "
            "throws the weights far off, and the next one overflows."
        ),
        evidence={"steps": (int(steps["step"].min()), first), "growth": times, "before_nan": True},
        remedies=(loops.clip(_usual(_finite(steps.loc[steps["step"] < first, "grad_norm"]))), loops.rate(0.1)),
    )


def _usual(norms: Array) -> float:
    """A threshold that clips the larger of the early norms; 1 if too few are known."""
    return min(_early(norms), float(np.median(norms))) if len(norms) >= STEPS else 1.0


def _median(norms: Array) -> float:
    """The usual norm before an early spike, after which nothing is usual; 1 if unknown."""
    return float(np.median(norms)) if len(norms) else 1.0


def _early(norms: Array) -> float:
    return float(np.quantile(norms[: max(STEPS, len(norms) // 10)], 0.25))


def _missing(tables: Tables, norms: Array, at: int, before: Array, *, adaptive: bool) -> Finding:
    median, peak = float(np.median(norms)), float(norms.max())
    return Finding(
        code="missing_clipping",
        severity="info" if had_fallen(tables) else severity(tables, critical=peak >= 10 * SPIKE[adaptive] * median),
        layer_key=None,
        title=f"gradients spike to {number(peak / median)} times their median, and nothing clips them",
        explanation=(
            f"The gradient norm is {number(median)} (median over {len(norms):,} steps) and reaches {number(peak)} at "
            f"step {at}; nothing clips it. One such step can throw the weights far off. {learning(tables).sentence}"
        ),
        evidence={
            "steps": (at, at),
            "grad_norm_median": median,
            "grad_norm_max": peak,
            "grad_norm_early_p25": _early(norms),
            "adaptive": adaptive,
            **learning(tables).evidence,
        },
        remedies=(loops.clip(_usual(norms) if len(before) >= STEPS else _median(before)), loops.rate(0.1)),
    )


def _harmful(steps: Frame, at: int) -> bool:
    """True if the loss after a step exceeds the loss before it by more than noise, or if the loss is unknown."""
    losses = steps.loc[np.isfinite(steps["loss"]), ["step", "loss"]]
    before = losses.loc[losses["step"] <= at, "loss"].tail(AROUND)
    after = losses.loc[losses["step"] > at, "loss"].head(AROUND)
    if not len(before) or not len(after):
        return True
    usual, rise = float(before.median()), float(after.median() - before.median())
    error = 1.25 * spread(np.diff(losses["loss"].to_numpy())) * math.sqrt(1 / len(before) + 1 / len(after))
    return rise > max(HARM * abs(usual), SURE * error)


def _adaptive(tables: Tables) -> bool:
    return any(name in str(tables["steps"]["optimizer"].iloc[0]).lower() for name in ADAPTIVE)


def _moved(tables: Tables) -> float:
    """Bound the movement of recurrent weights in all steps together, as a share of their norm.

    The bound follows from the changes in single steps, or, if these are unknown, from the norms of the first and the
    last record.
    """
    update = typical_update(tables)
    if math.isfinite(update):
        return update * tables["steps"]["step"].nunique()
    blocks = tables["weights"].pivot_table(
        index="step", columns=["module", "layer", "direction", "gate"], values="spectral_norm"
    )
    change = (blocks.iloc[-1] / blocks.iloc[0] - 1).abs() if len(blocks) > 1 else blocks.abs().max()
    return float(change.max()) if change.notna().any() else math.nan


def _left(clips: Frame) -> float:
    """Return the share of the gradient norm that clipping leaves, median."""
    ratio = _finite(clips["norm_after"] / clips["norm_before"])
    return float(np.median(ratio)) if len(ratio) else math.nan


def _finite(values: Frame) -> Array:
    array = values.to_numpy(dtype=np.float64)
    return array[np.isfinite(array)]
