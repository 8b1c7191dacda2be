"""Figures of a run, for matplotlib: every function takes a run and `ax=`, draws into it, and returns the axes.

    from gradscope import plot

    plot.timesteps(run)                                        # into the current axes, as seaborn does
    plot.reach(run, layer=run.layers[0], step=0, ax=ax)        # before training, into your own

`layer` is a key of `run.layers` or the name of a module. `step` is a filter as in `run.frame`; by default a figure
shows the median of the last recorded steps, or the last ones before NaN. If records are missing, the axes say so. Only
`plot.runs` takes something else: the table of a fleet.
"""

from gradscope.plot.clips import clipping, thresholds
from gradscope.plot.fleet import runs
from gradscope.plot.gates import gates, saturation
from gradscope.plot.gradients import heatmap, horizon, jacobians, reach, timesteps
from gradscope.plot.loss import loss
from gradscope.plot.timeline import timeline
from gradscope.plot.weights import spectra, updates

__all__ = [
    "clipping",
    "gates",
    "heatmap",
    "horizon",
    "jacobians",
    "loss",
    "reach",
    "runs",
    "saturation",
    "spectra",
    "thresholds",
    "timeline",
    "timesteps",
    "updates",
]
