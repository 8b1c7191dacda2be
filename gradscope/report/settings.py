"""Differences between the settings of runs, and settings that separate runs that learn from the others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import comb
from typing import Any

from gradscope.record import RunData
from gradscope.report.words import as_text

Settings = Mapping[str, Any]
IN_NAME = re.compile(r"([A-Za-z_][\w.-]*)=([^,/\\]+)")
NAMES = {"class": "cell"}
OPTIMIZER = {"class": "optimizer"}
CHANCE = 0.1
"""A split that arises by chance with a larger probability gets a word of caution."""


def settings_of(run: RunData, name: str = "") -> dict[str, Any]:
    """Collect the settings of a run's layers and optimizer, and settings in its name such as `lr=0.1`.

    The position identifies a layer, as modules of the same role often have other names in other runs.

    Args:
        run: any run.
        name: name of its folder.
    """
    settings: dict[str, Any] = {key: _value(text) for key, text in IN_NAME.findall(name)}
    layers = run.meta.get("layers")
    for place, part in enumerate(layers.values() if isinstance(layers, Mapping) else ()):
        where = f" ({place})" if place else ""
        settings |= {f"{NAMES.get(key, key)}{where}": value for key, value in _single(part)}
    optimizers = run.meta.get("optimizers")
    for place, optimizer in enumerate(optimizers if isinstance(optimizers, list) else ()):
        where = f" ({place})" if place else ""
        settings |= {f"{OPTIMIZER.get(key, key)}{where}": value for key, value in _single(optimizer)}
    return settings


def _single(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield numbers and texts; without `mode`, which repeats `class` and `nonlinearity`."""
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
    """Return the settings that all runs have and that differ between them, with the value of each run."""
    names = dict.fromkeys(name for own in settings.values() for name in own)
    table = {
        name: {run: own[name] for run, own in settings.items()}
        for name in names
        if all(name in own for own in settings.values())
    }
    unique: dict[str, dict[str, Any]] = {}
    for name, values in table.items():
        if len({repr(value) for value in values.values()}) > 1 and values not in unique.values():
            unique[name] = values  # settings with equal values appear once
    return unique


def separating(differ: Mapping[str, Mapping[str, Any]], learn: Mapping[str, bool | None]) -> list[str]:
    """Write a sentence on each setting that separates runs that learn from the others.

    Args:
        differ: the result of `differing`.
        learn: whether each run learns; None if unknown.
    """
    good, bad = ([run for run, learns in learn.items() if learns is wanted] for wanted in (True, False))
    if not good or not bad:
        return []
    sentences = [_sentence(name, values, good, bad) for name, values in differ.items()]
    sentences = [sentence for sentence in sentences if sentence]
    if sentences and 2 / comb(len(good) + len(bad), len(good)) > CHANCE:
        sentences.append("With so few runs this may be chance.")
    return sentences


def _sentence(name: str, values: Mapping[str, Any], good: list[str], bad: list[str]) -> str:
    """Compare one setting of both kinds of runs; empty if it does not separate them."""
    with_it, without = ([values[run] for run in runs] for runs in (good, bad))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in (*with_it, *without)):
        if max(with_it) < min(without):
            return _compare(name, f"at most {as_text(max(with_it))}", f"at least {as_text(min(without))}", good, bad)
        if min(with_it) > max(without):
            return _compare(name, f"at least {as_text(min(with_it))}", f"at most {as_text(max(without))}", good, bad)
    theirs, others = ({as_text(value) for value in some} for some in (with_it, without))
    alone = len(theirs) + len(others) == len(good) + len(bad) > 2  # each run has a value of its own
    if theirs & others or alone:
        return ""
    return _compare(name, " or ".join(sorted(theirs)), " or ".join(sorted(others)), good, bad)


def _compare(name: str, learning: str, failing: str, good: list[str], bad: list[str]) -> str:
    runs = "The run that learns has" if len(good) == 1 else f"The {len(good)} runs that learn have"
    rest = "the run that does not has" if len(bad) == 1 else f"the {len(bad)} that do not have"
    return f"{runs} {name} {learning}; {rest} {failing}."
