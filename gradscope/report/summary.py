"""A run as a plain dictionary: everything that a report says, and nothing of how it looks."""

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
from gradscope.types import Finding, LayerKey
from gradscope.types.clips import measured, share
from gradscope.types.findings import where
from gradscope.types.loss import change

Frame = Any
Figures = dict[str, Callable[[Any], object]]
"""What draws each picture of a summary into given axes, by the picture's `id`."""
PICTURED = 6
"""Layers that get pictures; of the others, a report has the numbers."""
SHOWN_REASONS = 20
WHOLE_RUN = LayerKey("", -1, "forward", -1)


def summarise(run: RunData, findings: Sequence[Finding], name: str) -> tuple[dict[str, Any], Figures]:
    """All that a report says of a run, and the functions that draw its pictures.

    Args:
        run: an excerpt.
        findings: what was found in it, the most probable cause first.
        name: what to call the run.
    """
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
        "findings": [tell(finding) for finding in findings],
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
    """The loss in words and numbers, and the picture of it with the horizon and the findings on the same axis."""
    losses = data.losses(run)
    if losses.empty:
        return []
    bins, title = data.binned_losses(losses), "Loss"
    if drawable(bins):
        figures["run-loss"], title = partial(_timeline, run, findings), "Loss, horizon and findings"
    return [{**told("run-loss", title, words.loss(losses), bins), "across": True}]


def _timeline(run: RunData, findings: Sequence[Finding], ax: Any) -> None:
    plot.timeline(run, findings, ax=ax)


def _finite_until(layers: Sequence[Mapping[str, Any]]) -> int | None:
    """The last record that was finite, where a layer has later ones that are not."""
    known = [layer["numbers"]["finite_until"] for layer in layers]
    return max((step for step in known if step is not None), default=None)


def _beginning(facts: Mapping[str, Any]) -> str:
    """What to know where all records are of the first half of the training, as one that is slow to record has them."""
    first, last, recorded = facts["first_step"], facts["last_step"], facts["last_recorded"]
    if recorded is None or facts["recorded"] < 2 or 2 * recorded >= first + last:
        return ""
    return f"The last record is of step {recorded:,}, and the training goes on to {last:,}: this is its beginning."


def _layer(run: RunData, key: LayerKey, findings: Sequence[Finding]) -> dict[str, Any]:
    found = numbers(run, key)
    mine = [finding for finding in findings if finding.layer_key == key and finding.code != "healthy"]
    return {
        "key": key._asdict(),
        "name": where(key),
        "numbers": found,
        "cells": cells(found),
        "codes": [{"code": finding.code, "severity": finding.severity} for finding in mine],
    }


def tell(finding: Finding) -> dict[str, Any]:
    """A finding as plain values: what a remedy does by itself stays behind."""
    return {
        "code": finding.code,
        "severity": finding.severity,
        "layer": None if finding.layer_key is None else finding.layer_key._asdict(),
        "where": "the whole model" if finding.layer_key is None else where(finding.layer_key),
        "title": finding.title,
        "explanation": finding.explanation,
        "evidence": [{"name": k, "value": v, "text": words.told(v)} for k, v in finding.evidence.items()],
        "remedies": [{"title": remedy.title, "code": remedy.code} for remedy in finding.remedies],
    }


def _pictures(
    run: RunData, key: LayerKey, pictures: Iterable[Picture], owner: str, figures: Figures
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    records = len(data.recorded(run, key))
    for picture in pictures:
        frame = picture.table(run, key)
        if frame.empty or records < picture.records:
            continue
        name, drawn = f"{owner}-{picture.name}", picture.drawn(frame)
        if drawable(drawn):
            figures[name] = partial(picture.draw, run, key)
        found.append(told(name, picture.title, picture.words(frame), drawn))
    return found


def drawable(frame: Frame) -> bool:
    """Whether there is more than one point, or more than one step; words tell of one better than a picture."""
    return len(frame) > 1 and ("step" not in frame or frame["step"].nunique() > 1)


def told(name: str, title: str, text: str, frame: Frame) -> dict[str, Any]:
    """A picture in words and numbers; its drawing goes by the same `id`."""
    shown = frame.reset_index() if frame.index.name else frame
    columns, rows = [str(column) for column in shown.columns], shown.to_numpy(object).tolist()
    return {"id": name, "title": title, "text": text, "columns": columns, "rows": rows}


def facts(run: RunData) -> dict[str, Any]:
    """What the whole training was like."""
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
    """One entry per kind of clipping call and threshold, the most frequent first."""
    calls = run.frame("clips")
    found: list[dict[str, Any]] = []
    groups: Any = calls.groupby(["kind", "how", "threshold"], dropna=False)
    for (kind, how, threshold), rows in groups:
        known = rows[measured(rows)]
        changed = known["clipped"]
        found.append(
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
    return sorted(found, key=lambda entry: -entry["calls"])[:8]


def other_thresholds(run: RunData) -> list[dict[str, float]]:
    """What clipping by norm would have changed at the percentiles of the norms that were seen."""
    curve = data.would_clip(run)
    if curve.empty:
        return []
    rows = [words.nearest(curve, share) for share in (0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01)]
    found = {float(row["threshold"]): float(row["share"]) for row in rows}
    return [{"threshold": threshold, "share": share} for threshold, share in found.items()]


def notes(run: RunData) -> list[dict[str, Any]]:
    """What could not be observed: each reason once, with how often and where."""
    rows = run.frame("notes")
    found: list[dict[str, Any]] = []
    for reason, same in rows.groupby("reason", sort=False):
        places = list(dict.fromkeys(same["module"]))
        steps = int(same["step"].min()), int(same["step"].max())
        found.append({"reason": reason, "modules": places, "rows": len(same), "steps": list(steps)})
    return sorted(found, key=lambda entry: -entry["rows"])[:SHOWN_REASONS]


def settings(run: RunData) -> dict[str, Any]:
    """What the run says of itself, as it stands in `run.json`; of its sessions, what differs from that."""
    told = {name: value for name, value in run.meta.items() if not (isinstance(value, Mapping | list) and not value)}
    if "sessions" in told:
        told["sessions"] = [
            {name: value for name, value in session.items() if value != told.get(name)} for session in told["sessions"]
        ]
    return told
