"""The names that `attach(quantities=...)` takes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from gradscope.errors import AttachError
from gradscope.types import Rows

CORE = (
    "grad_h",
    "grad_h_direct",
    "grad_c",
    "weight_grad",
    "jacobian",
    "jacobian_h",
    "jacobian_c",
    "state",
    "cell",
    "reach",
    "gates",
    "units",
    "weights",
)
FULL = ("jacobian_max", "gain", "lyapunov", "spectra")
TABLES = frozenset({"reach", "gates", "units", "weights", "spectra"})


def choose_quantities(quantities: str | Iterable[str]) -> frozenset[str]:
    """The quantities meant by `"core"`, `"full"` or a list of names.

    Raises:
        AttachError: a name is unknown.
    """
    if quantities == "core":
        return frozenset(CORE)
    if quantities == "full":
        return frozenset(CORE + FULL)
    if not isinstance(quantities, Iterable):
        raise AttachError(f"quantities={quantities!r:.80}: expected 'core', 'full', or a list of names.")
    names = [quantities] if isinstance(quantities, str) else list(quantities)
    for name in names:
        if name not in CORE + FULL:
            near = difflib.get_close_matches(str(name), CORE + FULL, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise AttachError(
                f"quantities: {name!r:.80} is unknown. Pass 'core', 'full', or a list of {', '.join(CORE + FULL)}."
                f"{hint}"
            )
    return frozenset(names)


def needs_full(wanted: frozenset[str]) -> bool:
    """Whether any of them goes beyond the core set."""
    return not wanted.isdisjoint(FULL)


def keep(rows: Rows, wanted: frozenset[str]) -> bool:
    """Whether a block of rows was asked for; `layers`, `steps`, `clips` and `notes` always are."""
    if rows.table == "timesteps":
        return rows.columns["quantity"] in wanted
    return rows.table not in TABLES or rows.table in wanted
