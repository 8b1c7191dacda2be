"""What if: each remedy on a copy of the model, and how far its gradients would reach on one batch.

The model itself, its gradients, its buffers and the random streams stay as they are, and nothing is recorded of the
copies.
"""

from gradscope.whatif.frames import UNCHANGED, WhatIf
from gradscope.whatif.trials import what_if

__all__ = ["UNCHANGED", "WhatIf", "what_if"]
