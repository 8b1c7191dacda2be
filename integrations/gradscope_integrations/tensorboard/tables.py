"""Rows of `clips`, `steps` and the one-line tables of a layer, many to a record; every record names its columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope_integrations.tensorboard.curves import key_of
from gradscope_integrations.tensorboard.names import CHAINS, compact

if TYPE_CHECKING:
    from gradscope import Rows

Array = np.ndarray[Any, np.dtype[Any]]
Row = Sequence[float | str]

_STEPS = ("step", "optimizer", "loss", "grad_norm", "nonfinite", "recorded", "skipped", "overhead_s", "step_s")
_CLIPS = ("step", "index", "kind", "how", "threshold", "norm_type", "parameters", "norm_before", "norm_after",
          "coefficient", "clipped", "nonfinite")  # fmt: skip
_LAYERS = ("step", "key", "horizon", "horizon_censored", "decay", "lyapunov", "residual", "timesteps")
_WEIGHTS = ("spectral_radius", "spectral_norm", "orthogonality", "update")
_BLOCKS = ("step", "key", "gate", *_WEIGHTS, "low", "high")
COLUMNS: Mapping[str, tuple[str, ...]] = {"layers": _LAYERS, "blocks": _BLOCKS, "clips": _CLIPS, "steps": _STEPS}
TEXTS = frozenset({"optimizer", "kind", "how", "key", "gate"})
_EVERY_STEP = {table: itemgetter(*COLUMNS[table][1:]) for table in ("clips", "steps")}


def every_step(step: int, rows: Iterable[Rows]) -> Iterable[tuple[str, Row]]:
    """The rows of `clips` and `steps` of one optimizer step, by table."""
    for block in rows:
        if block.table in _EVERY_STEP:
            yield block.table, (step, *_EVERY_STEP[block.table](block.columns))


def recorded_step(step: int, rows: Iterable[Rows]) -> Iterable[tuple[str, Row]]:
    """The rows of `layers` and `blocks`, by table."""
    blocks: dict[tuple[str, str], dict[str, float]] = {}
    for block in rows:
        columns = block.columns
        if block.table not in ("layers", "weights", "units") or columns["chain"] >= CHAINS:
            continue
        key = str(key_of(columns))
        if block.table == "layers":
            yield "layers", [step, key, *(columns[name] for name in _LAYERS[2:])]
        else:
            blocks.setdefault((key, columns["gate"]), {}).update(_part(block))
    for (key, gate), numbers in blocks.items():
        yield "blocks", [step, key, gate, *(numbers.get(name, np.nan) for name in _BLOCKS[3:])]


def _part(block: Rows) -> dict[str, float]:
    if block.table == "weights":
        return {name: block.columns[name] for name in _WEIGHTS}
    return {name: float(np.mean(block.columns[name])) for name in ("low", "high")}


def encode(table: str, rows: Sequence[Row]) -> list[bytes]:
    """Encode rows as a record: a JSON head, then the columns one after the other, float64; text columns hold codes."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    texts: dict[str, list[str]] = {}
    for place, name in enumerate(COLUMNS[table]):
        if name in TEXTS:
            codes = {text: code for code, text in enumerate(dict.fromkeys(columns[place]))}
            texts[name] = list(codes)
            columns[place] = [codes[text] for text in columns[place]]
    numbers = np.array(columns, np.float64)
    return [compact({"columns": COLUMNS[table], "texts": texts}), numbers.tobytes()]


def decode(table: str, records: Iterable[Sequence[bytes]]) -> tuple[dict[str, Array], dict[str, list[str]]]:
    """Decode the columns of a table from its records in the order of writing, and the texts of codes.

    If a later record has a step again, or an earlier step, the later record counts: training began again there.
    """
    wanted, texts = COLUMNS[table], {name: [] for name in COLUMNS[table] if name in TEXTS}
    parts: list[Array] = []
    for head, payload in records:
        about = json.loads(head)
        numbers = np.frombuffer(payload, "<f8").reshape(len(about["columns"]), -1)
        by_name = dict(zip(about["columns"], numbers, strict=True))
        part = np.stack([by_name.get(name, np.full(numbers.shape[1], np.nan)) for name in wanted])
        for name, known in texts.items():
            place = wanted.index(name)
            part[place] = _merged(known, about["texts"].get(name, [""]))[np.nan_to_num(part[place]).astype(int)]
        parts.append(part)
    whole = np.concatenate(_restarted(parts), axis=1) if parts else np.empty((len(wanted), 0))
    return dict(zip(wanted, whole, strict=True)), texts


def _merged(known: list[str], texts: Sequence[str]) -> Array:
    """The places of texts in a growing list."""
    known.extend(text for text in texts if text not in known)
    return np.array([known.index(text) for text in texts], np.float64)


def _restarted(parts: Sequence[Array]) -> list[Array]:
    """Drop rows at or after the first step of any later part."""
    rest: list[Array] = []
    first = np.inf
    for part in reversed(parts):
        rest.append(part[:, part[0] < first])
        first = min(first, part[0].min(initial=np.inf))
    return rest[::-1]
