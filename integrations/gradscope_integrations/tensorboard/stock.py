"""A layout of the scalars for TensorBoard's own dashboards."""

from __future__ import annotations

from collections.abc import Sequence

from gradscope_integrations.scalars import margin_tags
from gradscope_integrations.tensorboard import summaries

LOSS = "gradscope/loss"
"""TensorBoard sorts a slash before a full stop, and so the loss before our other scalars, `gradscope.clip_rate`, ..."""
MARGINS = {
    "grad_h": "log10 of the gradient of h, median over time",
    "jacobian": "size of the Jacobian, median over time",
}


def layout(layers: Sequence[str]) -> summaries.Value:
    """One category of lines, the loss first, and one of margin charts per quantity."""
    margins = [
        (f"gradscope: {title}", [summaries.margin_chart(layer, *margin_tags(quantity, layer)) for layer in layers])
        for quantity, title in MARGINS.items()
    ]
    lines = [
        summaries.line_chart("loss", LOSS),
        summaries.line_chart("horizon in steps", r"gradscope\.horizon/.*"),
        summaries.line_chart("decay in decades per step", r"gradscope\.decay/.*"),
        summaries.line_chart("saturated share of every gate", r"gradscope\.saturation/.*"),
        summaries.line_chart("share of recent steps clipped", r"gradscope\.clip_rate"),
        summaries.line_chart("gradient norm", r"gradscope\.grad_norm"),
    ]
    return summaries.layout_value([("gradscope: over training", lines), *margins])
