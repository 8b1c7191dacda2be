"""How the figures look: palette, logarithmic axes, reference lines, and words where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gradscope.errors import from_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Array = np.ndarray[Any, np.dtype[Any]]

TITLES = {
    "grad_h": "Total gradient of the state",
    "grad_h_direct": "Gradient that enters the state from above",
    "grad_c": "Total gradient of the cell",
    "weight_grad": "Contribution to the gradient of W_hh",
    "jacobian": "State Jacobian",
    "jacobian_h": "Jacobian of h alone",
    "jacobian_c": "Jacobian along the cell",
    "jacobian_max": "Largest singular value of the Jacobian",
    "gain": "Gain to the last timestep",
    "state": "Hidden state",
    "cell": "Cell state",
}
UNITS = {
    "grad_h": "norm of dL/dh",
    "grad_h_direct": "norm of direct dL/dh",
    "grad_c": "norm of dL/dc",
    "weight_grad": "norm of dL/dW_hh from t",
    "jacobian": "size of ds(t)/ds(t-1)",
    "jacobian_h": "size of dh(t)/dh(t-1)",
    "jacobian_c": "size of dc(t)/dc(t-1)",
    "jacobian_max": "largest singular value",
    "gain": "size of ds(T)/ds(t)",
    "state": "rms of h",
    "cell": "rms of c",
}
CROWDED = 0.2
"""Records crowd where half of them are in this first part of the steps."""
DENSE = 16
"""So many steps are recorded one after another before they become sparser, by default."""
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def axes(ax: Axes | None) -> Axes:
    """The axes given, or the current ones, as in seaborn."""
    if ax is not None:
        return ax
    with from_extra("report"):
        import matplotlib.pyplot as plt

    return plt.gca()


def colours(number: int) -> list[str]:
    """So many colours that the colour-blind tell apart as well; of many, neighbours differ in lightness."""
    with from_extra("report"):
        import seaborn

    palette = seaborn.color_palette("colorblind", number) if number <= 8 else seaborn.color_palette("viridis", number)
    return cast("list[str]", palette.as_hex())


def severity(name: str) -> str:
    """The colour of findings of one severity; of a healthy run, and of several where nobody has looked, as well."""
    return colours(8)[{"healthy": 2, "info": 0, "warning": 1, "critical": 3, "runs": 0}[name]]


def muted(ax: Axes) -> Any:
    """The colour of what stands behind the data."""
    import matplotlib

    return matplotlib.rcParams["axes.labelcolor"]


def say(ax: Axes, text: str, line: Mapping[str, Any] | None = None) -> Axes:
    """Words in the place of data; where a curve with a name was wanted, others may be there: the legend tells of it."""
    if line and line.get("label"):
        ax.plot([], [], color=line.get("color"), label=f"{line['label']}: nothing to draw")
        legend(ax)
        return ax
    if not ax.lines and not ax.collections:
        ax.set(xticks=[], yticks=[])
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", wrap=True, color=muted(ax))
    return ax


def reference(ax: Axes, y: float, text: str = "") -> None:
    """A horizontal line to hold the data against, with its meaning at the right end."""
    if any(line.get_gid() == "reference" for line in ax.get_lines()):
        return  # several runs drawn over each other share it
    ax.axhline(y, color=muted(ax), linewidth=0.9, linestyle=(0, (4, 3)), zorder=1, gid="reference")
    if text:
        place: dict[str, Any] = {
            "xy": (1, y),
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
            "xytext": (-3, 3),
        }
        ax.annotate(text, **place, ha="right", va="bottom", fontsize="small", color=muted(ax))


def legend(ax: Axes, **options: Any) -> None:
    """A legend without a frame, if anything has a name."""
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False, fontsize="small", **options)


def logarithmic(axis: Axis, values: Array) -> None:
    """A base-10 logarithmic axis whose ticks are written out in plain text."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis._set_axes_scale("log")  # type: ignore[attr-defined]
    seen = np.log10(values[np.isfinite(values) & (values > 0)])
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 0.0)
    stride = max(1, int(np.ceil((high - low) / 6)))
    tens = np.arange(np.floor(low / stride) - 1, np.ceil(high / stride) + 2) * stride  # 1 is among them, if it is near
    fine = MaxNLocator(5) if high - low < 0.3 else LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=8)
    axis.set_major_locator(FixedLocator(list(10.0**tens)) if high - low > 1.5 else fine)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))


def whole(axis: Axis, values: Any = ()) -> None:
    """Ticks at whole numbers only; a single value stands alone, and its axis ends one before and one after it."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    points = np.unique(np.asarray(values, float))
    axis.set_major_locator(FixedLocator(list(points)) if len(points) == 1 else MaxNLocator("auto", integer=True))
    if len(points) == 1:
        _limit(axis, points[0] - 1, points[0] + 1)


def _limit(axis: Axis, low: float, high: float) -> None:
    """Bounds that another run, drawn into the same axes, may still widen."""
    (axis.axes.set_xlim if axis is axis.axes.xaxis else axis.axes.set_ylim)(low, high, auto=None)


def training(axis: Axis, steps: Any) -> None:
    """An axis of training steps; logarithmic where most records are of the beginning, as they are by default."""
    points = np.unique(np.asarray(steps, float))
    whole(axis, points)
    axis.set_label_text("training step")
    if len(points) > 8 and np.median(points) - points[0] < CROWDED * (points[-1] - points[0]):
        _logarithmic_steps(axis, points)


def _logarithmic_steps(axis: Axis, steps: Array) -> None:
    """Linear up to where the records become sparser, and logarithmic from there; so each takes the same room."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    gap, last = float(np.diff(steps).min()), float(steps[-1])
    dense = DENSE * gap
    axis._set_axes_scale("symlog", linthresh=dense, linscale=0.54)  # type: ignore[attr-defined]
    decades = range(int(np.log10(last)) + 1)
    ticks = [factor * 10**decade for decade in decades for factor in ((1, 3) if len(decades) < 5 else (1,))]
    axis.set_major_locator(FixedLocator([0, *(tick for tick in ticks if tick >= dense / 2)]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _limit(axis, steps[0] - gap, last + last / DENSE)


def power(value: float) -> str:
    """A number as it stands beside a logarithmic axis: 10⁻³, 0.02, 1, 50, 10⁴."""
    exponent = float(np.log10(value)) if value > 0 else 0.0
    if 0.001 < value < 1000:
        return f"{value:g}"
    if abs(exponent - round(exponent)) < 1e-9:
        return f"10{str(round(exponent)).translate(_RAISED)}"
    mantissa, _, tens = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}·10{str(int(tens)).translate(_RAISED)}"


def positive(values: Any) -> Array:
    """The values as an array, NaN where a logarithmic axis cannot show them."""
    array = np.asarray(values, float)
    return np.where(np.isfinite(array) & (array > 0), array, np.nan)


def drawable(*columns: Any) -> bool:
    """Whether anything is left to draw on a logarithmic axis."""
    return any(bool(np.isfinite(positive(column)).any()) for column in columns)


def mark_nonfinite(ax: Axes, places: Any) -> None:
    """Crosses along the upper edge, where values are not finite."""
    where = ax.get_xaxis_transform()
    look: dict[str, Any] = {"color": muted(ax), "label": "NaN or inf", "markersize": 5, "gid": "marks"}
    if len(places):
        ax.plot(places, np.full(len(places), 0.97), "x", transform=where, **look)


def mark_lonely(values: Array) -> str | None:
    """A marker for curves that have points without neighbours, which no line would show."""
    known = np.isfinite(values)
    beside = np.concatenate([[False], known[:-1]]) | np.concatenate([known[1:], [False]])
    return "." if bool((known & ~beside).any()) else None


def edges(centres: Sequence[float] | Array) -> Array:
    """The borders between cells around their centres."""
    points = np.asarray(centres, float)
    if len(points) == 1:
        return np.array([points[0] - 0.5, points[0] + 0.5])
    middle = (points[1:] + points[:-1]) / 2
    return np.concatenate([[2 * points[0] - middle[0]], middle, [2 * points[-1] - middle[-1]]])
