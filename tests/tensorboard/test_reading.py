"""What was written comes back through HTTP, from either data loader, whatever it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from boards import KEY, TAG, Board, board, clip, gates, layer, recorded, steps, timesteps, write
from gradscope_integrations.tensorboard import make_sink

from gradscope import Batch, Rows

STEPS = 3000


def line(step: int, length: int = 5) -> np.ndarray:
    return step + np.arange(length) / 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 recorded steps, every second optimizer step."""
    path, batches = tmp_path_factory.mktemp("long"), list[Batch]()
    for step in range(2 * STEPS):
        idle = Batch(step, (clip(norm_before=float(step)), steps(recorded=False)))
        batches.append(idle if step % 2 else recorded(step, line(step), *gates()))
    write(path / "exp", *batches)
    return path


@pytest.fixture(scope="module")
def long(folder: Path, loader: str) -> Iterator[Board]:
    """A TensorBoard that has loaded them."""
    with board(folder, loader) as here:
        here.wait(lambda runs: bool(runs) and runs[0]["state"]["closed"])
        yield here


def test_all_steps_are_kept(long: Board) -> None:
    (about,) = long.runs()
    assert about["label"] == "exp"
    state = about["state"]
    assert (state["steps"], state["recorded"], state["written"], state["clips"]) == (6000, 3000, 3000, 6000)
    run = about["run"]
    head, arrays = long.block("heatmap", run=run, tag=TAG, rows=4096)
    assert head["steps_kept"] == STEPS
    assert arrays["steps"].tolist() == list(range(0, 2 * STEPS, 2))
    wanted = np.array([line(step) for step in range(0, 2 * STEPS, 2)], np.float32)
    np.testing.assert_array_equal(arrays["values"], wanted)


def test_a_screen_is_served_with_what_was_recorded(long: Board) -> None:
    run = long.runs()[0]["run"]
    head, arrays = long.block("heatmap", run=run, tag=TAG, rows=100, cols=3)
    assert arrays["values"].shape == (100, 3)
    assert (arrays["steps"][0], arrays["steps"][-1], head["steps_kept"]) == (0, 2 * STEPS - 2, STEPS)
    assert arrays["positions"].tolist() == [0, 2, 4]
    wanted = np.array([line(int(step))[[0, 2, 4]] for step in arrays["steps"]], np.float32)
    np.testing.assert_array_equal(arrays["values"], wanted)
    assert np.ptp(np.diff(arrays["steps"])) <= 2
    head, arrays = long.block("heatmap", run=run, tag=TAG, from_=100, to=110, t_from=1, t_to=3)
    assert arrays["steps"].tolist() == [100, 102, 104, 106, 108, 110]
    assert arrays["positions"].tolist() == [1, 2, 3]
    assert head["steps_kept"] == 6


def test_tables_have_every_optimizer_step(long: Board) -> None:
    run = long.runs()[0]["run"]
    head, arrays = long.block("clips", run=run)
    assert head["rows_kept"] == 2 * STEPS
    assert arrays["step"].tolist() == list(range(2 * STEPS))
    assert arrays["norm_before"].tolist() == list(range(2 * STEPS))
    assert [head["texts"]["kind"][code] for code in arrays["kind"][:3]] == ["norm"] * 3
    head, arrays = long.block("steps", run=run, rows=7)
    assert (head["rows_kept"], len(arrays["step"])) == (2 * STEPS, 7)
    head, arrays = long.block("layers", run=run, points=10)
    assert (head["rows_kept"], len(arrays["step"]), arrays["horizon"][0]) == (STEPS, 10, 3.0)
    assert head["texts"]["key"] == ["rnn/0/forward"]
    head, arrays = long.block("blocks", run=run, key="rnn/0/forward", from_=20, to=20)
    assert (arrays["step"].tolist(), head["texts"]["gate"]) == ([20], ["forget"])
    found = [arrays[name][0] for name in ("spectral_radius", "spectral_norm", "orthogonality", "low", "high")]
    np.testing.assert_allclose(found, [0.9, 1.1, 0.2, 0.5, 0.125])
    assert len(long.block("blocks", run=run, key="other")[1]["step"]) == 0


def test_profile_series_units_and_curves(long: Board) -> None:
    run = long.runs()[0]["run"]
    head, arrays = long.block("profile", run=run, tag=TAG, step=1001.4)
    assert head["step"] == 1002
    assert arrays["positions"].tolist() == [0, 1, 2, 3, 4]
    for name, factor in {"p10": 0.5, "p50": 1, "p90": 2, "mean": 1.5, "nonfinite": 0}.items():
        np.testing.assert_array_equal(arrays[name], np.float32(line(1002) * factor))
    assert long.block("profile", run=run, tag=TAG)[0]["step"] == 2 * STEPS - 2
    for over, at in {"median": 2, "max": 4, "min": 0, "mean": 2, "first": 0, "last": 4, "3": 3}.items():
        head, arrays = long.block("series", run=run, tag=TAG, over=over, points=10)
        np.testing.assert_allclose(arrays["values"], arrays["steps"] + at / 8, rtol=1e-6)
    assert np.isnan(long.block("series", run=run, tag=TAG, over="99")[1]["values"]).all()
    head, arrays = long.block("units", run=run, key="rnn/0/forward", step=500)
    assert (head["gates"], head["step"], head["steps_kept"]) == (["forget"], 500, STEPS)
    np.testing.assert_array_equal(arrays["forget/low"], np.linspace(0, 1, 7, dtype=np.float32))
    head, arrays = long.block("curves", run=run, curve="gates/forget", row="low")
    assert head["layers"] == [{"key": "rnn/0/forward", "step": 2 * STEPS - 2, "array": "0"}]
    np.testing.assert_array_equal(arrays["0"], np.stack([np.arange(5), np.linspace(0, 1, 5)]).astype(np.float32))


def test_what_is_not_finite_survives(tmp_path: Path, loader: str) -> None:
    odd = np.array([1.0, math.nan, math.inf, -math.inf, 1e300])
    bad = timesteps(odd, nonfinite=np.array([0, 4, 1, 1, 0]))
    rest = (layer(horizon=math.nan, decay=math.nan), clip(norm_before=math.inf, coefficient=math.nan), steps())
    write(tmp_path, Batch(0, (bad, *rest)), recorded(1, line(1)))
    with board(tmp_path, loader) as here:
        run = here.wait(bool)[0]["run"]
        head, arrays = here.block("heatmap", run=run, tag=TAG)
        np.testing.assert_array_equal(arrays["values"][0], np.float32([1, math.nan, math.inf, -math.inf, math.inf]))
        assert (head["nan"], head["inf"], head["left_out"]) == (1, 3, 3)
        assert here.block("profile", run=run, tag=TAG, step=0)[1]["nonfinite"].tolist() == [0, 4, 1, 1, 0]
        _, clips = here.block("clips", run=run)
        assert clips["norm_before"][0] == math.inf
        assert np.isnan(clips["coefficient"][0])
        assert np.isnan(here.block("layers", run=run)[1]["horizon"][0])


def test_length_may_change(tmp_path: Path, loader: str) -> None:
    lengths = [3, 8, 5, 700, 1500]
    write(tmp_path, *(recorded(step, line(step, length)) for step, length in enumerate(lengths)))
    with board(tmp_path, loader) as here:
        run = here.wait(bool)[0]["run"]
        head, arrays = here.block("heatmap", run=run, tag=TAG, to=2)
        assert arrays["positions"].tolist() == list(range(8))
        assert arrays["padded"].tolist() == [5, 0, 3]
        assert (head["nan"], head["positions_last"]) == (0, 7)
        for step, length in enumerate(lengths[:3]):
            np.testing.assert_array_equal(arrays["values"][step, :length], np.float32(line(step, length)))
            assert np.isnan(arrays["values"][step, length:]).all()
        head, arrays = here.block("heatmap", run=run, tag=TAG, cols=4096)
        assert arrays["positions"].tolist() == [*range(0, 1500, 4), 1499], "what is thinned most decides"
        assert not np.isnan(arrays["values"][4]).any()
        profile = here.block("profile", run=run, tag=TAG, step=3)[1]
        assert profile["positions"].tolist() == [*range(0, 700, 2), 699]
        np.testing.assert_array_equal(profile["p50"], np.float32(line(3, 700)[profile["positions"].astype(int)]))


def test_positions_that_are_not_all_there(tmp_path: Path, loader: str) -> None:
    """Such as the largest singular value at a few timesteps, or of a layer that a reset began late."""
    write(tmp_path, *(Batch(s, (timesteps(line(s, 3), t=np.array([2, 5, 9]) + s), layer())) for s in range(2)))
    with board(tmp_path, loader) as here:
        run = here.wait(bool)[0]["run"]
        arrays = here.block("heatmap", run=run, tag=TAG)[1]
        assert arrays["positions"].tolist() == [2, 3, 5, 6, 9, 10]
        assert arrays["padded"].tolist() == [3, 3]
        assert arrays["values"][1, 3] == np.float32(line(1)[1])


def test_of_steps_that_come_again_the_last_count(tmp_path: Path, loader: str) -> None:
    """A killed training that begins again a little earlier."""
    write(tmp_path, *(recorded(step, line(step)) for step in (0, 1, 2, 2, 3, 4)))
    write(tmp_path, *(recorded(step, line(100 + step)) for step in (2, 3)))
    with board(tmp_path, loader) as here:
        (about,) = here.wait(lambda runs: bool(runs) and runs[0]["state"]["steps"] == 8)
        arrays = here.block("heatmap", run=about["run"], tag=TAG)[1]
        assert arrays["steps"].tolist() == [0, 1, 2, 3]
        assert arrays["values"][:, 0].tolist() == [0, 1, 102, 103]
        assert here.block("clips", run=about["run"])[1]["step"].tolist() == [0, 1, 2, 3]
        assert here.block("layers", run=about["run"])[1]["step"].tolist() == [0, 1, 2, 3]


def test_runs_side_by_side(tmp_path: Path, loader: str) -> None:
    for name, offset in {"exp10": 10, "exp2": 2}.items():
        write(tmp_path / name, recorded(0, line(offset)))
    with board(tmp_path, loader) as here:
        runs = here.wait(lambda runs: len(runs) == 2)
        assert [(about["label"], about["run"]) for about in runs] == [
            ("exp2", "exp2/gradscope"),
            ("exp10", "exp10/gradscope"),
        ]
        found = [here.block("heatmap", run=about["run"], tag=TAG)[1]["values"][0, 0] for about in runs]
        assert found == [2, 10]


def test_a_run_grows(tmp_path: Path, loader: str) -> None:
    sink = make_sink(tmp_path)
    assert sink is not None
    with board(tmp_path, loader) as here:
        assert here.runs() == []
        sink.write(recorded(0, line(0)))
        run = here.wait(bool)[0]["run"]
        assert here.block("heatmap", run=run, tag=TAG)[1]["steps"].tolist() == [0]
        sink.write(recorded(1, line(1), *gates()))
        here.wait(lambda runs: "gates/forget" in runs[0]["layers"][0]["curves"])
        assert here.block("heatmap", run=run, tag=TAG)[1]["steps"].tolist() == [0, 1]
        assert not here.runs()[0]["state"]["closed"]
        sink.close()
        here.wait(lambda runs: runs[0]["state"]["closed"])
        assert here.block("clips", run=run)[1]["step"].tolist() == [0, 1]


def test_hostile_names_are_data(tmp_path: Path, loader: str) -> None:
    name = "<script>alert(1)</script>/../&tag=x\"'%2e%2e é"
    key = {**KEY, "module": name, "layer": 1, "direction": "reverse", "chain": 2}
    rows = [timesteps(line(0), **key), layer(**key), Rows("notes", {**key, "reason": f"{name} failed"})]
    write(tmp_path / "a <b> & c", Batch(0, tuple(rows)))
    with board(tmp_path, loader) as here:
        (about,) = here.wait(bool)
        assert about["label"] == "a <b> & c"
        (found,) = about["layers"]
        assert (found["module"], found["key"]) == (name, f"{name}/1/reverse/2")
        head, arrays = here.block("heatmap", run=about["run"], tag=f"grad_h/{found['key']}")
        np.testing.assert_array_equal(arrays["values"][0], np.float32(line(0)))
        assert here.json("notes", run=about["run"])["notes"][0]["reason"] == f"{name} failed"
        for response in (here.get("runs"), here.get("heatmap", run=name, tag=name), here.get("notes", run=name)):
            assert response.mimetype in ("application/json", "text/plain")
            assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_chains(tmp_path: Path, loader: str) -> None:
    rows = [block for chain in range(11) for block in (timesteps(line(chain), chain=chain), layer(chain=chain))]
    write(tmp_path, Batch(0, tuple(rows)))
    with board(tmp_path, loader) as here:
        (about,) = here.wait(bool)
        assert [each["chain"] for each in about["layers"]] == list(range(8))
        assert about["state"]["chains_left_out"] == 3
        arrays = here.block("profile", run=about["run"], tag=f"{TAG}/7")[1]
        assert arrays["p50"][0] == 7
        assert len(here.block("layers", run=about["run"])[1]["step"]) == 8


def test_of_many_eigenvalues_the_largest_are_written(tmp_path: Path, loader: str) -> None:
    size = np.random.default_rng(0).permutation(600) / 600
    spectrum = {"gate": "input", "index": np.arange(600), "real": size, "imag": np.zeros(600)}
    write(tmp_path, Batch(0, (layer(), Rows("spectra", {**KEY, **spectrum}))))
    with board(tmp_path, loader) as here:
        run = here.wait(bool)[0]["run"]
        head, arrays = here.block("spectra", run=run, key="rnn/0/forward")
        assert head["gates"] == ["input"]
        places = arrays["input/positions"].astype(int)
        assert sorted(places) == sorted(np.argsort(size)[-512:])
        np.testing.assert_array_equal(arrays["input/real"], np.float32(size[places]))
