"""The contents of event files as TensorBoard's protocol buffers: curves, texts, scalars, and a layout."""

# pyright: reportAttributeAccessIssue=false
# Protocol buffers make their classes at run time.

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.plugins.custom_scalar import layout_pb2

from gradscope_integrations.tensorboard.names import PLUGIN, VERSION, compact, family_of

Value = Any
"""A `Summary.Value`."""


def curve_value(tag: str, values: np.ndarray[Any, np.dtype[np.float32]], *, first: bool) -> Value:
    """A curve, float32 [rows, positions]; the first of its tag names the rows."""
    shape = tensor_shape_pb2.TensorShapeProto(dim=[{"size": size} for size in values.shape])
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=shape, tensor_content=values.tobytes())
    family = family_of(tag)
    content = compact({"version": VERSION, "axis": family.axis, "rows": family.rows}) if first else b""
    return _value(tag, tensor, PLUGIN, summary_pb2.DATA_CLASS_TENSOR, content)


def text_value(tag: str, texts: Sequence[bytes], plugin: str = PLUGIN) -> Value:
    """A tensor of byte strings; a single one has no dimensions."""
    dims = [] if len(texts) == 1 else [{"size": len(texts)}]
    shape = tensor_shape_pb2.TensorShapeProto(dim=dims)
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=texts)
    content = compact({"version": VERSION}) if plugin == PLUGIN else b""
    return _value(tag, tensor, plugin, summary_pb2.DATA_CLASS_TENSOR, content)


def scalar_value(tag: str, number: float) -> Value:
    """A number for the stock dashboards."""
    shape = tensor_shape_pb2.TensorShapeProto()
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=shape, float_val=[number])
    return _value(tag, tensor, "scalars", summary_pb2.DATA_CLASS_SCALAR)


def layout_value(layout: Sequence[tuple[str, Sequence[Any]]]) -> Value:
    """The layout of the custom-scalars dashboard: categories of charts."""
    categories = [layout_pb2.Category(title=title, chart=charts) for title, charts in layout]
    data = layout_pb2.Layout(category=categories).SerializeToString()
    return text_value("custom_scalars__config__", [data], plugin="custom_scalars")


def margin_chart(title: str, low: str, middle: str, high: str) -> Any:
    """A chart of one curve with a margin, from three scalar tags."""
    series = layout_pb2.MarginChartContent.Series(value=middle, lower=low, upper=high)
    return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=[series]))


def line_chart(title: str, pattern: str) -> Any:
    """A chart of all scalar tags that a pattern matches."""
    return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[pattern]))


def _value(tag: str, tensor: Any, plugin: str, data_class: int, content: bytes = b"") -> Value:
    return summary_pb2.Summary.Value(tag=tag, tensor=tensor, metadata=_metadata(plugin, data_class, content))


@functools.cache
def _metadata(plugin: str, data_class: int, content: bytes) -> Any:
    data = summary_pb2.SummaryMetadata.PluginData(plugin_name=plugin, content=content)
    return summary_pb2.SummaryMetadata(plugin_data=data, data_class=data_class)
