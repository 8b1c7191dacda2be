"""Two real processes, with DDP and with FSDP2: every one records its own part, and none of them notices."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from processes import work

import gradscope

if not torch.distributed.is_available():
    pytest.skip("torch was built without torch.distributed", allow_module_level=True)

WORLD = int(os.environ.get("GRADSCOPE_TEST_PROCESSES", "2"))
DDP, FSDP = work.SCENARIOS["ddp"], work.SCENARIOS["fsdp"]
Seen = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[Seen]]]:
    """What the processes of a kind have seen, by rank, and the folder with their runs; trained once."""
    folder = tmp_path_factory.mktemp("processes")
    for kind in work.SCENARIOS:
        (folder / kind).mkdir()
    command = [sys.executable, work.__file__, *work.SCENARIOS, str(WORLD), str(folder)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=240)
    assert done.returncode == 0, done.stderr

    @functools.cache
    def of(kind: str) -> tuple[Path, list[Seen]]:
        return folder / kind, [torch.load(folder / kind / f"{rank}.pt") for rank in range(WORLD)]

    return of


@pytest.fixture
def ddp(trained: Callable[[str], Any]) -> tuple[Path, list[Seen]]:
    return trained("ddp")


@pytest.fixture
def fsdp(trained: Callable[[str], Any]) -> tuple[Path, list[Seen]]:
    return trained("fsdp")


EVERY = [("ddp", name) for name in DDP] + [("fsdp", name) for name in FSDP]


@pytest.mark.parametrize(("kind", "name"), EVERY, ids=str)
def test_bit_for_bit_and_no_word_to_the_others(trained: Callable[[str], Any], kind: str, name: str) -> None:
    """Losses, parameters, gradients, random numbers, and the number of operations of the process group."""
    _, seen = trained(kind)
    for mine in seen:
        bare, observed = mine[name]["bare"], mine[name]["observed"]
        assert bare["seen"] == observed["seen"]
        assert bare["collectives"] == observed["collectives"] > 0


@pytest.mark.parametrize(("kind", "name"), EVERY, ids=str)
def test_every_rank_records_its_part_of_one_run(trained: Callable[[str], Any], kind: str, name: str) -> None:
    folder, _ = trained(kind)
    run = gradscope.load(folder / name)
    assert run.meta["processes"] == WORLD and run.source.ranks == list(range(WORLD))
    assert run.frame("steps").groupby("rank")["step"].agg(list).tolist() == [list(range(work.STEPS))] * WORLD
    assert run.frame("steps")["recorded"].all()
    assert [session["rank"] for session in run.meta["sessions"]].count(0) == 1
    assert len(list((folder / name / "gradscope").glob("events*"))) <= 1  # TensorBoard shows the first
    if name not in ("scaled", "ill"):  # what is not finite is told of
        assert run.frame("notes").empty, run.frame("notes")["reason"].tolist()


@pytest.mark.parametrize(("kind", "name"), EVERY, ids=str)
def test_the_certificate_is_of_each_rank_s_own_gradient(trained: Callable[[str], Any], kind: str, name: str) -> None:
    """Rebuilt from what this rank has computed, not from what all of them made of it."""
    layers = gradscope.load(trained(kind)[0] / name).frame("layers")
    assert layers["residual"].max() < (5e-2 if name == "bfloat16" else 1e-12)
    assert set(layers["timesteps"]) == {4} and set(layers["chain"]) == {0}  # the cell's calls are one chain


@pytest.mark.parametrize(("kind", "name"), [e for e in EVERY if e[1] != "scaled"], ids=str)
def test_norms_are_those_that_the_optimizer_got(trained: Callable[[str], Any], kind: str, name: str) -> None:
    """Reduced; with FSDP those of this rank's shards."""
    folder, seen = trained(kind)
    run = gradscope.load(folder / name)
    for rank, mine in enumerate(seen):
        want = mine[name]["observed"]
        steps, clips = run.frame("steps", rank=rank), run.frame("clips", rank=rank)
        assert steps["grad_norm"].tolist() == pytest.approx(want["norms"], rel=1e-6, nan_ok=True)
        assert clips["norm_before"].tolist() == pytest.approx(want["clips"], rel=1e-6, nan_ok=True)
        assert set(clips["kind"]) == {"norm"}


def alone(rank: int) -> gradscope.Run:
    """The first step of one rank's training, by itself."""
    torch.manual_seed(0)
    model = work.Net().double()
    torch.manual_seed(rank)
    with gradscope.attach(model, every=1, max_sequences=None, strict=True) as scope:
        work.plain(rank, model, model, 0)
    return scope.run


@pytest.mark.parametrize(
    ("kind", "name"),
    [("ddp", "plain"), ("ddp", "static"), ("fsdp", "whole"), ("fsdp", "parts"), ("fsdp", "attached first")],
)
def test_gradients_are_those_of_each_rank_s_own_data(trained: Callable[[str], Any], kind: str, name: str) -> None:
    """Exact at every timestep, as without the others, although the parameters are sharded."""
    run = gradscope.load(trained(kind)[0] / name)
    for rank in range(WORLD):
        want, got = alone(rank), run.of_rank(rank)
        for table in ("timesteps", "reach", "gates", "weights"):
            # What the optimizer did to the weights is another matter: alone there is none.
            expected = want.frame(table).drop(columns="update", errors="ignore")
            found = got.frame(table, step=0).drop(columns="update", errors="ignore")
            pd.testing.assert_frame_equal(found, expected, rtol=1e-9, atol=1e-15)


def test_accumulation_records_the_first_micro_batch(ddp: tuple[Path, list[Seen]]) -> None:
    """Under `no_sync`, where nothing is reduced."""
    plain, accumulated = (gradscope.load(ddp[0] / name).frame("timesteps", step=0) for name in ("plain", "no_sync"))
    pd.testing.assert_frame_equal(plain, accumulated)


def test_a_layer_that_a_rank_did_not_use(ddp: tuple[Path, list[Seen]]) -> None:
    layers = gradscope.load(ddp[0] / "unused").frame("layers", module="spare")
    used = set(layers[["step", "rank"]].itertuples(index=False, name=None))
    assert used == {(s, r) for s in range(work.STEPS) for r in range(WORLD) if s % 2 == r % 2}


def test_an_overflow_on_one_rank_is_skipped_by_all(ddp: tuple[Path, list[Seen]]) -> None:
    run = gradscope.load(ddp[0] / "scaled")
    skipped = run.frame("steps").groupby("rank")["skipped"].agg(list).tolist()
    assert skipped == [[False, True, False]] * WORLD
    gradients = run.frame("timesteps", quantity="grad_h", step=1)
    own = gradients[gradients["nonfinite"] > 0]["rank"].unique().tolist()
    assert own == [WORLD - 1]
    unscaled = run.frame("timesteps", step=0, quantity="grad_h")
    bare = gradscope.load(ddp[0] / "plain").frame("timesteps", step=0, quantity="grad_h")
    pd.testing.assert_frame_equal(unscaled, bare, rtol=1e-9)


def test_a_rank_with_nan_is_named(ddp: tuple[Path, list[Seen]]) -> None:
    """Everybody's weights are lost; whose data it was, only the gradients before the reduction tell."""
    run = gradscope.load(ddp[0] / "ill")
    assert (run.frame("steps", step=work.STEPS - 1)["nonfinite"] > 0).all()
    (finding,) = [f for f in run.findings() if f.code == "nonfinite_gradient"]
    assert finding.evidence["ranks"] == (WORLD - 1,) and f"begun on rank {WORLD - 1}" in finding.title
    pytest.importorskip("jinja2")
    told = run.report().summary["processes"]["entries"]
    assert [entry["own_nonfinite"] for entry in told] == [0] * (WORLD - 1) + [1]


def test_shards_make_up_the_whole(fsdp: tuple[Path, list[Seen]], ddp: tuple[Path, list[Seen]]) -> None:
    """The norms of all ranks' shards, squared and added up, are the norm that DDP's ranks have."""
    shards = gradscope.load(fsdp[0] / "parts").frame("steps", step=0)["grad_norm"]
    whole = gradscope.load(ddp[0] / "plain").frame("steps", step=0, rank=0)["grad_norm"].item()
    assert math.hypot(*shards) == pytest.approx(whole, rel=1e-9)
