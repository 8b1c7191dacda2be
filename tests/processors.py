"""What torch does not do on every processor: each is tried once, and what needs it says so by name.

A test is marked with `needs("LSTM in bfloat16")`, and a block in the documentation with
`<!--- skip: next lacks("LSTM in bfloat16") -->`.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn


def _lstm(kind: torch.dtype) -> None:
    """Under autocast the kernel is oneDNN's, which has it only for some instruction sets, and raises elsewhere."""
    with torch.autocast("cpu", kind):
        nn.LSTM(2, 2)(torch.ones(1, 1, 2))


TRIALS = {"LSTM in bfloat16": functools.partial(_lstm, torch.bfloat16)}


@functools.cache
def lacks(what: str) -> str:
    """Why what needs this is skipped; empty where torch can do it."""
    try:
        TRIALS[what]()
    except RuntimeError:
        return f"torch has no {what} for this processor"
    return ""


def needs(what: str) -> pytest.MarkDecorator:
    """Skip a test where torch cannot do this."""
    return pytest.mark.skipif(bool(lacks(what)), reason=lacks(what))
