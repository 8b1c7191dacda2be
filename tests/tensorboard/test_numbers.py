"""A real training: every number that the tab can read is the number of the table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from boards import Board, board
from torch import nn

import gradscope

SPREAD = ("p10", "p50", "p90", "mean", "nonfinite")
DRAWS = 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, gradscope.Run]:
    """Two layers in two directions, sequences of changing length, clipped, every third step recorded."""
    torch.manual_seed(0)
    logdir = tmp_path_factory.mktemp("numbers")
    model = nn.Sequential(nn.LSTM(3, 5, num_layers=2, bidirectional=True))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.attach(model, logdir, every=3, quantities="full"):
        for step in range(30):
            optimizer.zero_grad()
            output, _ = model(torch.randn(6 + step % 5, 4, 3))
            output.square().sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            if step % 2:
                torch.nn.utils.clip_grad_value_(model.parameters(), 0.05)
            optimizer.step()
    return logdir, gradscope.load(logdir)


@pytest.fixture(scope="module")
def here(run: tuple[Path, gradscope.Run], loader: str) -> Iterator[Board]:
    with board(run[0], loader) as one:
        one.wait(lambda runs: bool(runs) and runs[0]["state"]["closed"])
        yield one


def key(row: object) -> str:
    return f"{row.module}/{row.layer}/{row.direction}" + (f"/{row.chain}" if row.chain else "")


def test_the_run_describes_itself(here: Board, run: tuple[Path, gradscope.Run]) -> None:
    (about,) = here.runs()
    layers = [(each["module"], each["layer"], each["direction"], each["chain"]) for each in about["layers"]]
    assert sorted(layers) == sorted(map(tuple, run[1].layers))
    steps = run[1].frame("steps")
    assert (about["state"]["steps"], about["state"]["recorded"]) == (len(steps), steps.recorded.sum())
    quantities = set(run[1].frame("timesteps").quantity)
    assert quantities <= set(about["layers"][0]["curves"])


@pytest.mark.parametrize(
    ("table", "curve", "axis", "rows"),
    [
        ("timesteps", "{0.quantity}", "t", SPREAD),
        ("reach", "reach", "lag", SPREAD),
        ("gates", "gates/{0.gate}", "t", ("low", "high", "mean")),
        ("units", "units/{0.gate}", "unit", ("low", "high")),
        ("spectra", "spectra/{0.gate}", "index", ("real", "imag")),
    ],
)
def test_curves(
    here: Board, run: tuple[Path, gradscope.Run], table: str, curve: str, axis: str, rows: tuple[str, ...]
) -> None:
    name = here.runs()[0]["run"]
    for drawn in run[1].frame(table).sample(DRAWS, random_state=0).itertuples():
        tag = f"{curve.format(drawn)}/{key(drawn)}"
        head, profile = here.block("profile", run=name, tag=tag, step=drawn.step)
        (place,) = np.flatnonzero(profile["positions"] == getattr(drawn, axis))
        assert head["step"] == drawn.step
        for row in rows:
            wanted = np.float32(getattr(drawn, row))
            np.testing.assert_array_equal(profile[row][place], wanted)
            _, heatmap = here.block("heatmap", run=name, tag=tag, row=row, rows=4096, cols=4096)
            at = (
                np.searchsorted(heatmap["steps"], drawn.step),
                np.searchsorted(heatmap["positions"], getattr(drawn, axis)),
            )
            np.testing.assert_array_equal(heatmap["values"][at], wanted)


@pytest.mark.parametrize("table", ["clips", "steps", "layers", "blocks"])
def test_tables(here: Board, run: tuple[Path, gradscope.Run], table: str) -> None:
    head, arrays = here.block(table, run=here.runs()[0]["run"])
    wanted = run[1].frame("weights" if table == "blocks" else table)
    if "key" in arrays:
        wanted["key"] = [key(row) for row in wanted.itertuples()]
        place = {(row.step, row.key, getattr(row, "gate", "")): i for i, row in enumerate(wanted.itertuples())}
        texts = {name: [head["texts"][name][code] for code in arrays[name]] for name in head["texts"]}
        gates = texts.get("gate", [""] * len(arrays["step"]))
        asked = list(zip(arrays["step"], texts["key"], gates, strict=True))
        chosen = [i for i, one in enumerate(asked) if one in place]
        assert len(chosen) == len(wanted)
        wanted = wanted.iloc[[place[asked[i]] for i in chosen]]
        arrays = {name: array[chosen] for name, array in arrays.items()}
    assert len(arrays["step"]) == len(wanted)
    for name, array in arrays.items():
        if name in head["texts"]:
            assert [head["texts"][name][code] for code in array] == list(wanted[name])
        elif name in wanted:
            np.testing.assert_array_equal(array, wanted[name].to_numpy(np.float64))


def test_saturation_of_blocks(here: Board, run: tuple[Path, gradscope.Run]) -> None:
    head, arrays = here.block("blocks", run=here.runs()[0]["run"], key="0/1/reverse")
    units = run[1].frame("units", module="0", layer=1, direction="reverse")
    wanted = units.groupby(["step", "gate"])[["low", "high"]].mean()
    assert len(arrays["step"]) == len(wanted)
    for i, step in enumerate(arrays["step"]):
        row = wanted.loc[step, head["texts"]["gate"][arrays["gate"][i]]]
        np.testing.assert_allclose([arrays["low"][i], arrays["high"][i]], row, rtol=1e-12)


def test_gates_of_one_layer(here: Board, run: tuple[Path, gradscope.Run]) -> None:
    name = here.runs()[0]["run"]
    for route, table, rows in (("units", "units", ("low", "high")), ("spectra", "spectra", ("real", "imag"))):
        head, arrays = here.block(route, run=name, key="0/0/forward", step=12)
        wanted = run[1].frame(table, module="0", layer=0, direction="forward", step=12)
        assert set(head["gates"]) == set(wanted.gate)
        assert head["steps"] == sorted(set(run[1].frame(table).step))
        for gate, frame in wanted.groupby("gate"):
            for row in rows:
                np.testing.assert_array_equal(arrays[f"{gate}/{row}"], frame[row].to_numpy(np.float32))


def test_reach_of_every_layer_now(here: Board, run: tuple[Path, gradscope.Run]) -> None:
    head, arrays = here.block("curves", run=here.runs()[0]["run"], curve="reach")
    reach = run[1].frame("reach", step=27)
    assert len(head["layers"]) == 4
    for layer in head["layers"]:
        module, index, direction = layer["key"].split("/")
        wanted = reach[(reach.module == module) & (reach.layer == int(index)) & (reach.direction == direction)]
        assert layer["step"] == 27
        np.testing.assert_array_equal(arrays[layer["array"]], wanted[["lag", "p50"]].to_numpy(np.float32).T)


def test_series(here: Board, run: tuple[Path, gradscope.Run]) -> None:
    _, arrays = here.block("series", run=here.runs()[0]["run"], tag="grad_h/0/0/forward", over="max", row="p90")
    frame = run[1].frame("timesteps", quantity="grad_h", module="0", layer=0, direction="forward")
    wanted = frame.groupby("step").p90.max()
    assert arrays["steps"].tolist() == wanted.index.tolist()
    np.testing.assert_array_equal(arrays["values"], wanted.to_numpy(np.float32))
