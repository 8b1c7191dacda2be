"""How the settings of runs differ, and which of them separate the runs that learn from those that do not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import comb
from typing import Any

from gradscope.record import RunData
from gradscope.report.words import told

Settings = Mapping[str, Any]
IN_NAME = re.compile(r"([A-Za-z_][\w.-]*)=([^,/\\]+)")
NAMES = {"class": "cell"}
OPTIMIZER = {"class": "optimizer"}
CHANCE = 0.1
"""A split that so large a share of all splits of the runs would be is worth a word of caution."""


def settings_of(run: RunData, name: str = "") -> dict[str, Any]:
    """What a run says of its layers and its optimizer, and what its name says as `lr=0.1`.

    Layers are told apart by their position, as modules of the same role often have other names in other runs.

    Args:
        run: any run.
        name: that of its folder.
    """
    found: dict[str, Any] = {key: _value(text) for key, text in IN_NAME.findall(name)}
    layers = run.meta.get("layers")
    for place, part in enumerate(layers.values() if isinstance(layers, Mapping) else ()):
        where = f" ({place})" if place else ""
        found |= {f"{NAMES.get(key, key)}{where}": value for key, value in _single(part)}
    stepped = run.meta.get("optimizers")
    for place, one in enumerate(stepped if isinstance(stepped, list) else ()):
        where = f" ({place})" if place else ""
        found |= {f"{OPTIMIZER.get(key, key)}{where}": value for key, value in _single(one)}
    return found


def _single(part: Any) -> Iterator[tuple[str, Any]]:
    """Numbers and words; `mode` says what `class` and `nonlinearity` do."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            if isinstance(value, str | int | float) and key != "mode":
                yield key, value


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def differing(settings: Mapping[str, Settings]) -> dict[str, dict[str, Any]]:
    """The settings that all runs have and that are not the same in all, with the value of each run."""
    names = dict.fromkeys(name for mine in settings.values() for name in mine)
    table = {
        name: {run: mine[name] for run, mine in settings.items()}
        for name in names
        if all(name in mine for mine in settings.values())
    }
    found: dict[str, dict[str, Any]] = {}
    for name, values in table.items():
        if len({repr(value) for value in values.values()}) > 1 and values not in found.values():
            found[name] = values  # of two that say the same, the first
    return found


def separating(differ: Mapping[str, Mapping[str, Any]], learn: Mapping[str, bool | None]) -> list[str]:
    """Sentences that say which settings the runs that learn have, and the others have not.

    Args:
        differ: what `differing` gives.
        learn: whether each run learns; None where that is not known.
    """
    good, bad = ([run for run, learns in learn.items() if learns is wanted] for wanted in (True, False))
    if not good or not bad:
        return []
    found = [_sentence(name, values, good, bad) for name, values in differ.items()]
    said = [sentence for sentence in found if sentence]
    if said and 2 / comb(len(good) + len(bad), len(good)) > CHANCE:
        said.append("With so few runs this may be chance.")
    return said


def _sentence(name: str, values: Mapping[str, Any], good: list[str], bad: list[str]) -> str:
    """What one setting is in both kinds of runs; empty where it does not separate them."""
    with_it, without = ([values[run] for run in runs] for runs in (good, bad))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in (*with_it, *without)):
        if max(with_it) < min(without):
            return _said(name, f"at most {told(max(with_it))}", f"at least {told(min(without))}", good, bad)
        if min(with_it) > max(without):
            return _said(name, f"at least {told(min(with_it))}", f"at most {told(max(without))}", good, bad)
    theirs, others = ({told(value) for value in some} for some in (with_it, without))
    alone = len(theirs) + len(others) == len(good) + len(bad) > 2  # each run has a value of its own
    if theirs & others or alone:
        return ""
    return _said(name, " or ".join(sorted(theirs)), " or ".join(sorted(others)), good, bad)


def _said(name: str, learning: str, failing: str, good: list[str], bad: list[str]) -> str:
    runs = "The run that learns has" if len(good) == 1 else f"The {len(good)} runs that learn have"
    rest = "the run that does not has" if len(bad) == 1 else f"the {len(bad)} that do not have"
    return f"{runs} {name} {learning}; {rest} {failing}."
