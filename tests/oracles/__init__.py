"""The standard of truth: one fused call unrolled in float64 as a plain loop, with everything taken by autograd.

Shares no code with gradscope, and prefers slow and obvious to fast. Every sequence runs alone, one vector per
timestep, so that padding does not exist; every h_t and c_t is a tensor of its own that retains its gradient; every
Jacobian is formed. `examine` gives the truth as tensors, `frames` turns it into the tables of the contract, and
`assert_agrees` holds a run to them.
"""

from oracles.holding import EXACT, ROWS, assert_agrees, assert_rows
from oracles.sequences import (
    BLOCKS,
    CORE,
    FLOOR,
    FULL,
    KEY,
    LSTM_ONLY,
    STATISTICS,
    Call,
    Cell,
    Layer,
    Loss,
    Step,
    Track,
    Truth,
    choose_anchors,
    choose_sequences,
    joined,
)
from oracles.tables import decay, frames, reach_rows, saturated, spectrum_rows, statistics, weight_rows
from oracles.unrolling import Layout, dropout_masks, examine

__all__ = [
    "BLOCKS",
    "CORE",
    "Call",
    "Cell",
    "EXACT",
    "FLOOR",
    "FULL",
    "KEY",
    "LSTM_ONLY",
    "Layer",
    "Layout",
    "Loss",
    "ROWS",
    "STATISTICS",
    "Step",
    "Track",
    "Truth",
    "assert_agrees",
    "assert_rows",
    "choose_anchors",
    "choose_sequences",
    "decay",
    "dropout_masks",
    "examine",
    "frames",
    "joined",
    "reach_rows",
    "saturated",
    "spectrum_rows",
    "statistics",
    "weight_rows",
]
