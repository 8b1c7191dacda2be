"""Figures of a run, for matplotlib: every function takes a run and `ax=`, draws into it, and returns the axes.

    from gradscope import plot

    plot.timesteps(run)                                        # into the current axes, as seaborn does
    plot.reach(run, layer=run.layers[0], step=0, ax=ax)        # before training, into your own

Arguments that figures have in common:

* `layer`: a key of `run.layers`, or the name of a module. A figure of several layers draws all by default, one colour
  each; a figure of one layer needs the argument if the run has several. An unknown layer raises `GradscopeError`.
* `step`: recorded steps, a filter as in `run.frame`; by default a figure shows the median (of shares the mean) of the
  last recorded steps, or of the last ones before NaN.
* `ax`: axes of matplotlib; by default the current ones.
* `**line`: matplotlib's options of a line, such as `color` and `label`.

If records are missing, the axes say so. Only `plot.runs` takes something else: the table of a fleet.
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
