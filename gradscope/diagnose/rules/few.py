"""Too little was recorded for a verdict."""

from __future__ import annotations

from gradscope.diagnose import loops
from gradscope.diagnose.frames import Seen
from gradscope.diagnose.progress import learning
from gradscope.diagnose.trend import ENOUGH
from gradscope.diagnose.words import plural
from gradscope.types import Finding


def too_few_records(seen: Seen) -> list[Finding]:
    """That fewer than three steps were recorded, so that no course of anything can be seen."""
    records, steps = len(seen.records), len(seen["steps"])
    if records >= ENOUGH:
        return []
    reasons = list(dict.fromkeys(str(reason) for reason in seen["notes"]["reason"]))[:3] if not records else []
    notes = f" The notes say: {'; '.join(reasons)}." if reasons else ""
    are = "record is" if records == 1 else "records are"
    longer = " Train for more steps." if steps < ENOUGH else ""
    return [
        Finding(
            code="too_few_records",
            severity="info",
            layer_key=None,
            title=f"{records} {are} no basis for a verdict" if records else "nothing was recorded",
            explanation=(
                f"Of {plural(steps, 'step')} {records or 'none'} {'was' if records < 2 else 'were'} recorded. What is "
                f"said of a course of things rests on {ENOUGH} records or more, so nothing is said.{notes}{longer} "
                f"{learning(seen).sentence}"
            ),
            evidence={"records": records, "of": steps, **learning(seen).evidence},
            remedies=(loops.record_more(),),
        )
    ]
