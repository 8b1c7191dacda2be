"""A run as a plain dictionary: the contents of a report, without its looks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import gradscope.plot as plot
from gradscope.plot import data
from gradscope.record import RunData
from gradscope.report import words
from gradscope.report.layers import cells, numbers, worst_first
from gradscope.report.pictures import CLIPPING, LAYER, Picture
from gradscope.types import Finding, LayerKey, in_words
from gradscope.types.clips import measured, share
from gradscope.types.loss import change

Frame = Any
Figures = dict[str, Callable[[Any], object]]
"""Functions that draw the pictures of a summary into axes, by `id`."""
PICTURED = 6
"""Number of layers with pictures; other layers have numbers only."""
SHOWN_REASONS = 20
WHOLE_RUN = LayerKey("", -1, "forward", -1)


def summarise(run: RunData, findings: Sequence[Finding], name: str) -> tuple[dict[str, Any], Figures]:
    """Summarise an excerpt of a run for a report, with the functions that draw its pictures."""
    figures: Figures = {}
    known = facts(run)
    keys = worst_first(run.layers, findings, run)
    layers = [_layer(run, key, findings) for key in keys]
    for index, (key, layer) in enumerate(zip(keys, layers, strict=True)):
        layer["id"] = f"layer-{index}"
        pictured = LAYER if index < PICTURED else ()
        layer["pictures"] = _pictures(run, key, pictured, layer["id"], figures)
    return {
        "kind": "run",
        "name": name,
        "facts": known,
        "findings": [finding_data(finding) for finding in findings],
        "loss": _over_time(run, findings, figures),
        "layers": layers,
        "finite_until": _finite_until(layers),
        "beginning": _beginning(known),
        "clipping": {
            "calls": clipping(run),
            "thresholds": other_thresholds(run),
            "pictures": _pictures(run, WHOLE_RUN, CLIPPING, "run", figures),
        },
        "notes": notes(run),
        "settings": settings(run),
    }, figures


def _over_time(run: RunData, findings: Sequence[Finding], figures: Figures) -> list[dict[str, Any]]:
    """Describe the loss in words and numbers, with a picture of loss, horizon and findings over one axis."""
    losses = data.losses(run)
    if losses.empty:
        return []
    bins, title = data.binned_losses(losses), "Loss"
    if drawable(bins):
        title = "Loss, horizon and findings"
        figures["run-loss"] = lambda ax: plot.timeline(run, findings, ax=ax)
    return [{**picture_data("run-loss", title, words.loss(losses), bins), "across": True}]


def _finite_until(layers: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the last finite record, if a layer has later records that are not finite."""
    known = [layer["numbers"]["finite_until"] for layer in layers]
    return max((step for step in known if step is not None), default=None)


def _beginning(facts: Mapping[str, Any]) -> str:
    """Warn if all records are of the first half of the training, as in trainings that are slow to record."""
    first, last, recorded = facts["first_step"], facts["last_step"], facts["last_recorded"]
    if recorded is None or facts["recorded"] < 2 or 2 * recorded >= first + last:
        return ""
    return f"The last record is of step {recorded:,} of {last:,}: the report shows the beginning of the training."


def _layer(run: RunData, key: LayerKey, findings: Sequence[Finding]) -> dict[str, Any]:
    values = numbers(run, key)
    own = [finding for finding in findings if finding.layer_key == key and finding.code != "healthy"]
    return {
        "key": key._asdict(),
        "name": in_words(key),
        "numbers": values,
        "cells": cells(values),
        "codes": [{"code": finding.code, "severity": finding.severity} for finding in own],
    }


def finding_data(finding: Finding) -> dict[str, Any]:
    """Convert a finding to plain values, without the functions of its remedies."""
    return {
        "code": finding.code,
        "severity": finding.severity,
        "layer": None if finding.layer_key is None else finding.layer_key._asdict(),
        "where": "the whole model" if finding.layer_key is None else in_words(finding.layer_key),
        "title": finding.title,
        "explanation": finding.explanation,
        "evidence": [{"name": k, "value": v, "text": words.as_text(v)} for k, v in finding.evidence.items()],
        "remedies": [{"title": remedy.title, "code": remedy.code} for remedy in finding.remedies],
    }


def _pictures(
    run: RunData, key: LayerKey, pictures: Iterable[Picture], owner: str, figures: Figures
) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    records = len(data.recorded(run, key))
    for picture in pictures:
        frame = picture.table(run, key)
        if frame.empty or records < picture.records:
            continue
        name, drawn = f"{owner}-{picture.name}", picture.drawn(frame)
        if drawable(drawn):
            figures[name] = partial(picture.draw, run, key)
        shown.append(picture_data(name, picture.title, picture.words(frame), drawn))
    return shown


def drawable(frame: Frame) -> bool:
    """True for more than one point and step; text describes a single one better than a picture."""
    return len(frame) > 1 and ("step" not in frame or frame["step"].nunique() > 1)


def picture_data(name: str, title: str, text: str, frame: Frame) -> dict[str, Any]:
    """Describe a picture by text and numbers; its drawing has the same `id`."""
    shown = frame.reset_index() if frame.index.name else frame
    columns, rows = [str(column) for column in shown.columns], shown.to_numpy(object).tolist()
    return {"id": name, "title": title, "text": text, "columns": columns, "rows": rows}


def facts(run: RunData) -> dict[str, Any]:
    """Collect the numbers of the whole training."""
    steps, calls = run.source.read("steps"), run.source.read("clips")
    recorded = run.source.read("layers", None, ["step"])["step"]
    whole, own = float(steps["step_s"].sum()), float(steps["overhead_s"].sum())
    loss = change(steps)
    return {
        "steps": steps["step"].nunique(),
        "first_step": int(steps["step"].min()) if len(steps) else None,
        "last_step": int(steps["step"].max()) if len(steps) else None,
        "recorded": int(recorded.nunique()),
        "last_recorded": int(recorded.max()) if len(recorded) else None,
        "loss": str(loss).replace("->", "→") if loss else "",
        "loss_first": loss.first if loss else math.nan,
        "loss_last": loss.last if loss else math.nan,
        "layers": len(run.layers),
        "processes": len(run.source.ranks),
        "clipped": share(steps, calls),
        "nonfinite_steps": int(steps.loc[steps["nonfinite"] > 0, "step"].nunique()),
        "skipped_steps": int(steps.loc[steps["skipped"], "step"].nunique()),
        "seconds": whole,
        "overhead": own / whole if whole else math.nan,
    }


def clipping(run: RunData) -> list[dict[str, Any]]:
    """Summarise clipping calls by kind and threshold, the most frequent first."""
    calls = run.frame("clips")
    entries: list[dict[str, Any]] = []
    groups: Any = calls.groupby(["kind", "how", "threshold"], dropna=False)
    for (kind, how, threshold), rows in groups:
        known = rows[measured(rows)]
        changed = known["clipped"]
        entries.append(
            {
                "kind": kind,
                "how": f"{how}, which measures only" if threshold == math.inf else how,
                "threshold": float(threshold),
                "calls": len(rows),
                "measured": len(known),
                "clipped": float(changed.mean()) if len(known) else math.nan,
                "coefficient": float(known.loc[changed, "coefficient"].median()) if changed.any() else math.nan,
                "nonfinite": int((rows["nonfinite"] > 0).sum()),
            }
        )
    return sorted(entries, key=lambda entry: -entry["calls"])[:8]


def other_thresholds(run: RunData) -> list[dict[str, float]]:
    """Compute the share of steps that other thresholds by norm would have clipped, at percentiles of the norms."""
    curve = data.would_clip(run)
    if curve.empty:
        return []
    rows = [words.nearest(curve, share) for share in (0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01)]
    unique = {float(row["threshold"]): float(row["share"]) for row in rows}
    return [{"threshold": threshold, "share": share} for threshold, share in unique.items()]


def notes(run: RunData) -> list[dict[str, Any]]:
    """List the reasons in `notes` once each, with their number, modules and steps."""
    rows = run.frame("notes")
    entries: list[dict[str, Any]] = []
    for reason, same in rows.groupby("reason", sort=False):
        places = list(dict.fromkeys(same["module"]))
        steps = int(same["step"].min()), int(same["step"].max())
        entries.append({"reason": reason, "modules": places, "rows": len(same), "steps": list(steps)})
    return sorted(entries, key=lambda entry: -entry["rows"])[:SHOWN_REASONS]


def settings(run: RunData) -> dict[str, Any]:
    """Return the run's metadata from `run.json`; of its sessions only the differences."""
    meta = {name: value for name, value in run.meta.items() if not (isinstance(value, Mapping | list) and not value)}
    if "sessions" in meta:
        meta["sessions"] = [
            {name: value for name, value in session.items() if value != meta.get(name)} for session in meta["sessions"]
        ]
    return meta
