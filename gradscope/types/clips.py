"""Which rows of `clips` are of calls that can clip."""

from __future__ import annotations

import math
from typing import Any


def limiting(clips: Any) -> Any:
    """Those rows of a frame of `clips` that are of calls which limit gradients.

    Gradients scaled by hand were not limited; a call whose threshold is infinite only measures their norm, as
    Transformers does at every step.
    """
    by_hand = (clips["kind"] == "modified") & (clips["how"] != "clamped")
    return clips[~by_hand & (clips["threshold"] != math.inf)]
