"""The least that each part of a recorded step has to do, and how fast this machine could do it.

Least means: every multiplication once, every operand read and every result written once, in float32. Where a part needs
both, what takes longer at the machine's own peak bounds it. The peaks are measured here: a square matrix product, and
an addition of vectors that no cache holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from costs.rounds import now, without_gc
from costs.workloads import ANALYSED, GATES, Workload

FLOAT = 4
ANCHORS = 3
SQUARE_PRODUCTS = 8  # of H by H matrices, for each gate: seven squarings, and U^T U


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations, and bytes to and from memory."""

    operations: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Peaks:
    """Operations and bytes per second."""

    operations: float
    bytes: float

    def bound(self, work: Work) -> tuple[float, str]:
        """Seconds that the work takes at least, and what bounds it."""
        by_operations, by_bytes = work.operations / self.operations, work.bytes / self.bytes
        return max(by_operations, by_bytes), "operations" if by_operations > by_bytes else "bytes"


def measure_peaks(size: int = 1024, elements: int = 1 << 24, repeats: int = 10, device: str = "cpu") -> Peaks:
    """The best of a few tries."""
    a, b = (torch.rand(size, size, device=device) for _ in range(2))
    x, y, z = (torch.rand(elements, device=device) for _ in range(3))
    product = torch.empty_like(a)
    return Peaks(
        operations=2 * size**3 / least_time(lambda: torch.mm(a, b, out=product), repeats),
        bytes=3 * FLOAT * elements / least_time(lambda: torch.add(x, y, out=z), repeats),
    )


def least_time(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some calls."""
    call()
    taken: list[float] = []
    with without_gc():
        for _ in range(repeats):
            began = now()
            call()
            taken.append(now() - began)
    return min(taken)


def least_work(workload: Workload, loss: str) -> dict[str, Work]:
    """Part -> what it has to do at least in one recorded step, for layers of the width of the first.

    An LSTM's gates are what the kernel kept of them; the others' are computed again.
    """
    w, gates, lstm = workload, GATES[workload.family], workload.family == "lstm"
    count = w.T * min(ANALYSED, w.B) * w.recurrences
    units = count * w.H * FLOAT  # bytes of one number for every unit, timestep and analysed sequence
    carried = 1 if loss == "last" and w.layers == 1 else 1 + ANCHORS
    states = 1 + lstm
    factors = {"lstm": 6, "gru": 5, "rnn": 1}[w.family]
    scanned = units * (carried * (gates + 2 * states) + factors)
    replay = Work(2.0 * count * gates * w.H * (w.D + w.H), units * (gates + 1))
    kept = Work(bytes=2.0 * units * (gates + (w.layers > 1)))
    return {
        **({"what the kernel kept": kept} if lstm else {"replay GEMM": replay}),
        "reverse scan": Work(2.0 * carried * count * gates * w.H * w.H, scanned),
        "cell scan": Work(bytes=4.0 * units * lstm),
        "factors": Work(bytes=units * (gates + lstm + factors)),
        "sizes": Work(bytes=units * factors),
        "norms": Work(bytes=units * (2 + gates + 2 * lstm + carried * states)),
        "saturation": Work(bytes=units * (gates + (w.family != "rnn"))),
        "weights spectra": Work(2.0 * SQUARE_PRODUCTS * gates * w.recurrences * w.H**3),
        "capture copies": Work(bytes=2 * (units * 2 + count * w.D * FLOAT)),
    }
