"""The second run: a folder that holds one already, or is still being written."""

from __future__ import annotations

import gc
from pathlib import Path

import forks
import pytest
import torch
from record.rows import write
from torch import nn

import gradscope
from gradscope.errors import AttachError, GradscopeWarning, RecordError
from gradscope.record import ParquetStore
from gradscope.record.existing import open_store


def train(logdir: Path, steps: int = 3, model: nn.Module | None = None, **arguments: object) -> gradscope.Scope:
    """A run of some steps, as a script does it that is run again and again."""
    model = model or nn.GRU(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.attach(model, logdir, every=1, strict=True, **arguments) as scope:  # type: ignore[arg-type]
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(4, 2, 2))[0].sum().backward()
            optimizer.step()
    return scope


def steps(logdir: Path) -> list[int]:
    return gradscope.load(logdir).frame("steps")["step"].tolist()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_script_that_is_run_again(tmp_path: Path) -> None:
    """Nothing is lost, nothing refuses, and the folder of each run is said once."""
    logdir = tmp_path / "exp"
    assert train(logdir).logdir == logdir
    before = files(logdir)
    for number in (2, 3):
        with pytest.warns(GradscopeWarning) as said:
            scope = train(logdir)
        assert scope.logdir == tmp_path / f"exp-{number}"
        assert [str(each.message) for each in said] == [
            f"the run in {logdir}/gradscope already has steps up to 2, and first_step is 0: "
            f"gradscope records this run in {tmp_path}/exp-{number}"
        ]
        assert said[0].filename == __file__
        assert steps(tmp_path / f"exp-{number}") == [0, 1, 2]
    assert files(logdir) == before


def test_a_folder_without_steps_is_no_run_yet(tmp_path: Path) -> None:
    train(tmp_path / "exp", 0)
    assert train(tmp_path / "exp").logdir == tmp_path / "exp"


def test_continue_goes_on_from_the_last_step(tmp_path: Path) -> None:
    for _ in range(3):
        train(tmp_path, 2, existing="continue")
    assert steps(tmp_path) == [0, 1, 2, 3, 4, 5]
    assert gradscope.load(tmp_path).frame("layers")["step"].tolist() == [0, 1, 2, 3, 4, 5]
    sessions = gradscope.load(tmp_path).meta["sessions"]
    assert [session["first_step"] for session in sessions] == [0, 2, 4]


def test_continue_from_a_step_that_is_there(tmp_path: Path) -> None:
    """A checkpoint that is older than the records: their numbers would not be the training's."""
    train(tmp_path, 4)
    with pytest.raises(RecordError, match="steps up to 3, and first_step is 2: pass first_step=4"):
        train(tmp_path, existing="continue", first_step=2)


@pytest.mark.parametrize("existing", ["new", "continue", "replace", "error"])
def test_a_first_step_behind_the_last_continues(tmp_path: Path, existing: str) -> None:
    train(tmp_path, 2)
    train(tmp_path, 2, existing=existing, first_step=5)
    assert steps(tmp_path) == [0, 1, 5, 6]


def test_replace(tmp_path: Path) -> None:
    train(tmp_path, 4, quantities="full")
    train(tmp_path, 2, existing="replace")
    run = gradscope.load(tmp_path)
    assert steps(tmp_path) == [0, 1] and run.frame("spectra").empty
    assert len(run.meta["sessions"]) == 1


def test_replace_leaves_alone_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "gradscope").mkdir()
    (tmp_path / "gradscope" / "thesis.tex").write_text("a thesis")
    with pytest.raises(RecordError, match="holds something else"):
        train(tmp_path, existing="replace")
    assert (tmp_path / "gradscope" / "thesis.tex").read_text() == "a thesis"


def test_error(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(RecordError, match=r'first_step=3 to continue.*existing="continue".*existing="new"'):
        train(tmp_path, existing="error")
    assert steps(tmp_path) == [0, 1, 2]


def test_a_choice_that_is_none() -> None:
    with pytest.raises(AttachError, match="expected one of 'new', 'continue', 'replace', 'error'. Did you mean 'repl"):
        gradscope.attach(nn.GRU(2, 3), existing="replaced")  # type: ignore[arg-type]


def test_a_scope_of_the_same_model_that_was_left_open(tmp_path: Path) -> None:
    """The cell of a notebook that is interrupted and run again."""
    model = nn.GRU(2, 3)
    first = gradscope.attach(model, tmp_path / "exp", every=1)
    model(torch.ones(4, 2, 2))[0].sum().backward()
    with pytest.warns(GradscopeWarning) as said:
        second = gradscope.attach(model, tmp_path / "exp", every=1)
    assert [str(each.message).partition(":")[0] for each in said] == [
        f"an earlier scope of this process was still open on {tmp_path}/exp",
        f"the run in {tmp_path}/exp/gradscope already has steps up to 0, and first_step is 0",
    ]
    assert second.logdir == tmp_path / "exp-2" and steps(tmp_path / "exp") == [0]
    with pytest.raises(gradscope.GradscopeError, match="closed"):
        first.step()
    with pytest.warns(GradscopeWarning) as said:
        third = gradscope.attach(model, tmp_path / "exp", every=1)
    assert "still open on" in str(said[0].message) and "exp-2: it is closed now" in str(said[0].message)
    assert third.logdir == tmp_path / "exp-2"  # which had no step
    third.close()


def test_a_scope_of_another_model_goes_on(tmp_path: Path) -> None:
    """Two networks that are given one folder by mistake both have a run."""
    one, other = nn.GRU(2, 3), nn.LSTM(2, 3)
    with gradscope.attach(one, tmp_path / "exp", every=1) as first:
        with pytest.warns(
            GradscopeWarning,
            match=r"an earlier scope of this process .*: gradscope records this run .*exp-2",
        ):
            train(tmp_path / "exp", model=other)
        first.step()
    assert steps(tmp_path / "exp") == [0] and steps(tmp_path / "exp-2") == [0, 1, 2]


@pytest.mark.parametrize("existing", ["continue", "replace"])
def test_whoever_asks_for_the_folder_itself_gets_it(tmp_path: Path, existing: str) -> None:
    one = nn.GRU(2, 3)
    gradscope.attach(one, tmp_path, every=1)
    one(torch.ones(4, 2, 2))[0].sum().backward()
    with pytest.warns(GradscopeWarning, match="it is closed now"):
        train(tmp_path, 1, existing=existing)
    assert steps(tmp_path) == ([0, 1] if existing == "continue" else [0])


def test_a_model_that_is_gone_holds_no_folder(tmp_path: Path) -> None:
    """The name is bound to the next model first, and `attach` is called then."""
    model = nn.GRU(2, 3)
    gradscope.attach(model, tmp_path / "exp")
    model = nn.GRU(2, 3)
    gc.collect()
    gradscope.attach(model, tmp_path / "exp").close()
    assert not (tmp_path / "exp-2").exists()


def test_a_folder_that_another_process_writes(tmp_path: Path) -> None:
    program = (
        "import gradscope, sys, torch; model = torch.nn.GRU(2, 3); print(gradscope.attach(model, sys.argv[1]).logdir)"
    )
    with gradscope.attach(nn.GRU(2, 3), tmp_path / "exp", every=1):
        pass
    model = nn.GRU(2, 3)
    with gradscope.attach(model, tmp_path / "exp", every=1):
        done = forks.code(program, tmp_path, str(tmp_path / "exp"))
    assert done.out.strip() == str(tmp_path / "exp-2") and "is writing to" in done.err


# --- several processes


def test_ranks_choose_the_same_folder(tmp_path: Path) -> None:
    """Whoever comes later joins; a rank that had written less before it was killed is no exception."""
    for rank, until in ((0, 8), (1, 4)):
        write(tmp_path / "exp", range(until), rank=rank)
    for first_step in (0, 5):
        roots = set[Path]()
        for rank in (0, 1):
            with pytest.warns(GradscopeWarning, match="already has steps up to 7"):
                store = open_store(tmp_path / "exp", {}, rank=rank, first_step=first_step, existing="new")
            roots.add(store.root)
            store.close()
        assert roots == {tmp_path / "exp-2" / "gradscope"}


def test_a_training_with_more_processes(tmp_path: Path) -> None:
    for rank in (0, 1):
        ParquetStore(tmp_path / "exp", {"processes": 2}, rank=rank).close()
    with pytest.warns(GradscopeWarning, match="has 2 processes"):
        open_store(tmp_path / "exp", {"processes": 4}, rank=3, first_step=0, existing="new").close()
    assert (tmp_path / "exp-2").exists()


def test_several_processes_replace_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AttachError, match="one of 2 processes would delete"):
        train(tmp_path, existing="replace")
