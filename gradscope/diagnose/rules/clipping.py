"""Clipping that takes away nearly everything, and spikes that nothing clips."""

from __future__ import annotations

import math

import numpy as np

from gradscope.diagnose import loops
from gradscope.diagnose.frames import Frame, Seen
from gradscope.diagnose.learning import SURE, spread
from gradscope.diagnose.progress import learning, settled, severity
from gradscope.diagnose.rules.updates import typical_update
from gradscope.diagnose.trend import ENOUGH
from gradscope.diagnose.words import number, percent
from gradscope.types import Finding
from gradscope.types.clips import limiting

ADAPTIVE = ("adam", "adagrad", "adadelta", "adamax", "rmsprop", "rprop", "lion", "lamb", "shampoo", "adafactor")
"""Optimizers whose steps do not shrink with the gradient, by part of their name."""
NEARLY_ALWAYS = 0.9
TIGHT = 0.1
"""Share of the gradient that clipping leaves."""
STILL = 0.05
"""Weights that have moved less than this, relative to their norm, have not been trained."""
SELDOM = 0.01
SPIKE = {False: 5.0, True: 30.0}
"""Largest over median gradient norm; adaptive optimizers stand more."""
BEGINNING = {False: 1.2, True: 30.0}
"""The same over the median of the beginning: that late gradients are small makes no spike of early ones."""
AROUND, HARM = 10, 0.05
"""Of an adaptive optimizer, whose steps a spike makes no larger, it has to be seen that a spike has done harm: the loss
of so many steps after it is above that before it by this share."""
STEPS = 20
"""With fewer steps there is no telling a spike from the usual spread."""


def excessive_clipping(seen: Seen) -> list[Finding]:
    """Find clipping that takes away nearly all of nearly every gradient, where weights stay where they are for it.

    With an adaptive optimizer even tight clipping may do no harm: that the weights do not move is what counts.
    """
    clips = _looked_at(limiting(seen["clips"]))
    if not len(clips) or len(seen.records) < ENOUGH or learning(seen).learns:
        return []
    share, kept, moved = float(clips["clipped"].mean()), _kept(clips), _moved(seen)
    if share < NEARLY_ALWAYS or not kept <= TIGHT or not moved <= STILL:
        return []
    before = _finite(clips["norm_before"])
    usual = float(np.quantile(before, 0.9)) if len(before) else math.nan
    threshold = float(clips["threshold"].median())
    why = (
        f"{percent(share)} of the clipping calls changed the gradients, and left {percent(kept)} of their norm "
        f"(median). The threshold is {number(threshold)}; the norm before clipping is {number(usual)} or less at 90 % "
        "of the calls. "
        f"No recurrent weight block has moved by more than {percent(moved)} of its norm. {learning(seen).sentence}"
    )
    return [
        Finding(
            code="excessive_clipping",
            severity=severity(seen, critical=kept <= TIGHT / 10),
            layer_key=None,
            title=f"clipping leaves {percent(kept)} of the gradient, at nearly every step",
            explanation=why,
            evidence={
                "steps": (int(clips["step"].min()), int(clips["step"].max())),
                "clipped": share,
                "kept": kept,
                "threshold": threshold,
                "norm_before_p90": usual,
                "weights_moved": moved,
                **learning(seen).evidence,
            },
            remedies=(loops.clip(usual), loops.look_at_optimizer()),
        )
    ]


def missing_clipping(seen: Seen) -> list[Finding]:
    """Find trainings without effective clipping whose gradient spikes, and which get nowhere."""
    clips, steps = _looked_at(limiting(seen["clips"])), seen["steps"]
    norms = _finite(steps["grad_norm"])
    if (len(clips) and float(clips["clipped"].mean()) > SELDOM) or len(norms) < STEPS or learning(seen).learns:
        return []
    median, peak = float(np.median(norms)), float(norms.max())
    adaptive = any(name in str(steps["optimizer"].iloc[0]).lower() for name in ADAPTIVE)
    begin = float(np.median(norms[:STEPS]))
    if not (median > 0 and peak >= SPIKE[adaptive] * median and peak >= BEGINNING[adaptive] * begin):
        return []
    at = int(steps["step"].iloc[int(steps["grad_norm"].where(np.isfinite(steps["grad_norm"]), -1).to_numpy().argmax())])
    if adaptive and not _harmed(steps, at):
        return []
    early = float(np.quantile(norms[: max(STEPS, len(norms) // 10)], 0.25))
    return [
        Finding(
            code="missing_clipping",
            severity="info" if settled(seen) else severity(seen, critical=peak >= 10 * SPIKE[adaptive] * median),
            layer_key=None,
            title=f"gradients spike to {number(peak / median)} times their median, and nothing clips them",
            explanation=(
                f"The gradient's norm is {number(median)} (median over {len(norms):,} steps) and reaches "
                f"{number(peak)} at step {at}; no clipping was active. One such step can throw the weights far off. "
                f"{learning(seen).sentence}"
            ),
            evidence={
                "steps": (at, at),
                "grad_norm_median": median,
                "grad_norm_max": peak,
                "grad_norm_early_p25": early,
                "adaptive": adaptive,
                **learning(seen).evidence,
            },
            remedies=(loops.clip(min(early, median)), loops.rate(0.1)),
        )
    ]


def _harmed(steps: Frame, at: int) -> bool:
    """Whether the loss is higher after a step than before it, by more than its noise, or that is not known."""
    losses = steps.loc[np.isfinite(steps["loss"]), ["step", "loss"]]
    before = losses.loc[losses["step"] <= at, "loss"].tail(AROUND)
    after = losses.loc[losses["step"] > at, "loss"].head(AROUND)
    if not len(before) or not len(after):
        return True
    usual, rise = float(before.median()), float(after.median() - before.median())
    error = 1.25 * spread(np.diff(losses["loss"].to_numpy())) * math.sqrt(1 / len(before) + 1 / len(after))
    return rise > max(HARM * abs(usual), SURE * error)


def _looked_at(clips: Frame) -> Frame:
    """Calls of which the norms are known, or are known not to be finite."""
    return clips[clips["norm_before"].notna() | (clips["nonfinite"] > 0)] if "nonfinite" in clips else clips


def _moved(seen: Seen) -> float:
    """By how much recurrent weights can have moved in all steps together, as a share of their norm.

    From what single steps change; where that is not known, from the norms of the first and the last record.
    """
    update = typical_update(seen)
    if math.isfinite(update):
        return update * seen["steps"]["step"].nunique()
    blocks = seen["weights"].pivot_table(
        index="step", columns=["module", "layer", "direction", "gate"], values="spectral_norm"
    )
    change = (blocks.iloc[-1] / blocks.iloc[0] - 1).abs() if len(blocks) > 1 else blocks.abs().max()
    return float(change.max()) if change.notna().any() else math.nan


def _kept(clips: Frame) -> float:
    """Share of the gradient's norm that clipping leaves, median."""
    ratio = _finite(clips["norm_after"] / clips["norm_before"])
    return float(np.median(ratio)) if len(ratio) else math.nan


def _finite(values: Frame) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    array = values.to_numpy(dtype=np.float64)
    return array[np.isfinite(array)]
