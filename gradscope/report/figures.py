"""Pictures as SVG within a page: text and lines take the page's colours, light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from gradscope.errors import from_extra

INK, GRID = "#010203", "#040506"
"""Placeholder colours in matplotlib for the colours of the page."""
WIDTH, HEIGHT = 4.9, 3.1
ACROSS = 10.6, 3.4
"""Size of a picture across the page."""
_LOOK = {
    **{name: INK for name in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor")},
    **{"axes.edgecolor": GRID, "grid.color": GRID, "figure.facecolor": "none", "axes.facecolor": "none"},
    **{"savefig.facecolor": "none", "legend.facecolor": "none", "patch.edgecolor": "none"},
    **{"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8, "axes.grid": True, "grid.linewidth": 0.6},
    **{"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "svg.fonttype": "none"},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "text.parse_math": False},
    **{"xtick.major.size": 0, "ytick.major.size": 0, "axes.linewidth": 0.8, "lines.solid_capstyle": "round"},
}


@contextmanager
def look(salt: str) -> Generator[None]:
    """Set matplotlib up for reports; `salt` makes the names inside one picture distinct from other pictures'."""
    import matplotlib

    plain = {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
    settings: dict[Any, Any] = {**plain, **_LOOK, "svg.hashsalt": salt}
    with matplotlib.rc_context(settings):
        yield


def svg(name: str, title: str, draw: Callable[[Any], object], across: bool = False) -> str:
    """Draw one picture, as an `<svg>` element without a name space, a size, or anything to fetch.

    Args:
        name: an identifier, unique in its page.
        title: name for screen readers.
        draw: draws the picture into axes.
        across: whether the picture goes across the page.
    """
    with from_extra("report"):
        from markupsafe import escape
        from matplotlib.figure import Figure

    with look(name):
        figure = Figure(figsize=ACROSS if across else (WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title("", loc="left")  # the page has the title
        _legend_above(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _within_a_page(file.getvalue(), str(escape(title)))


def _legend_above(axes: Any) -> None:
    """Move the legend above the axes, where it covers nothing."""
    if axes.get_legend() is None:
        return
    handles, names = axes.get_legend_handles_labels()
    columns = 5 if sum(map(len, names)) < 40 else 4 if max(map(len, names)) < 18 else 2
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.1, "columnspacing": 1.0}
    axes.legend(
        handles, names, frameon=False, ncols=min(columns, len(names)), handlelength=1.4, handletextpad=0.5, **place
    )


def _within_a_page(text: str, title: str) -> str:
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.S)
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.S)
    head, _, rest = body.partition(">")
    box = re.search(r'viewBox="([^"]*)"', head)
    rest = re.sub(r'<g id="[^"]*"', "<g", rest).replace("xlink:href", "href").replace("<defs></defs>", "")
    rest = re.sub(r"<!--.*?-->\s*", "", rest, flags=re.S)
    rest = rest.replace("'DejaVu Sans'", "var(--sans)").replace(INK, "currentColor").replace(GRID, "var(--line)")
    for index, colour in enumerate(palette()):
        rest = rest.replace(colour, f"var(--c{index}, {colour})")
    return f'<svg role="img" aria-label="{title}" viewBox="{box[1] if box else "0 0 353 223"}">{rest}'


def palette() -> list[str]:
    """Return the colours of curves, which the page may replace by lighter ones in dark mode."""
    from gradscope.plot.style import colours

    return colours(8)
