"""What a run says, as a few numbers and one sentence made from them."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING

from gradscope.demo.training import Trial
from gradscope.types.clips import share
from gradscope.types.loss import Change, change

if TYPE_CHECKING:
    import pandas as pd

    from gradscope import LayerKey, Run

LATE = 4  # recorded steps at the end that are taken together, as a single batch tells little
SATURATED = 0.25  # from which share on it is worth a word
FAINT = 0.05  # below which share the first inputs have little say


@dataclass(frozen=True, slots=True)
class Horizon:
    """How many steps back the loss gradient falls below a thousandth; `censored` where it never does."""

    lag: float
    censored: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """One recurrent layer, before training and at its end (the median over the last recorded steps).

    Attributes:
        before: its horizon at the first recorded step; None where too few are recorded to tell beginning from end.
        after: its horizon at the end.
        decay: decades per step that its reach gains at the end (loses, if negative).
        gate: its most saturated gate at the end.
        saturated: the share of units, sequences and time for which that gate is.
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
        trial: which one.
        accuracy: share of held-back things named rightly.
        clipped: share of optimizer steps at which clipping changed the gradients.
        overhead: gradscope's own share of the training time.
        layers: its recurrent layers, by name.
        loss: from what to what it went; None where no loss was seen.
    """

    trial: Trial
    accuracy: float
    clipped: float
    overhead: float
    layers: dict[str, Layer]
    loss: Change | None = None


def summarise(trial: Trial, accuracy: float, run: Run) -> Summary:
    """The numbers of one finished trial."""
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
    """What the numbers of a layer mean, in plain words."""
    said = _reached(layer)
    if layer.saturated >= SATURATED:
        what = "state" if layer.gate == "hidden" else "gate"
        said += f"; its {layer.gate} {what} is saturated in {layer.saturated:.0%} of units and steps"
    return f"{said}."


def _reached(layer: Layer) -> str:
    lag, left = layer.after.lag, float(layer.reach["p50"].iloc[-1])
    if isnan(lag):
        return "how far its loss gradient reaches back could not be observed, for the reasons in the table `notes`"
    back = f"{lag:.0f} steps back{_earlier(layer)}"
    if not layer.after.censored:
        return (
            f"less than a thousandth of the loss gradient is left {back}, so the "
            f"first {layer.timesteps - lag:.0f} of {layer.timesteps} inputs can hardly teach it anything"
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
