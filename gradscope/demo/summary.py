"""A run as a few numbers, and one sentence from them."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING

from gradscope.demo.training import Trial
from gradscope.types import LATE
from gradscope.types.clips import share
from gradscope.types.loss import Change, change

if TYPE_CHECKING:
    import pandas as pd

    from gradscope import LayerKey, Run

SATURATED = 0.25  # least share that the sentence mentions
FAINT = 0.05  # with a smaller share the first inputs have little influence


@dataclass(frozen=True, slots=True)
class Horizon:
    """The number of steps back to a thousandth of the loss gradient; `censored` if it never falls so far."""

    lag: float
    censored: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """One recurrent layer, before training and at its end (the median over the last recorded steps).

    Attributes:
        before: horizon at the first recorded step; None if beginning and end overlap, with too few records.
        after: horizon at the end.
        decay: decades per step that reach gains at the end (loses, if negative).
        gate: the most saturated gate at the end.
        saturated: share of units, sequences and time with this gate saturated.
        timesteps: length of the chain.
        reach: columns `p10`, `p50` and `p90` by lag at the end.
    """

    before: Horizon | None
    after: Horizon
    decay: float
    gate: str
    saturated: float
    timesteps: int
    reach: pd.DataFrame


@dataclass(frozen=True, slots=True)
class Summary:
    """One trial.

    Attributes:
        trial: the trial.
        accuracy: share of right answers on test data.
        clipped: share of optimizer steps with clipped gradients.
        overhead: gradscope's own share of the training time.
        layers: recurrent layers, by name.
        loss: loss at both ends; None if unknown.
    """

    trial: Trial
    accuracy: float
    clipped: float
    overhead: float
    layers: dict[str, Layer]
    loss: Change | None = None


def summarise(trial: Trial, accuracy: float, run: Run) -> Summary:
    """Compute the numbers of one finished trial."""
    steps, clips = run.frame("steps"), run.frame("clips")
    return Summary(
        trial,
        accuracy,
        clipped=share(steps, clips),
        overhead=float(steps["overhead_s"].sum() / steps["step_s"].sum()),
        layers={f"{key.module}[{key.layer}] {key.direction}": _layer(run, key) for key in run.layers if not key.chain},
        loss=change(steps),
    )


def _layer(run: Run, key: LayerKey) -> Layer:
    filters = key._asdict()
    records = run.frame("layers", **filters)
    late = records.tail(LATE)
    steps = late["step"].tolist()
    gates = run.frame("gates", step=steps, **filters)
    saturated = (gates["low"] + gates["high"]).groupby(gates["gate"]).mean()
    return Layer(
        before=_horizon(records.head(1)) if len(records) > LATE else None,
        after=_horizon(late),
        decay=float(late["decay"].median()),
        gate=str(saturated.idxmax()),
        saturated=float(saturated.max()),
        timesteps=int(late["timesteps"].max()),
        reach=run.frame("reach", step=steps, **filters).pivot_table(["p10", "p50", "p90"], "lag", aggfunc="median"),
    )


def _horizon(records: pd.DataFrame) -> Horizon:
    return Horizon(float(records["horizon"].median()), bool(records["horizon_censored"].mean() > 0.5))


def sentence(layer: Layer) -> str:
    """Explain the numbers of a layer in plain words."""
    text = _reach(layer)
    if layer.saturated >= SATURATED:
        kind = "state" if layer.gate == "hidden" else "gate"
        text += f"; its {layer.gate} {kind} is saturated in {layer.saturated:.0%} of units and steps"
    return f"{text}."


def _reach(layer: Layer) -> str:
    lag, left = layer.after.lag, float(layer.reach["p50"].iloc[-1])
    if isnan(lag):
        return "the reach of its loss gradient is unknown, for the reasons in the table `notes`"
    back = f"{lag:.0f} steps back{_earlier(layer)}"
    if not layer.after.censored:
        return (
            f"less than a thousandth of the loss gradient is left {back}, so the "
            f"first {layer.timesteps - lag:.0f} of {layer.timesteps} inputs hardly teach it anything"
        )
    if left > 2:
        return f"the loss gradient grows {left:,.0f}-fold on its way to {back}"
    learns = "can teach it" if left >= FAINT else "teach it little"
    share = f"{left:.0%}" if left >= FAINT else f"{left:.1%}"
    return f"{share} of the loss gradient is left {back}, so the first inputs {learns}"


def _earlier(layer: Layer) -> str:
    if layer.before is None:
        return ""
    if layer.before.censored:
        return f" (before training, it reached all {layer.before.lag:.0f})"
    return f" (before training, a thousandth after {layer.before.lag:.0f})"
