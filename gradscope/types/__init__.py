"""Plain values that travel between the rooms: they contain data, and import no other room.

attach -> capture: `torch.Tensor` arguments of one kernel call
capture -> families: `Stack`, one call in canonical layout
families -> record: `Analysis`, one layer in one direction; `Origin`, its first non-finite value
record -> show: `Batch`, the rows of one optimizer step
diagnose -> show: `Finding`
"""

from gradscope.types.calls import (
    Direction,
    Joined,
    KernelCall,
    LayerKey,
    Link,
    LinkPart,
    Saved,
    Stack,
    Weights,
    in_short,
    in_words,
)
from gradscope.types.cells import CellSpec, GateKind, Positions, Recurrence, WholeCall
from gradscope.types.findings import SEVERITIES, Finding, Remedy, Severity
from gradscope.types.origin import Origin
from gradscope.types.results import HORIZON_SHARE, LATE, Analysis, Batch, Block, Gate, Rows

__all__ = [
    "HORIZON_SHARE",
    "LATE",
    "SEVERITIES",
    "Analysis",
    "Batch",
    "Block",
    "CellSpec",
    "Direction",
    "Finding",
    "Gate",
    "GateKind",
    "Joined",
    "Saved",
    "KernelCall",
    "LayerKey",
    "Link",
    "Origin",
    "Positions",
    "Recurrence",
    "Remedy",
    "Rows",
    "Severity",
    "Stack",
    "LinkPart",
    "Weights",
    "WholeCall",
    "in_short",
    "in_words",
]
