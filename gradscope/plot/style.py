"""Style of the figures: palette, logarithmic axes, reference lines, and messages in place of missing data."""

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
"""Records are crowded if half of them are in this first part of the steps."""
DENSE = 16
"""By default, records become sparser after so many steps."""
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def axes(ax: Axes | None, title: str = "") -> Axes:
    """Return the argument, or the current axes, as in seaborn, with a title."""
    if ax is None:
        with from_extra("report"):
            import matplotlib.pyplot as plt

        ax = plt.gca()
    ax.set_title(title, loc="left")
    return ax


def colours(number: int) -> list[str]:
    """Return colours that are distinct for the colour-blind as well; neighbours of many differ in lightness."""
    with from_extra("report"):
        import seaborn

    palette = seaborn.color_palette("colorblind", number) if number <= 8 else seaborn.color_palette("viridis", number)
    return cast("list[str]", palette.as_hex())


def severity(name: str) -> str:
    """Return the colour of a severity, of healthy runs, or of runs without a diagnosis."""
    return colours(8)[{"healthy": 2, "info": 0, "warning": 1, "critical": 3, "runs": 0}[name]]


def muted() -> Any:
    """Return the colour of lines and texts behind the data."""
    import matplotlib

    return matplotlib.rcParams["axes.labelcolor"]


def message(ax: Axes, text: str, line: Mapping[str, Any] | None = None) -> Axes:
    """Write a message in place of data; a missing curve with a label appears in the legend, as others may be there."""
    if line and line.get("label"):
        ax.plot([], [], color=line.get("color"), label=f"{line['label']}: nothing to draw")
        legend(ax)
        return ax
    if not ax.lines and not ax.collections:
        ax.set(xticks=[], yticks=[])
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", wrap=True, color=muted())
    return ax


def reference(ax: Axes, y: float, text: str = "") -> None:
    """Draw a horizontal reference line, with its meaning at the right end."""
    if any(line.get_gid() == "reference" for line in ax.get_lines()):
        return  # overlaid runs share it
    ax.axhline(y, color=muted(), linewidth=0.9, linestyle=(0, (4, 3)), zorder=1, gid="reference")
    if text:
        place: dict[str, Any] = {
            "xy": (1, y),
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
            "xytext": (-3, 3),
        }
        ax.annotate(text, **place, ha="right", va="bottom", fontsize="small", color=muted())


def legend(ax: Axes, **options: Any) -> None:
    """Draw a legend without a frame, if anything has a name."""
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False, fontsize="small", **options)


def logarithmic(axis: Axis, values: Array) -> None:
    """Set a base-10 logarithmic axis with ticks in plain text."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis._set_axes_scale("log")  # type: ignore[attr-defined]
    logs = np.log10(values[np.isfinite(values) & (values > 0)])
    low, high = (float(logs.min()), float(logs.max())) if len(logs) else (0.0, 0.0)
    stride = max(1, int(np.ceil((high - low) / 6)))
    tens = np.arange(np.floor(low / stride) - 1, np.ceil(high / stride) + 2) * stride  # 1 is a tick, if it is near
    fine = MaxNLocator(5) if high - low < 0.3 else LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=8)
    axis.set_major_locator(FixedLocator(list(10.0**tens)) if high - low > 1.5 else fine)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))


def whole(axis: Axis, values: Any = ()) -> None:
    """Set ticks at whole numbers only; the axis of a single value extends by one to either side."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    points = np.unique(np.asarray(values, float))
    axis.set_major_locator(FixedLocator(list(points)) if len(points) == 1 else MaxNLocator("auto", integer=True))
    if len(points) == 1:
        _limit(axis, points[0] - 1, points[0] + 1)


def _limit(axis: Axis, low: float, high: float) -> None:
    """Set limits that another run in the same axes may still widen."""
    (axis.axes.set_xlim if axis is axis.axes.xaxis else axis.axes.set_ylim)(low, high, auto=None)


def training(axis: Axis, steps: Any) -> None:
    """Set an axis of training steps; logarithmic if most records are early, as by default."""
    points = np.unique(np.asarray(steps, float))
    whole(axis, points)
    axis.set_label_text("training step")
    if len(points) > 8 and np.median(points) - points[0] < CROWDED * (points[-1] - points[0]):
        _logarithmic_steps(axis, points)


def _logarithmic_steps(axis: Axis, steps: Array) -> None:
    """Set an axis that is linear until records become sparser, then logarithmic, so that records are evenly spaced."""
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
    """Write a number for a logarithmic axis: 10⁻³, 0.02, 1, 50, 10⁴."""
    exponent = float(np.log10(value)) if value > 0 else 0.0
    if 0.001 < value < 1000:
        return f"{value:g}"
    if abs(exponent - round(exponent)) < 1e-9:
        return f"10{str(round(exponent)).translate(_RAISED)}"
    mantissa, _, tens = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}·10{str(int(tens)).translate(_RAISED)}"


def positive(values: Any) -> Array:
    """Return the values as an array, with NaN for values that a logarithmic axis cannot show."""
    array = np.asarray(values, float)
    return np.where(np.isfinite(array) & (array > 0), array, np.nan)


def drawable(*columns: Any) -> bool:
    """True if a logarithmic axis can show any value."""
    return any(bool(np.isfinite(positive(column)).any()) for column in columns)


def mark_nonfinite(ax: Axes, places: Any) -> None:
    """Draw crosses at the upper edge for non-finite values."""
    where = ax.get_xaxis_transform()
    look: dict[str, Any] = {"color": muted(), "label": "NaN or inf", "markersize": 5, "gid": "marks"}
    if len(places):
        ax.plot(places, np.full(len(places), 0.97), "x", transform=where, **look)


def mark_lonely(values: Array) -> str | None:
    """Return a marker for curves with points without neighbours, which a line does not show."""
    known = np.isfinite(values)
    beside = np.concatenate([[False], known[:-1]]) | np.concatenate([known[1:], [False]])
    return "." if bool((known & ~beside).any()) else None


def edges(centres: Sequence[float] | Array) -> Array:
    """Return the borders of cells around their centres."""
    points = np.asarray(centres, float)
    if len(points) == 1:
        return np.array([points[0] - 0.5, points[0] + 0.5])
    middle = (points[1:] + points[:-1]) / 2
    return np.concatenate([[2 * points[0] - middle[0]], middle, [2 * points[-1] - middle[-1]]])
