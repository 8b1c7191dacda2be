"""Accelerate and Lightning with processes made by their own launchers: as with torch's, every one records its shard."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from processes import launched

import gradscope

if not torch.distributed.is_available():
    pytest.skip("torch was built without torch.distributed", allow_module_level=True)

WORLD = int(os.environ.get("GRADSCOPE_TEST_PROCESSES", "2"))
ACCELERATE = "-m accelerate.commands.launch --multi_gpu --main_process_port 0 --num_processes".split()
LAUNCHERS = {
    "accelerate": ("accelerate", [*ACCELERATE, str(WORLD)]),
    "debug_launcher": ("accelerate", []),
    "ddp": ("lightning.pytorch", []),
    "ddp_fork": ("lightning.pytorch", []),
}
EVERY = [(launcher, way) for launcher in LAUNCHERS for way in launched.WAYS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder with what the processes of a launcher have seen and recorded; trained once."""
    done: dict[str, Path] = {}

    def of(launcher: str) -> Path:
        package, before = LAUNCHERS[launcher]
        pytest.importorskip(package, reason="make frameworks installs it")
        if launcher not in done:
            folder = done[launcher] = tmp_path_factory.mktemp(launcher)
            launch([*before, launched.__file__, launcher, str(WORLD), str(folder)])
        return done[launcher]

    return of


def launch(command: list[str]) -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr


def seen(folder: Path, way: str, kind: str, rank: int) -> dict[str, Any]:
    return torch.load(folder / f"{way}-{kind}-{rank}.pt")


@pytest.mark.parametrize(("launcher", "way"), EVERY, ids=str)
def test_bit_for_bit_and_no_word_to_the_others(trained: Callable[[str], Path], launcher: str, way: str) -> None:
    """Losses, gradients, parameters, random numbers, and the number of operations of the process group."""
    folder, bits = trained(launcher), set[str]()
    for rank in range(WORLD):
        bare, observed = (seen(folder, way, kind, rank) for kind in ("bare", "observed"))
        assert bare["seen"] == observed["seen"] and torch.equal(bare["given"], observed["given"])
        assert bare["collectives"] == observed["collectives"] > 0
        bits.add(bare["seen"])
    assert len(bits) == WORLD  # each has had other data


@pytest.mark.parametrize(("launcher", "way"), EVERY, ids=str)
def test_every_rank_records_its_part_of_one_run(trained: Callable[[str], Path], launcher: str, way: str) -> None:
    run = gradscope.load(trained(launcher) / way)
    assert run.meta["processes"] == WORLD and run.source.ranks == list(range(WORLD))
    assert [session["rank"] for session in run.meta["sessions"]].count(0) == 1
    steps = run.frame("steps")
    assert steps.groupby("rank")["step"].agg(list).tolist() == [list(range(launched.STEPS))] * WORLD
    assert steps["recorded"].all() and steps.groupby("step")["grad_norm"].nunique().eq(1).all()  # reduced
    assert list(run.frame("clips")["kind"]) == ["norm"] * launched.STEPS * WORLD
    assert run.frame("notes").empty and run.frame("layers")["residual"].max() < 1e-12


def alone(rank: int, first: torch.Tensor, accumulated: int) -> gradscope.Run:
    """The first batch of one rank by itself."""
    task = launched.Task()
    torch.manual_seed(100 * rank)
    with gradscope.attach(task, every=1, max_sequences=None, strict=True) as scope:
        (task.net(first.transpose(0, 1)).square().mean() / accumulated).backward()
    return scope.run


@pytest.mark.parametrize(("launcher", "way"), EVERY, ids=str)
def test_gradients_are_those_of_each_rank_s_own_shard(trained: Callable[[str], Path], launcher: str, way: str) -> None:
    """However the framework has divided the data: each sequence went to one rank."""
    folder = trained(launcher)
    given = [seen(folder, way, "observed", rank)["given"] for rank in range(WORLD)]
    divided = [sequence.tolist() for part in given for sequence in part.flatten(0, 1)]
    assert sorted(divided) == sorted(sequence.tolist() for sequence in launched.sequences(WORLD, way))
    run = gradscope.load(folder / way)
    for rank, mine in enumerate(given):
        want, got = alone(rank, mine[0], launched.WAYS[way]), run.of_rank(rank)
        for table in ("timesteps", "reach", "gates"):
            expected, found = want.frame(table), got.frame(table, step=0)
            assert len(found) > 0
            pd.testing.assert_frame_equal(bare_names(found), bare_names(expected), rtol=1e-9, atol=1e-15)


def bare_names(frame: pd.DataFrame) -> pd.DataFrame:
    """Without what the framework's module and ours put before the names of the network's layers."""
    return frame.assign(module=frame["module"].str.rpartition(".")[2])
