"""Figures show the numbers of the run, in the axes they are given, whatever the run is like."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from made_runs import ENCODER, GATES, layer, made, of, timesteps

import gradscope
from gradscope.record import MemoryStore, Run
from gradscope.types import LayerKey, Rows

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
}
OF_ONE_LAYER = ("heatmap", "jacobians", "gates", "gates over training", "saturation", "spectra")
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
    assert right.get_title(loc="left") and right.get_xlabel() and right.get_ylabel()
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
    for draw in (plot.timesteps, plot.reach, plot.horizon, plot.thresholds):
        ax = draw(made(), color="#ff0000", label="mine", ax=plt.figure().add_subplot())
        line = next(line for line in ax.get_lines() if line.get_label() == "mine")
        assert line.get_color() == "#ff0000"


def test_jacobians_show_the_line_of_one_and_no_block_twice() -> None:
    ax = plot.jacobians(made())
    size, reference = ax.get_lines()  # of a state without a cell, dh/dh is all there is
    assert set(size.get_ydata()) == {0.5}
    assert set(np.atleast_1d(reference.get_ydata())) == {1}


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
    ("value", "text"), [(1e-3, "10⁻³"), (0.02, "0.02"), (1, "1"), (50, "50"), (2000, "2·10³"), (1e-12, "10⁻¹²")]
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
