"""What if: each remedy on a copy of the model, and the reach of its gradients on one batch.

The model itself, its gradients, its buffers and the random streams stay unchanged, and no run records the copies.
"""

from gradscope.whatif.frames import UNCHANGED, WhatIf
from gradscope.whatif.trials import what_if

__all__ = ["UNCHANGED", "WhatIf", "what_if"]
