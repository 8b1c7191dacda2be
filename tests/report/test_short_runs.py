"""Reports of few records say what was recorded, and promise nothing that few records cannot show."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from fleets import sweep
from made_runs import ENCODER, layer, loss, made, spread

import gradscope
from gradscope.record import MemoryStore
from gradscope.run import Run
from gradscope.types import Batch, Rows
from gradscope.types.loss import number

pytest.importorskip("jinja2")
pytest.importorskip("seaborn")
from gradscope.report import comparison, report, short  # noqa: E402

OVER_TRAINING = ("Gradient over training", "Horizon over training", "Saturation over training")
TOLD = {"optimizer": "Adam", "skipped": False, "overhead_s": 0.001, "step_s": 0.1}


def fast(steps: int, value: float = 1.0, bad: int = 0) -> Run:
    """A fast training by the default schedule, clipped by value; records and every 16th step are looked at."""
    store, wanted = MemoryStore({}), set(spread(steps))
    for step in range(steps):
        norm = 2.0 - step % 2 if step % 16 == 0 or step in wanted else math.nan
        head = {**TOLD, "loss": value, "grad_norm": norm, "nonfinite": bad, "recorded": step in wanted}
        call = {"index": 0, "kind": "value", "how": "clip_grad_value_", "threshold": 1.5, "norm_type": 2.0}
        norms = {"norm_before": norm, "norm_after": min(norm, 1.5), "coefficient": min(1.0, 1.5 / norm)}
        clip = Rows("clips", {**call, **norms, "parameters": 4, "clipped": norm > 1.5, "nonfinite": 0})
        rows = layer(ENCODER, 12, -0.5) if step in wanted else ()
        store.write(Batch(step, (Rows("steps", head), clip, *rows)))
    return Run(store)


def test_of_one_record_nothing_is_told_over_training() -> None:
    found, first = report(made(recorded=[0], steps=1), []), number(loss(0))
    html = found.html()
    for written in (html, found.text(), found.markdown()):
        assert not any(title in written for title in OVER_TRAINING)
        assert "Between step" not in written and "7 → 7" not in written and f"The loss is {first} at step 0." in written
    assert "One step is recorded; figures over training need two." in html
    assert html.count("<svg") == 7 and "Updates of the recurrent weights" in html
    assert f"not known yet: loss {first}, 1 step, 1 recorded." in found.text()
    assert "1 measured clipping call changed the gradients in 100%" in found.text()


@pytest.mark.parametrize("count", [2, 3, 4, 5, 10])
def test_beginning_and_end_are_told_apart_where_they_are_apart(count: int, request: pytest.FixtureRequest) -> None:
    if count > 2:
        request.getfixturevalue("undrawn")  # the fewest are drawn
    found = report(made(recorded=range(count), steps=count), [])
    html = found.html()
    assert all(title in html for title in OVER_TRAINING) and html.count("<svg") == 14
    assert ("7 → 7" in html) is (count > 4) and ("One step is recorded" in html) is False
    assert f"at step {count - 1}." in found.text()


def test_records_of_the_beginning_alone_are_told_to_be_that() -> None:
    early = report(made(recorded=[0, 1, 13], steps=400), [])
    html = early.html()
    said = "The last record is of step 13 of 399: the report shows the beginning of the training."
    for written in (html, early.text(), early.markdown()):
        assert said in " ".join(written.split()) and "end of training" not in written
    assert "median of steps 0, 1, 13" in html and "Units at step 13:" in " ".join(early.text().split())
    for steps in ([0], [0, 1, 300]):
        assert report(made(recorded=steps, steps=400), []).summary["beginning"] == ""


def test_what_was_not_looked_at_is_counted_nowhere(undrawn: None) -> None:
    run = fast(3000)
    found = report(run, [])
    facts = found.summary["facts"]
    looked_at = len({*spread(3000), *range(0, 3000, 16)})
    clipped = len([step for step in {*spread(3000), *range(0, 3000, 16)} if step % 2 == 0])
    assert (facts["steps"], facts["recorded"], facts["clipped"]) == (3000, 76, pytest.approx(clipped / looked_at))
    (calls,) = found.summary["clipping"]["calls"]
    assert (calls["calls"], calls["measured"], calls["clipped"]) == (3000, looked_at, facts["clipped"])
    assert f"3,000 ({looked_at} measured)" in found.html()
    assert f"{looked_at} measured clipping calls changed" in found.text()


@pytest.mark.parametrize("bad", [0, 1])
def test_where_no_loss_was_seen_nothing_is_said_of_it(bad: int, request: pytest.FixtureRequest) -> None:
    if bad:
        request.getfixturevalue("undrawn")  # the other one is drawn
    run = fast(40, math.nan, bad)
    both = {"a": run, "b": run}
    for written in (report(run, []).html(), report(run, []).text(), report(run, []).markdown(), repr(run)):
        assert not re.search(r"\bloss\b(?! gradient)", re.sub(r"<style>.*?</style>", "", written, flags=re.S), re.I)
    assert "Running median of the loss" not in comparison(both, {"a": [], "b": []}).html()
    assert report(run, []).summary["facts"]["loss"] == "" and report(run, []).summary["loss"] == []


def test_the_loss_stands_above_all_other_figures(undrawn: None) -> None:
    run = made()
    html, text = report(run, []).html(), report(run, []).text()
    assert html.index("<svg") < html.index("</svg>") < html.index("Layers</h2>")
    assert "loss 2.06 → 0.978" in text.splitlines()[1] and "loss 2.06 → 0.978" in short(run)
    both = comparison({"a": run, "b": fast(40, -1.0)}, {"a": [], "b": []})
    assert "2.06 → 0.978" in both.text() and "-1.00 → -1.00" in both.html() and "2.06 → 0.978" in both.markdown()
    assert "2.06 → 0.978" in both._repr_html_() and both.html().index("<svg") < both.html().index("Layers</h2>")


def test_a_loss_that_is_lost_is_told() -> None:
    store = MemoryStore({})
    for step in range(40):
        lost = step > 30
        head = {**TOLD, "loss": math.nan if lost else 1.0, "grad_norm": 1.0, "recorded": False, "nonfinite": int(lost)}
        store.write(Batch(step, (Rows("steps", head),)))
    text = report(Run(store), []).text()
    assert "loss 1.00 → not finite" in text and "It is not finite at 9 steps, first at step 31." in " ".join(
        text.split()
    )


def test_updates_are_told_gate_by_gate_over_all_records() -> None:
    run = made()
    (entry,) = [it for it in report(run, []).summary["layers"][0]["pictures"] if it["id"] == "layer-0-updates"]
    assert len(entry["rows"]) == 3 * 6 and "0.001 (reset), 0.002 (update), 0.003 (candidate)" in entry["text"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fleets_of_few_runs(count: int, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    sweep(tmp_path, count)
    found = gradscope.load(tmp_path).report()
    html, text = found.html(), found.text()
    assert ("Spread" in html) is ("SPREAD" in text) is (count > 1)
    assert html.count("<svg") - html.count('<svg class="spark"') == (2 if count == 3 else 0)
    assert text.splitlines()[1].startswith("1 run:" if count == 1 else f"{count} runs:")
    if count == 3:
        assert "1.77 → 0.0969" in text and "1.77 → 0.0969" in html and "1.77 → 0.0969" in found.markdown()
        assert np.isnan(gradscope.load(tmp_path).table(findings=False)["loss_last"]).sum() == 2
