"""Import this before gradscope: the clock is the processor's time, so that other work on the machine changes no figure.

By default gradscope records as often as a share of the training time pays. Measured by a clock on the wall, a training
beside others would be recorded a few times where one on a machine of its own is recorded thirty times.
"""

from __future__ import annotations

import time

time.perf_counter = time.process_time
