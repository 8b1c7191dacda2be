"""What torch does not do on every processor or in every version: each is tried once, and what needs it says so by name.

A test is marked with `needs("LSTM in bfloat16")`, and a block in the documentation with
`<!--- skip: next lacks("LSTM in bfloat16") -->`.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from gradscope.private import hooks_on_saved


def _lstm(kind: torch.dtype) -> None:
    """Under autocast the kernel is oneDNN's, which has it only for some instruction sets, and raises elsewhere."""
    with torch.autocast("cpu", kind):
        nn.LSTM(2, 2)(torch.ones(1, 1, 2))


def _sees_hooks() -> None:
    """Without it nothing is read that autograd has saved."""
    if hooks_on_saved(True) is not None:
        raise RuntimeError


TRIALS = {
    "LSTM in bfloat16": functools.partial(_lstm, torch.bfloat16),
    "sight of hooks on saved tensors": _sees_hooks,
}


@functools.cache
def lacks(what: str) -> str:
    """Why what needs this is skipped; empty where torch can do it."""
    try:
        TRIALS[what]()
    except RuntimeError:
        return f"this torch, on this processor, has no {what}"
    return ""


def needs(what: str) -> pytest.MarkDecorator:
    """Skip a test where torch cannot do this."""
    return pytest.mark.skipif(bool(lacks(what)), reason=lacks(what))
