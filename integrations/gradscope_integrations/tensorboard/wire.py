"""Binary answers: a JSON head, then arrays; `http_api.md` describes them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradscope_integrations.tensorboard.names import compact

Array = np.ndarray[Any, np.dtype[Any]]

MAGIC = b"GSC1"
_ALIGNED = 8


def pack(head: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """Encode one answer.

    Args:
        head: values for JSON.
        arrays: arrays of float32, float64 or int32.
    """
    parts: list[bytes] = []
    about: list[dict[str, Any]] = []
    offset = 0
    for name, array in arrays.items():
        data = _padded(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes(), b"\0")
        about.append({"name": name, "dtype": array.dtype.name, "shape": array.shape, "offset": offset})
        parts.append(data)
        offset += len(data)
    text = _padded(compact({**head, "arrays": about}), b" ")
    return b"".join((MAGIC, struct.pack("<I", len(text)), text, *parts))


def _padded(data: bytes, filler: bytes) -> bytes:
    return data + filler * (-len(data) % _ALIGNED)
