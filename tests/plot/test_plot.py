"""Figures show the numbers of the run, in the axes they are given, whatever the run is like."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_runs import CLIPPING, ENCODER, GATES, HEALTHY, layer, made, of, spread, timesteps

import gradscope
from gradscope.record import MemoryStore
from gradscope.run import Run
from gradscope.types import Finding, LayerKey, Rows

pytest.importorskip("seaborn")
import matplotlib  # noqa: E402

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from gradscope import plot  # noqa: E402
from gradscope.plot import data, style  # noqa: E402

DECODER = LayerKey("decoder", 0, "forward", 0)
FIGURES = {
    "timesteps": plot.timesteps,
    "gain": lambda run, **given: plot.timesteps(run, "gain", **given),
    "heatmap": plot.heatmap,
    "reach": plot.reach,
    "jacobians": plot.jacobians,
    "horizon": plot.horizon,
    "gates": plot.gates,
    "gates over training": lambda run, **given: plot.gates(run, "step", **given),
    "saturation": plot.saturation,
    "spectra": plot.spectra,
    "clipping": plot.clipping,
    "thresholds": plot.thresholds,
    "loss": plot.loss,
    "timeline": plot.timeline,
    "updates": plot.updates,
}
OF_ONE_LAYER = ("heatmap", "jacobians", "gates", "gates over training", "saturation", "spectra", "updates")
figures = pytest.mark.parametrize("draw", [pytest.param(draw, id=name) for name, draw in FIGURES.items()])


@pytest.fixture(autouse=True)
def _closed() -> Any:
    yield
    plt.close("all")


def curves(ax: Axes) -> dict[str, np.ndarray]:
    """The named lines of an axes."""
    return {str(line.get_label()): np.asarray(line.get_ydata(), float) for line in ax.get_lines()}


@figures
def test_honours_ax_and_says_what_it_shows(draw: Callable[..., Axes]) -> None:
    figure, (left, right) = plt.subplots(1, 2)
    assert draw(made(), ax=right) is right
    assert right.has_data() and not left.has_data()
    assert right.get_title(loc="left") and right.get_ylabel() and any(ax.get_xlabel() for ax in figure.axes)
    figure.canvas.draw()


@figures
def test_without_ax_draws_into_the_current_axes(draw: Callable[..., Axes]) -> None:
    ax = plt.gca()
    assert draw(made()) is ax


@figures
def test_an_empty_run_is_said_to_be_empty(draw: Callable[..., Axes]) -> None:
    ax = draw(Run(MemoryStore()))
    assert not ax.get_lines()
    assert len(ax.texts) == 1 and ax.texts[0].get_text()
    ax.figure.canvas.draw()


@figures
@pytest.mark.parametrize(("recorded", "length"), [([20], 12), (range(0, 60, 10), 1), ([0], 1)])
def test_a_single_step_or_timestep(draw: Callable[..., Axes], recorded: Any, length: int) -> None:
    ax = draw(made(recorded=recorded, length=length))
    ax.figure.canvas.draw()
    lonely = [line for line in ax.get_lines() if len(np.atleast_1d(line.get_xdata())) == 1]
    assert not lonely or any(line.get_marker() not in ("None", None) for line in lonely)


@figures
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_values_that_no_logarithm_has(draw: Callable[..., Axes], value: float) -> None:
    rows = list(layer(ENCODER, 6, -0.5))
    broken = [
        Rows(
            block.table,
            {k: np.full(len(v), value) if k in ("p10", "p50", "p90", "mean") else v for k, v in block.columns.items()},
        )
        if block.table in ("timesteps", "reach")
        else block
        for block in rows
    ]
    ax = draw(of(*broken))
    ax.figure.canvas.draw()


def test_gaps_are_marked_where_values_are_not_finite() -> None:
    values = [1e-3, math.nan, 1e-2, 1e-1]
    (summary,) = [block for block in layer(ENCODER, 4, -0.5) if block.table == "layers"]
    ax = plot.timesteps(of(timesteps(ENCODER, "grad_h", values, np.array([0, 8, 0, 1])), summary))
    lines = {str(line.get_label()): line for line in ax.get_lines()}
    assert list(lines["NaN or inf"].get_xdata()) == [1, 3]
    drawn = np.asarray(ax.get_lines()[0].get_ydata(), float)
    np.testing.assert_array_equal(drawn, values)


def test_timesteps_are_the_medians_with_their_band() -> None:
    ax = plot.timesteps(made())
    drawn = ax.get_lines()[0].get_ydata()
    np.testing.assert_allclose(drawn, [0.01 * 10 ** (-0.5 * (11 - t)) for t in range(12)])
    band = ax.collections[0].get_paths()[0].vertices
    at_last = band[band[:, 0] == 11][:, 1]
    assert (at_last.min(), at_last.max()) == pytest.approx((0.005, 0.02))
    assert ax.get_yscale() == "log"


def test_every_layer_has_a_curve_and_a_name() -> None:
    run = made([ENCODER, DECODER, LayerKey("decoder", 1, "reverse", 2)])
    assert set(curves(plot.timesteps(run))) == {"encoder[0]", "decoder[0]", "decoder[1] reverse chain 2"}
    assert list(curves(plot.reach(run, layer="encoder", ax=plt.figure().add_subplot())).values())[0][0] == 1


def test_steps_can_be_chosen() -> None:
    run = made(recorded=[0, 10])
    later = MemoryStore()
    assert len(data.spread(run, ENCODER, "grad_h", 10)) == 12
    assert len(data.spread(run, ENCODER, "grad_h", 5)) == 0
    assert len(data.spread(Run(later), ENCODER, "grad_h")) == 0


@pytest.mark.parametrize("name", OF_ONE_LAYER)
def test_one_layer_is_asked_for_where_only_one_can_be_shown(name: str) -> None:
    run = made([ENCODER, DECODER])
    with pytest.raises(gradscope.GradscopeError, match=r"pass layer=run\.layers\[i\]"):
        FIGURES[name](run)
    FIGURES[name](run, layer=DECODER)
    FIGURES[name](run, layer="encoder", ax=plt.figure().add_subplot())


def test_a_wrong_layer_is_named() -> None:
    with pytest.raises(
        gradscope.GradscopeError, match="no layer 'encodre'; its modules with recurrent layers: 'encoder'"
    ):
        plot.timesteps(made(), layer="encodre")
    with pytest.raises(gradscope.GradscopeError, match="expected 't'"):
        plot.gates(made(), "time")  # type: ignore[arg-type]


def test_lines_take_what_matplotlib_takes() -> None:
    for draw in (plot.timesteps, plot.reach, plot.horizon, plot.thresholds, plot.loss):
        ax = draw(made(), color="#ff0000", label="mine", ax=plt.figure().add_subplot())
        line = next(line for line in ax.get_lines() if line.get_label() == "mine")
        assert line.get_color() == "#ff0000"


def test_jacobians_show_the_line_of_one_and_no_block_twice() -> None:
    ax = plot.jacobians(made())
    size, reference = ax.get_lines()  # of a state without a cell, dh/dh is all there is
    assert set(size.get_ydata()) == {0.5}
    assert set(np.atleast_1d(reference.get_ydata())) == {1}


def test_timeline_has_one_axis_of_steps() -> None:
    findings = [Finding("diverged", "warning", None, "", "", {"steps": (20, 59)}), CLIPPING, HEALTHY]
    ax = plot.timeline(made([ENCODER, DECODER]), findings, ax=plt.figure().add_subplot())
    loss, horizon, strip = ax.figure.axes
    assert loss is ax and {place.get_xlim() for place in (loss, horizon, strip)} == {(-0.59, 59.59)}
    assert [list(line.get_xdata()) for line in strip.get_lines()] == [[20, 59]]
    assert [text.get_text() for text in strip.texts] == ["diverged"]
    assert list(horizon.get_lines()[0].get_xdata()) == list(range(0, 60, 10))
    assert [place.get_xlabel() for place in (loss, horizon, strip)] == ["", "", "training step (ticks: recorded)"]


def test_timeline_rings_a_loss_that_has_risen() -> None:
    run = training([2.0] * 10 + [1.0] * 10 + [1.8] * 10)
    (ring,) = [
        line for line in plot.timeline(run, ax=plt.figure().add_subplot()).get_lines() if line.get_label() == "lowest"
    ]
    assert ring.get_ydata()[0] == 1.0 and 10 <= ring.get_xdata()[0] < 20


def test_timeline_draws_the_shortest_horizons_and_needs_a_grid() -> None:
    keys = [LayerKey("encoder", index, "forward", 0) for index in range(9)]
    ax = plot.timeline(made(keys), ax=plt.figure().add_subplot())
    names = [text.get_text() for text in ax.figure.axes[1].get_legend().get_texts()]
    assert names == [f"encoder[{index}]" for index in range(3, 9)]
    with pytest.raises(gradscope.GradscopeError, match="a place of a grid"):
        plot.timeline(made(), ax=plt.figure().add_axes((0, 0, 1, 1)))


def test_heatmap_is_the_logarithm_of_the_medians() -> None:
    ax = plot.heatmap(made())
    cells = ax.collections[0].get_array()
    assert cells.shape == (6, 12)
    np.testing.assert_allclose(cells[0], [-2 - 0.5 * (11 - t) for t in range(12)])


def test_gates_stand_up_for_high_and_down_for_low() -> None:
    ax = plot.gates(made())
    drawn = [np.asarray(line.get_ydata(), float) for line in ax.get_lines()[: 2 * len(GATES)]]
    for place in range(len(GATES)):
        np.testing.assert_allclose(drawn[2 * place], 0.05)
        np.testing.assert_allclose(drawn[2 * place + 1], -0.1 * place)


def test_units_are_scattered_by_low_and_high() -> None:
    ax = plot.saturation(made())
    line = ax.get_lines()[0]
    np.testing.assert_allclose(line.get_xdata(), np.linspace(0, 1, 5) * 0.95)
    np.testing.assert_allclose(line.get_ydata(), np.linspace(0, 1, 5) * 0.02)


def test_spectra_show_the_unit_circle() -> None:
    circle = plot.spectra(made()).get_lines()[-1]
    np.testing.assert_allclose(np.hypot(circle.get_xdata(), circle.get_ydata()), 1)


def test_thresholds_are_one_minus_the_distribution_of_norms() -> None:
    curve = data.would_clip(made())
    norms = np.array([10.0 if step % 15 == 0 else 0.1 + 0.01 * step for step in range(60)])
    for threshold, share in curve.itertuples(index=False):
        assert share == pytest.approx((norms > threshold).mean())


def test_norms_of_long_trainings_are_binned() -> None:
    store = MemoryStore()
    for step in range(2500):
        told = {
            "optimizer": "SGD",
            "loss": 1.0,
            "grad_norm": float(step),
            "nonfinite": 0,
            "recorded": False,
            "skipped": False,
        }
        store.write(gradscope.Batch(step, (Rows("steps", {**told, "overhead_s": 0.0, "step_s": 0.0}),)))
    frame = data.binned_norms(data.norms(Run(store)))
    assert list(frame["step"][:3]) == [0, 3, 6] and frame["calls"].sum() == 2500
    assert list(frame["before"][:3]) == [1, 4, 7]


def test_long_sequences_are_binned_and_keep_their_extremes() -> None:
    values = np.full(1000, 1e-3)
    values[501] = 1.0
    (summary,) = [block for block in layer(ENCODER, 4, -0.5) if block.table == "layers"]
    frame = data.spread(of(timesteps(ENCODER, "grad_h", values), summary), ENCODER, "grad_h")
    assert len(frame) == 334 and frame["p90"].max() == 2.0 and frame["p50"].max() == 1e-3


def test_several_ranks_are_taken_together() -> None:
    from gradscope.record import Joined

    stores = []
    for rank, factor in ((0, 1.0), (1, 3.0)):
        store = MemoryStore({}, rank=rank)
        (summary,) = [block for block in layer(ENCODER, 4, -0.5) if block.table == "layers"]
        store.write(gradscope.Batch(0, (timesteps(ENCODER, "grad_h", [factor] * 4), summary)))
        stores.append(store)
    assert list(data.spread(Run(Joined(*stores)), ENCODER, "grad_h")["p50"]) == [2.0] * 4


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-3, "10⁻³"),
        (0.02, "0.02"),
        (1, "1"),
        (50, "50"),
        (2000, "2·10³"),
        (1.75e-4, "1.75·10⁻⁴"),
        (1e-12, "10⁻¹²"),
    ],
)
def test_ticks_in_plain_text(value: float, text: str) -> None:
    assert style.power(value) == text


def test_decades_on_the_axis_include_one() -> None:
    ax = plot.reach(made(length=30))
    assert "1" in [label.get_text() for label in ax.get_yticklabels()]


@pytest.mark.parametrize("package", ["matplotlib.pyplot", "seaborn"])
def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(gradscope.GradscopeError, match=r"pip install 'gradscope-rnn\[report\]'") as raised:
        plot.reach(made())
    assert isinstance(raised.value, ModuleNotFoundError) and raised.value.name == package.partition(".")[0]


def training(losses: list[float], nonfinite: dict[int, int] | None = None, norms: list[float] | None = None) -> Run:
    """A run of steps with such losses, every fourth recorded."""
    store = MemoryStore()
    told = {"optimizer": "SGD", "skipped": False, "overhead_s": 0.0, "step_s": 0.0}
    for step, value in enumerate(losses):
        seen = {"loss": value, "grad_norm": norms[step] if norms else 1.0, "recorded": step % 4 == 0}
        row = Rows("steps", {**told, **seen, "nonfinite": (nonfinite or {}).get(step, 0)})
        store.write(gradscope.Batch(step, (row,)))
    return Run(store)


def test_the_loss_is_its_running_median_with_points_and_a_tick_for_every_record() -> None:
    losses = [2.0 - step / 100 + (5.0 if step == 50 else 0.0) for step in range(100)]
    ax = plot.loss(training(losses))
    running, points = ax.get_lines()
    assert list(points.get_ydata()) == losses and points.get_alpha() < 0.5
    assert running.get_ydata()[0] == 2.0 and max(running.get_ydata()[40:60]) < 2.0  # the odd batch shows in no median
    assert ax.get_ylim()[1] < 3
    (ticks,) = ax.collections
    assert [segment[0][0] for segment in ticks.get_segments()] == list(range(0, 100, 4))


def test_a_steep_start_of_the_loss_stays_steep() -> None:
    found = data.binned_losses(data.losses(training([2.3 * 0.9**step for step in range(100)])))["running"]
    assert found[0] == 2.3 and found[1] == pytest.approx(2.3 * 0.9)


def test_few_losses_stand_for_themselves() -> None:
    ax = plot.loss(training([3.0, 1.0, 2.0]))
    assert list(ax.get_lines()[0].get_ydata()) == [3, 1, 2] and ax.get_lines()[0].get_marker() == "."


def test_the_loss_of_a_long_training_has_a_band() -> None:
    frame = data.binned_losses(data.losses(training([float(step % 3) for step in range(2500)])))
    assert len(frame) == 834 and frame["steps"].sum() == 2500 and (frame["running"] == 1).all()
    assert (frame.loc[0, "p10"], frame.loc[0, "p90"]) == pytest.approx((0.2, 1.8))
    assert len(plot.loss(training([float(step % 3) for step in range(2500)])).collections) == 2


@pytest.mark.parametrize(
    ("losses", "scale"),
    [
        ([2.0 * 0.9**step for step in range(60)], "log"),
        ([2.0 - step / 60 for step in range(60)], "linear"),
        ([-2.0 * 0.9**step for step in range(60)], "linear"),
        ([1.0] * 60, "linear"),
        ([0.0] * 60, "linear"),
        ([1.0], "linear"),
    ],
)
def test_the_loss_is_logarithmic_only_where_it_falls_far(losses: list[float], scale: str) -> None:
    ax = plot.loss(training(losses))
    ax.figure.canvas.draw()
    assert ax.get_yscale() == scale


def test_steps_at_which_the_loss_is_not_finite_are_marked() -> None:
    ax = plot.loss(training([2.0, 1.0, math.inf, math.nan, math.nan], {2: 1, 3: 1}))
    lines = {str(line.get_label()): line for line in ax.get_lines()}
    assert list(lines["NaN or inf"].get_xdata()) == [2, 3]  # at the last step nobody saw it
    assert (
        "the run has no loss" in plot.loss(training([math.nan] * 9), ax=plt.figure().add_subplot()).texts[0].get_text()
    )


def test_several_losses_share_axes() -> None:
    ax = plt.figure().add_subplot()
    for name, run in {"a": training([2.0]), "b": training([1.0] * 90), "c": training([math.nan] * 9)}.items():
        plot.loss(run, label=name, ax=ax)
    assert list(curves(ax)) == ["a", "b", "c: nothing to draw"] and not ax.collections
    assert ax.get_xlim()[1] > 89


def test_updates_are_shown_gate_by_gate_where_they_are_known() -> None:
    drawn = curves(plot.updates(made()))
    assert {name: set(line) for name, line in drawn.items()} == {"reset": {1e-3}, "update": {2e-3}, "candidate": {3e-3}}
    blocks = [block for block in layer(ENCODER, 4, -0.5) if block.table in ("weights", "layers")]
    unknown = [Rows(it.table, it.columns | ({"update": math.nan} if it.table == "weights" else {})) for it in blocks]
    assert "no update" in plot.updates(of(*unknown), ax=plt.figure().add_subplot()).texts[0].get_text()


def test_records_of_the_default_schedule_are_equally_tall() -> None:
    run = made(recorded=spread(300), steps=300)
    ax = plot.heatmap(run)
    ax.figure.canvas.draw()
    heights = np.diff(ax.transData.transform(np.c_[np.zeros(51), style.edges(spread(300))])[:, 1])
    assert len(heights) == 50 and heights.max() < 3 * heights.min()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "10", "30", "100", "300"]
    assert ax.get_ylim() == pytest.approx((-0.5, 304)) and ax.get_xlim() == (-0.5, 11.5)
    assert plot.horizon(run, ax=plt.figure().add_subplot()).get_xscale() == "symlog"


@pytest.mark.parametrize("recorded", [range(300), range(0, 300, 10), [0, 1, 2, 3, 299], range(200, 300)])
def test_records_that_are_spread_evenly_or_few_have_a_linear_axis(recorded: Any) -> None:
    assert plot.heatmap(made(recorded=recorded, steps=300)).get_yscale() == "linear"


@pytest.mark.parametrize("count", [1, 2, 3, 10])
@pytest.mark.parametrize(
    "name", ["heatmap", "horizon", "gates over training", "loss", "clipping", "updates", "timesteps"]
)
def test_axes_of_few_steps_have_whole_numbers(name: str, count: int) -> None:
    run = made(recorded=range(count), steps=count, length=count)
    ax = FIGURES[name](run)
    ax.figure.canvas.draw()
    axes = {"heatmap": (ax.xaxis, ax.yaxis), "horizon": (ax.xaxis, ax.yaxis)}.get(name, (ax.xaxis,))
    for axis in axes:
        low, high = axis.get_view_interval()
        shown = [float(tick) for tick in axis.get_ticklocs() if low <= tick <= high]
        assert shown and all(tick == round(tick) for tick in shown)
    if count == 1 and name != "heatmap":
        assert ax.get_xlim() == (-1, 1)


def test_steps_that_nobody_looked_at_leave_no_gaps() -> None:
    norms = [2.0 if step % 8 == 0 else math.nan for step in range(80)]
    frame = data.norms(training([1.0] * 80, {70: 1}, norms))
    assert list(frame["step"]) == sorted([*range(0, 80, 8), 70]) and frame["before"].isna().sum() == 1
    line = plot.clipping(training([1.0] * 80, None, norms)).get_lines()[0]
    assert len(line.get_xdata()) == 10 and line.get_marker() == "None"


@pytest.mark.parametrize("column", ["loss_last", "grad_norm_max"])
@pytest.mark.parametrize("values", [[7.01, 10.01], [0.1, 0.3, 0.7], [5.0]])
def test_no_run_falls_out_of_the_spread_of_few(column: str, values: list[float]) -> None:
    ax = plot.runs(pd.DataFrame({column: values}), column)
    assert sum(bar.get_height() for bar in ax.patches) == len(values)
