"""Too few records for a verdict."""

from __future__ import annotations

from gradscope.diagnose import loops
from gradscope.diagnose.frames import Tables
from gradscope.diagnose.progress import learning
from gradscope.diagnose.trend import ENOUGH
from gradscope.diagnose.words import plural
from gradscope.types import Finding


def too_few_records(tables: Tables) -> list[Finding]:
    """Report runs with fewer than three records, which show no trend."""
    records, steps = len(tables.records), len(tables["steps"])
    if records >= ENOUGH:
        return []
    reasons = list(dict.fromkeys(str(reason) for reason in tables["notes"]["reason"]))[:3] if not records else []
    notes = f" The notes say: {'; '.join(reasons)}." if reasons else ""
    do = "record does" if records == 1 else "records do"
    longer = " Train for more steps." if steps < ENOUGH else ""
    return [
        Finding(
            code="too_few_records",
            severity="info",
            layer_key=None,
            title=f"{records} {do} not allow a verdict" if records else "no step is recorded",
            explanation=(
                f"gradscope has recorded {records or 'none'} of {plural(steps, 'step')}. Findings about a trend need "
                f"{ENOUGH} records or more.{notes}{longer} {learning(tables).sentence}"
            ),
            evidence={"records": records, "of": steps, **learning(tables).evidence},
            remedies=(loops.RECORD_MORE,),
        )
    ]
