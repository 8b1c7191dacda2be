"""The names that `attach(quantities=...)` takes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from gradscope.errors import AttachError
from gradscope.families.work import CORE, ECONOMY, FULL
from gradscope.types import Rows

SETS = {"core": CORE, "economy": ECONOMY, "full": CORE + FULL}
FEWER = {"economy": 4}
"""The most sequences that these sets analyse; a quarter of the usual number changes a horizon by a tenth at most."""
TABLES = frozenset({"reach", "gates", "units", "weights", "spectra"})


def choose_quantities(quantities: str | Iterable[str]) -> frozenset[str]:
    """The quantities for the name of a set, or for a list of names.

    Raises:
        AttachError: a name is unknown.
    """
    if isinstance(quantities, str) and quantities in SETS:
        return frozenset(SETS[quantities])
    if not isinstance(quantities, Iterable):
        raise AttachError(f"quantities={quantities!r:.80}: expected 'core', 'economy', 'full', or a list of names.")
    names = [quantities] if isinstance(quantities, str) else list(quantities)
    for name in names:
        if name not in CORE + FULL:
            near = difflib.get_close_matches(str(name), CORE + FULL, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise AttachError(
                f"quantities: {name!r:.80} is unknown. Pass 'core', 'economy', 'full', or a list of "
                f"{', '.join(CORE + FULL)}.{hint}"
            )
    return frozenset(names)


def most_sequences(quantities: str | Iterable[str], limit: int | None) -> int | None:
    """The most sequences to analyse: `limit`, None for all, or fewer if the set has fewer."""
    fewer = FEWER.get(quantities) if isinstance(quantities, str) else None
    return limit if fewer is None else fewer if limit is None else min(limit, fewer)


def keep(rows: Rows, wanted: frozenset[str]) -> bool:
    """True if a block of rows is wanted; `layers`, `steps`, `clips` and `notes` always are."""
    if rows.table == "timesteps":
        return rows.columns["quantity"] in wanted
    return rows.table not in TABLES or rows.table in wanted
