"""Every number that a user reads is the number in the table."""

from __future__ import annotations

import csv
import random
import re

import numpy as np
import pytest
from browsers import Tab
from made_boards import LENGTH, LONG, RECORDED, STEPS, Made, falling, spaced

from gradscope import LayerKey, Run

DRAWS = 10
"""By each of the two loaders."""


def key_of(layer: LayerKey) -> str:
    return f"{layer.module}/{layer.layer}/{layer.direction}"


def agree(said: str, true: float, digits: int = 4) -> None:
    """A number as it is written, to its digits; the event file holds float32."""
    told = float(said.replace("NaN", "nan").replace("−∞", "-inf").replace("∞", "inf"))
    assert told == pytest.approx(true, rel=0.5001 * 10.0 ** (1 - digits) + 1e-6, abs=1e-44, nan_ok=True), (said, true)


def read(tab: Tab) -> dict[str, str]:
    """Statistic -> number, of the line above the heatmap."""
    spans = tab.get("readout").locator("[data-row]")
    return {span.get_attribute("data-row"): span.locator("b").inner_text() for span in spans.all()}


def test_twenty_values_drawn_at_random_are_those_of_the_table(tab: Tab, made: Made, loader: str) -> None:
    quantity = {"python": "grad_h", "rust": "jacobian"}[loader]
    frame = made.first.frame("timesteps", quantity=quantity)
    draw = random.Random(7)
    tab.open(runs=["first/gradscope"], view="flow")
    for _ in range(DRAWS):
        layer, step, t = draw.choice(made.first.layers), draw.choice(RECORDED), draw.randrange(LENGTH)
        tab.go(runs=["first/gradscope"], view="flow", curve=quantity, layer=key_of(layer), step=step, t=t)
        where = f"[data-step='{step}'][data-t='{t}']"
        tab.get("readout").locator(where).wait_for()
        (row,) = frame[
            (frame.layer == layer.layer) & (frame.direction == layer.direction) & (frame.step == step) & (frame.t == t)
        ].itertuples()
        said = read(tab)
        assert set(said) == {"p10", "p50", "p90", "mean"}
        for name, number in said.items():
            agree(number, getattr(row, name))


def test_the_heatmap_draws_the_logarithm_of_the_table(tab: Tab, made: Made) -> None:
    tab.open(runs=["first/gradscope"], view="flow", layer="rnn/1/reverse", curve="jacobian", row="p90")
    drawn = tab.plotted("heatmap")[0]
    frame = made.first.frame("timesteps", quantity="jacobian", layer=1, direction="reverse")
    true = frame.pivot(index="step", columns="t", values="p90").to_numpy()
    np.testing.assert_allclose(np.array(drawn["z"], float), np.log10(true), atol=1e-5)


def test_hovering_says_the_number(tab: Tab, made: Made) -> None:
    tab.open(runs=["second/gradscope"], view="flow", layer="rnn/0/forward")
    plot = tab.get("figure-heatmap").locator(".plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    tab.page.mouse.move(box["x"] + 64 + (box["width"] - 148) * 0.37, box["y"] + 150)
    said = tab.get("figure-heatmap").locator(".hoverlayer .hovertext")
    said.wait_for()
    step, t, number = re.findall(r"step (\d+), t (\d+).*?median ([\d.e−-]+)", said.text_content(), re.S)[0]
    row = made.second.frame("timesteps", quantity="grad_h", layer=0, direction="forward", step=int(step), t=int(t))
    agree(number.replace("−", "-"), float(row.p50.iloc[0]))


def test_all_of_clips_is_in_the_table_of_its_picture(tab: Tab, made: Made, loader: str) -> None:
    tab.open(runs=["first/gradscope"], view="clipping")
    rows = tab.rows("norms")
    frame = made.first.frame("clips")
    assert len(rows) == len(frame) == STEPS
    for said, (_, true) in zip(rows, frame.iterrows(), strict=True):
        assert set(said) == set(frame.columns)
        assert (said["kind"], said["how"]) == (true["kind"], true["how"])
        for name in set(said) - {"kind", "how"}:
            agree(said[name], float(true[name]))


def test_the_saved_numbers_are_exact(tab: Tab, made: Made) -> None:
    tab.open(runs=["first/gradscope"], view="clipping")
    with open(tab.saved("norms-csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    frame = made.first.frame("clips")
    assert [float(row["norm_before"]) for row in rows] == frame.norm_before.tolist()
    assert [row["how"] for row in rows] == frame.how.tolist()


def test_calls_that_only_measure_are_no_clipping(tab: Tab, made: Made) -> None:
    assert len(made.second.frame("clips")) == 20
    tab.open(runs=["second/gradscope"], view="clipping")
    assert "nothing clips" in tab.get("figure-norms").locator("h3").inner_text()
    assert "Nothing clips in this run" in tab.get("what-if").inner_text()
    shown = [number for number in tab.plotted("norms")[0]["y"] if number is not None]
    norms = made.second.frame("steps").grad_norm
    assert shown == pytest.approx(norms[np.isfinite(norms)].tolist())


def test_a_run_that_clips_in_another_way_is_not_said_to_clip_nothing(tab: Tab) -> None:
    tab.open(runs=["first/gradscope", 'a<b>&"c/gradscope'], view="clipping")
    said = tab.get("what-if").inner_text()
    assert "the present threshold" in said and "This run clips by value" in said and "Nothing clips" not in said
    hints = tab.get("figure-norms").locator(".hint").all_inner_texts()
    assert {hint.split()[4] for hint in hints} == {"clip_grad_norm_", "clip_grad_value_"}


def test_what_another_threshold_would_have_clipped(tab: Tab, made: Made) -> None:
    norms = made.first.frame("clips").norm_before
    for threshold in (0.5, float(norms.median())):
        tab.open(runs=["first/gradscope"], view="clipping", threshold=threshold)
        share = (threshold / (norms + 1e-6) < 1).mean()
        assert tab.get("would-clip").inner_text() == percent(share)
        assert tab.get("clipped-now").inner_text() == percent(made.first.frame("clips").clipped.mean())


def percent(share: float) -> str:
    hundred = 100 * share
    if 0 < hundred < 1:
        return f"{hundred:.1g} %"
    return f"{hundred:.1f} %" if 99 < hundred < 100 else f"{int(hundred + 0.5)} %"


def curve(run: Run, name: str, layer: LayerKey) -> list[float]:
    found = run.frame("layers", module=layer.module, layer=layer.layer, direction=layer.direction)
    return found[name].tolist()


def test_the_horizon_over_training_and_the_last_reach(tab: Tab, made: Made) -> None:
    tab.open(runs=["first/gradscope"], layer="rnn/0/forward")
    for layer in made.first.layers:
        name = f"rnn · layer {layer.layer} · {layer.direction}"
        (drawn,) = [trace for trace in tab.plotted("timeline") if trace["name"] == name]
        assert drawn["y"] == curve(made.first, "horizon", layer)
        (drawn,) = [trace for trace in tab.plotted("reach") if trace["name"] == name]
        true = made.first.frame("reach", layer=layer.layer, direction=layer.direction, step=RECORDED[-1])
        np.testing.assert_allclose(drawn["y"], true.p50, rtol=1e-6)


def test_gates_over_training_and_unit_by_unit(tab: Tab, made: Made) -> None:
    tab.open(runs=["second/gradscope"], view="gates", layer="rnn/1/forward", step=5)
    frame = made.second.frame("units", layer=1, direction="forward")
    gates = list(dict.fromkeys(frame.gate))
    over = tab.plotted("saturation")
    for place, gate in enumerate(gates):
        means = frame[frame.gate == gate].groupby("step")[["low", "high"]].mean()
        np.testing.assert_allclose(over[2 * place]["y"], means.low, rtol=1e-12)
        np.testing.assert_allclose(over[2 * place + 1]["y"], means.high, rtol=1e-12)
    for gate, drawn in zip(gates, tab.plotted("units"), strict=True):
        units = frame[(frame.gate == gate) & (frame.step == 5)]
        np.testing.assert_allclose((drawn["x"], drawn["y"]), (units.low, units.high), rtol=1e-6)


def test_eigenvalues(tab: Tab, made: Made) -> None:
    tab.open(runs=["second/gradscope"], view="flow", layer="rnn/0/reverse", step=3)
    frame = made.second.frame("spectra", layer=0, direction="reverse", step=3)
    for drawn in tab.plotted("spectra"):
        true = frame[frame.gate == drawn["name"]]
        assert len(true) == 6
        np.testing.assert_allclose((drawn["x"], drawn["y"]), (true.real, true.imag), rtol=1e-5, atol=1e-7)


def test_compare_draws_the_same_quantity_of_both_runs(tab: Tab, made: Made) -> None:
    runs = {"first": made.first, "second": made.second}
    tab.open(runs=[f"{name}/gradscope" for name in runs], view="compare", measure="curve/jacobian", over="max")
    drawings = [drawn for drawn in tab.plotted("compare-steps") if drawn["name"] in runs]
    assert len(drawings) == 2
    for drawn in drawings:
        frame = runs[drawn["name"]].frame("timesteps", quantity="jacobian", layer=0, direction="forward")
        np.testing.assert_allclose(drawn["y"], frame.groupby("step").p50.max(), rtol=1e-6)


def test_the_loss_of_every_step_and_a_tick_for_every_record(tab: Tab, loader: str) -> None:
    tab.open(runs=["long/gradscope"])
    raw, smooth, horizon, _, ticks = tab.plotted("timeline")
    true = np.array([falling(step) for step in range(LONG)])
    assert raw["x"] == list(range(LONG)) and raw["y"] == true.tolist()
    assert horizon["x"] == ticks["x"] == spaced(LONG) and len(spaced(LONG)) == 76
    median = [np.median(true[s - min(s, 27) : s + min(s, 27) + 1]) for s in range(LONG)]
    assert smooth["y"] == pytest.approx(median)
    first, last = np.median(true[:10]), np.median(true[-100:])  # as `gradscope.types.loss` has it
    assert tab.get("figure-timeline").locator("h3").inner_text() == f"Loss {first:.2f} → {last:.2f}, and horizon"
    assert tab.get("headline").inner_text() == f"The loss goes {first:.2f} → {last:.2f}."
    assert "running median of 55 steps" in tab.get("figure-timeline").locator(".hint").inner_text()
    assert tab.get("coverage").inner_text() == "76 recorded of 3,000 steps"


def test_weights_and_their_changes(tab: Tab) -> None:
    tab.open(runs=["long/gradscope"], view="gates")
    steps = np.array(spaced(LONG))
    for figure, true in {"radius": 1.1 - 0.2 * np.exp(-steps / 900), "update": 3e-3 / (1 + steps / 400)}.items():
        drawn = tab.plotted(figure)
        assert len(drawn) == 3  # gates of a GRU
        for course in drawn:
            assert course["x"] == steps.tolist() and course["y"] == pytest.approx(true.tolist())


def test_a_log_spaced_heatmap_has_a_row_for_each_record(tab: Tab) -> None:
    tab.open(runs=["long/gradscope"], view="flow")
    assert len(tab.plotted("heatmap")[0]["z"]) == 76
    labels = tab.get("figure-heatmap").locator(".plot").evaluate("p => p.layout.yaxis.ticktext")
    assert labels == ["0", "8", "16", "32", "64", "128", "256", "512", "1,024", "2,048"]
    area = tab.get("figure-heatmap").locator(".nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    tab.page.mouse.click(box["x"] + 5, box["y"] + box["height"] * (1 - 24.5 / 76))  # the row of step 32
    tab.ready()
    assert tab.words()["step"] == "32" and "step 32, t 0" in tab.get("readout").inner_text()


def test_norms_that_nobody_measured_are_left_out(tab: Tab) -> None:
    tab.open(runs=["long/gradscope"], view="clipping", call="1 clip_grad_value_")
    seen = sorted({*range(0, LONG, 7), *spaced(LONG)})
    assert tab.plotted("norms")[0]["x"] == seen
    said = f"Measured at {len(seen):,} of 3,000 steps."
    assert said in tab.get("figure-norms").locator(".notes").inner_text()
    assert tab.plotted("clip-rate")[0]["x"] == seen
    tab.open(runs=["long/gradscope"], view="compare", measure="steps/grad_norm")
    assert tab.plotted("compare-steps")[0]["x"] == seen
