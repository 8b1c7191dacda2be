"""Several runs as one plain dictionary: numbers side by side, and overlaid curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gradscope.plot as plot
from gradscope.plot import data
from gradscope.plot.style import colours
from gradscope.record import RunData
from gradscope.report import pictures, words
from gradscope.report.layers import cells, numbers
from gradscope.report.pictures import Picture
from gradscope.report.summary import PICTURED, WHOLE_RUN, Figures, drawable, facts, finding_data, picture_data, settings
from gradscope.types import SEVERITIES, Finding, LayerKey, in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Frame = Any
Runs = Mapping[str, RunData]


OF_ONE = {picture.name: picture for picture in (*pictures.LAYER, *pictures.CLIPPING)}
LOSS = Picture(
    "loss",
    "Running median of the loss",
    lambda run, _: data.losses(run),
    words.loss,
    lambda run, _, ax, **line: plot.loss(run, ax=ax, **line),
    data.binned_losses,
)
LAYER = (
    replace(OF_ONE["timesteps"], draw=lambda run, key, ax, **line: plot.timesteps(run, layer=key, ax=ax, **line)),
    replace(OF_ONE["reach"], draw=lambda run, key, ax, **line: plot.reach(run, layer=key, ax=ax, **line)),
    OF_ONE["horizon"],
    Picture(
        "jacobian",
        "State Jacobian by timestep",
        lambda run, key: data.spread(run, key, "jacobian"),
        lambda frame: words.ends(frame, "t", "size of the state Jacobian"),
        lambda run, key, ax, **line: plot.timesteps(run, "jacobian", layer=key, ax=ax, **line),
    ),
)
THRESHOLDS = replace(OF_ONE["thresholds"], title="What thresholds would have clipped")


@dataclass(frozen=True, slots=True)
class Place:
    """The runs, the layer and the `id` of pictures. A run has one colour everywhere."""

    runs: Runs
    tints: Mapping[str, str]
    key: LayerKey
    owner: str


def summarise_runs(runs: Runs, findings: Mapping[str, Sequence[Finding]]) -> tuple[dict[str, Any], Figures]:
    """Summarise excerpts of several runs for a report, with the functions that draw its pictures."""
    figures: Figures = {}
    tints = dict(zip(runs, colours(len(runs)), strict=True))
    holders: dict[LayerKey, dict[str, RunData]] = {}
    for name, run in runs.items():
        for key in run.layers:
            holders.setdefault(key, {})[name] = run
    places = [Place(owners, tints, key, f"layer-{index}") for index, (key, owners) in enumerate(holders.items())]
    whole = Place(runs, tints, WHOLE_RUN, "runs")
    return {
        "kind": "comparison",
        "name": ", ".join(runs),
        "runs": [_run(name, run, findings[name]) for name, run in runs.items()],
        "loss": _overlaid(whole, (LOSS,), figures),
        "layers": [
            {**_layer(place), "pictures": _overlaid(place, LAYER if index < PICTURED else (), figures)}
            for index, place in enumerate(places)
        ],
        "pictures": _overlaid(whole, (THRESHOLDS,), figures),
        "settings": {name: settings(run) for name, run in runs.items()},
    }, figures


def _run(name: str, run: RunData, findings: Sequence[Finding]) -> dict[str, Any]:
    severities = sorted((finding.severity for finding in findings), key=SEVERITIES.index, reverse=True)
    return {
        "name": name,
        "facts": facts(run),
        "worst": severities[0] if severities else None,
        "findings": [finding_data(finding) for finding in findings],
    }


def _layer(place: Place) -> dict[str, Any]:
    by_run = {name: numbers(run, place.key) for name, run in place.runs.items()}
    return {
        "id": place.owner,
        "key": place.key._asdict(),
        "name": in_words(place.key),
        "runs": [{"name": name, "numbers": own, "cells": cells(own)} for name, own in by_run.items()],
    }


def _overlaid(place: Place, overlays: Sequence[Picture], figures: Figures) -> list[dict[str, Any]]:
    drawn = [_picture(place, overlay, figures) for overlay in overlays]
    return [picture for picture in drawn if picture]


def _picture(place: Place, overlay: Picture, figures: Figures) -> dict[str, Any] | None:
    import pandas as pd

    tables = {name: frame for name, run in place.runs.items() if len(frame := overlay.table(run, place.key))}
    if not tables:
        return None

    def draw(ax: Axes) -> None:
        for name in tables:
            overlay.draw(place.runs[name], place.key, ax, label=name, color=place.tints[name])

    text = "\n".join(f"{name}: {overlay.words(frame)}" for name, frame in tables.items())
    stacked = pd.concat([overlay.drawn(frame).assign(run=name) for name, frame in tables.items()], ignore_index=True)
    stacked = stacked[["run", *(column for column in stacked.columns if column != "run")]]
    if any(map(drawable, tables.values())):
        figures[f"{place.owner}-{overlay.name}"] = draw
    return picture_data(f"{place.owner}-{overlay.name}", overlay.title, text, stacked)
