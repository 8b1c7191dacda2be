"""The processor's time as the clock of a training, so that other work on the machine changes no figure.

By default gradscope records as often as a share of the training time pays. Measured by a clock on the wall, a training
beside others would be recorded a few times where one on a machine of its own is recorded thirty times.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def processor_time() -> Iterator[None]:
    """Let everybody who asks `time.perf_counter` see the processor's time."""
    original, time.perf_counter = time.perf_counter, time.process_time
    try:
        yield
    finally:
        time.perf_counter = original
