"""`gradscope run`: the script is as it would be under python, and every model that trains in it is recorded."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from reliability.shell import Shell
from torch import nn
from torch.optim import SGD, Optimizer

import gradscope

pytest.importorskip("click")
from gradscope.cli import main  # noqa: E402
from gradscope.cli.watch import Watch, models  # noqa: E402
from gradscope.record import ParquetStore  # noqa: E402

SCRIPT = '''
"""A script that knows nothing of gradscope."""
import argparse, atexit, hashlib, pickle, signal, sys
import torch
from torch import nn

signal.signal(signal.SIGINT, signal.default_int_handler)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(4, 8, batch_first=True, dropout=0.3, num_layers=2), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])

parser = argparse.ArgumentParser()
parser.add_argument("--end")
end = parser.parse_args().end
torch.manual_seed(1)
net = Net()
optimizer = torch.optim.Adam(net.parameters())
for step in range(12):
    x = torch.randn(6, 9, 4)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(net(x), (x.sum((1, 2)) > 0).long())
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    print(step, loss.item(), flush=True)
everything = [*net.parameters(), *(p.grad for p in net.parameters()), torch.get_rng_state()]
print(hashlib.sha256(b"".join(pickle.dumps(t.detach().numpy()) for t in everything)).hexdigest())
print(sys.argv, sys.path[0], __name__, __file__, __package__, __spec__ and __spec__.name, Net.__module__)
print(sys.modules["__main__"].Net is Net, pickle.loads(pickle.dumps(net)) is not None)
atexit.register(lambda: print("at exit", sys.modules["__main__"].Net is Net))
if end == "exit":
    sys.exit(7)
if end == "raise":
    def fail():
        try:
            net(torch.ones(1, 2, 5))  # a wrong width
        except RuntimeError as error:
            raise KeyError("it") from error
    fail()
if end == "sleep":
    import os, select
    read, write = os.pipe()  # an interrupt just before the system call would leave `time.sleep` asleep
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    print("ready", flush=True)
    select.select([read], [], [], 60)
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "pack").mkdir()
    (folder / "pack" / "__init__.py").touch()
    for name in ("train.py", "pack/__main__.py"):
        (folder / name).write_text(SCRIPT, encoding="utf-8")
    return folder


def python(project: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=project, env=_alone())
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def shell(project: Path) -> Shell:
    """Runs the command in forks of a process that has loaded it."""
    for package in ("rich", "sklearn", "tensorboard"):
        pytest.importorskip(package)
    return Shell(project)


def _alone() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}


def ending(logdir: str) -> str:
    return f"gradscope: recorded in {logdir}; see it with: gradscope report {logdir}\n"


def uncounted(err: str) -> str:
    """Without what is said of the training before."""
    return re.sub(r"(?m)^gradscope: (?!recorded in).*\n", "", err)


@pytest.mark.parametrize(
    ("how", "status"),
    [
        (("train.py",), 0),
        (("train.py", "--end", "exit"), 7),
        (("train.py", "--end", "raise"), 1),
        (("-m", "pack", "--end", "raise"), 1),
    ],
    ids=["file", "exit", "raise", "raise in a module"],
)
def test_the_script_is_as_under_python(project: Path, shell: Shell, how: tuple[str, ...], status: int) -> None:
    """By forks; the test of interrupts compares processes that begin as the command."""
    logdir = re.sub(r"\W", "", f"runs{how}")
    plain, ours = python(project, *how), shell.run("run", "--logdir", logdir, "--every", "5", *how)
    assert plain[0] == ours[0] == status
    assert ours[1] == plain[1]
    assert uncounted(ours[2]) == ending(logdir) + plain[2]
    first, *_, last = ours[2].removesuffix(plain[2]).splitlines()
    assert re.fullmatch(r"gradscope: .*: loss \S+ -> \S+, 12 steps, 3 recorded\.", first)
    assert last.startswith("gradscope: recorded in ") and ours[2].count("gradscope: [") == 1
    run = gradscope.load(project / logdir)
    assert run.frame("layers")["step"].unique().tolist() == [0, 5, 10]
    assert [key[:2] for key in run.layers] == [("rnn", 0), ("rnn", 1)]
    assert len(run.frame("clips")) == len(run.frame("steps")) == 12


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_interrupts_end_it_as_under_python(project: Path) -> None:
    ends = []
    for command in (["train.py"], ["-m", "gradscope.cli", "run", "--logdir", "interrupted", "train.py"]):
        process = subprocess.Popen(
            [sys.executable, *command, "--end", "sleep"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=project, env=_alone(),
        )  # fmt: skip
        assert process.stdout
        while process.stdout.readline() != "ready\n":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        where = re.compile(r"line \d+, in <module>\n.*\n")  # it may strike before or in the sleep
        assert where.search(err)
        ends.append((process.returncode, out, where.sub("", err)))
    plain, ours = ends
    assert plain[0] == ours[0] and plain[0] in (-signal.SIGINT, 1)  # which of the two is up to what runs at exit
    assert (ours[1], uncounted(ours[2])) == (plain[1], ending("interrupted") + plain[2])
    assert len(gradscope.load(project / "interrupted").frame("steps")) == 12


def test_a_run_that_is_there_is_not_written_over(project: Path, shell: Shell) -> None:
    (project / "taken" / "gradscope").mkdir(parents=True)
    (project / "taken" / "gradscope" / "run.json").write_text("{}", encoding="utf-8")
    status, _, err = shell.run("run", "--logdir", "taken", "--every", "5", "train.py")
    assert status == 0 and uncounted(err) == ending("taken-2"), err
    assert (project / "taken" / "gradscope" / "run.json").read_text(encoding="utf-8") == "{}"


needs_distributed = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)


def as_process(rank: int, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The status of the command in one of two processes."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["gradscope", *arguments])
    return main()


@needs_distributed
def test_several_processes_record_in_one_folder(
    project: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = shell.launch("run", "--logdir", "both", "train.py", processes=2)
    assert status == 0 and uncounted(err).count(ending("both")) == 1, err
    run = gradscope.load(project / "both")
    assert run.source.ranks == [0, 1] and len(run.frame("steps")) == 24
    monkeypatch.chdir(project)
    for rank in (0, 1):
        assert as_process(rank, monkeypatch, "run", "--logdir", "both", "train.py") == 2
        assert "both already holds a run" in capsys.readouterr().err


@needs_distributed
def test_processes_that_are_started_anew_record_in_a_folder_within(project: Path, shell: Shell) -> None:
    fails = 'import os\nexec(open("train.py").read())\nassert os.environ["TORCHELASTIC_RESTART_COUNT"] == "1"\n'
    (project / "fails.py").write_text(fails, encoding="utf-8")
    status, _, err = shell.launch("run", "--logdir", "anew", "fails.py", restarts=1)
    assert status == 0, err
    for folder in ("anew", "anew/restart-1"):
        assert ending(folder) in uncounted(err) and len(gradscope.load(project / folder).frame("steps")) == 12


def test_without_a_folder_several_processes_would_not_agree(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    assert as_process(1, monkeypatch, "run", "train.py") == 2
    out, err = capsys.readouterr()
    assert out == "" and "--logdir runs/train" in err


# --- which models are found


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.out = nn.GRU(2, 3), nn.GRU(3, 3), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.decoder(self.encoder(x)[0])[0])


def train(model: nn.Module, *optimizers: Optimizer, steps: int = 2) -> None:
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        found = model(torch.ones(4, 2, 2))
        (found[0] if isinstance(found, tuple) else found).sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def test_models_are_the_outermost_modules_around_recurrent_layers() -> None:
    model = nn.ModuleDict({"inner": Tagger(), "other": nn.Linear(1, 1)})
    inner = model["inner"]
    assert isinstance(inner, Tagger)
    mine = {id(p) for p in inner.encoder.parameters()}
    ((top, layers),) = models(mine)
    assert top is model and list(layers.values()) == ["inner.encoder"]
    assert models({id(p) for p in model["other"].parameters()}) == []
    del top


class Step(nn.Module):
    """A cell of somebody's own, known by its signature."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.inner(torch.cat([x, hidden], 1)))


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.after = Step(), nn.GRU(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = [torch.zeros(x.shape[1], 3)]
        for one in x:
            states.append(self.cell(one, states[-1]))
        return self.after(torch.stack(states[1:]))[0]


def test_cells_that_are_not_torchs_are_found_as_attach_finds_them(tmp_path: Path) -> None:
    with Watch(tmp_path, 1):
        model = Loop()
        optimizers = [SGD(part.parameters(), 0.1) for part in (model.cell, model.after)]
        train(model, *optimizers)
    run = gradscope.load(tmp_path)
    assert {key.module for key in run.layers} == {"cell", "after"}
    assert run.frame("layers", module="cell")["timesteps"].tolist() == [4, 4]
    assert not (tmp_path / "2-Loop").exists()


def test_a_model_with_two_optimizers_is_one_run(tmp_path: Path) -> None:
    with Watch(tmp_path / "it", 1):
        model = Tagger()
        optimizers = [SGD(layer.parameters(), 0.1) for layer in (model.encoder, model.decoder)]
        train(model, *optimizers)
    assert sorted(path.name for path in (tmp_path / "it").iterdir()) == ["gradscope"]
    run = gradscope.load(tmp_path / "it")
    assert {key.module for key in run.layers} == {"encoder", "decoder"} and len(run.frame("steps")) == 4


def test_several_models_and_layers_that_come_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Watch(tmp_path, 1):
        first, second = Tagger(), nn.LSTM(2, 3)
        one, two = SGD(first.parameters(), 0.1), SGD(second.parameters(), 0.1)
        train(first, one)
        train(second, two)
        first.add_module("late", nn.RNN(2, 2))
        one.add_param_group({"params": list(first.late.parameters())})
        first.late(torch.ones(3, 1, 2))[0].sum().backward()
        one.step()
    names = {name: gradscope.load(tmp_path / name).layers for name in (".", "2-LSTM", "3-Tagger")}
    assert [{key.module for key in keys} for keys in names.values()] == [{"encoder", "decoder"}, {""}, {"late"}]
    assert "\ngradscope: recorded in " in capsys.readouterr().err


def test_the_end_says_how_the_loss_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch, told = Watch(tmp_path, 1), {"optimizer": "SGD", "grad_norm": 1.0, "nonfinite": 0, "skipped": False}
    store = ParquetStore(tmp_path, {})
    for step in range(40):
        row = {**told, "loss": 2.3 - step / 40, "recorded": step % 10 == 0, "overhead_s": 0.0, "step_s": 0.1}
        store.write(gradscope.Batch(step, (gradscope.Rows("steps", row),)))
    store.close()
    with watch:
        watch._recorded = 1
    first, finding, *remedy, last = capsys.readouterr().err.splitlines()
    assert first == "gradscope: The training learns: loss 2.26 -> 1.36, 40 steps, 4 recorded."
    assert finding.startswith("gradscope: [info] no step is recorded") and "to try first" in remedy[0]
    assert remedy[1] == "gradscope:     gradscope.attach(model, every=1)"
    assert last == f"gradscope: recorded in {tmp_path}; see it with: gradscope report {tmp_path}"


def test_models_of_earlier_folds_are_let_go(tmp_path: Path) -> None:
    gone = []
    with Watch(tmp_path, 1):
        for _ in range(3):
            model = nn.GRU(2, 3)
            optimizer = SGD(model.parameters(), 0.1)
            train(model, optimizer)
            gone.append(weakref.ref(model))
            del model, optimizer
            gc.collect()
        assert [reference() is None for reference in gone] == [True, True, True]
    assert len(list(tmp_path.rglob("run.json"))) == 3


def test_torch_is_left_as_it_was(tmp_path: Path) -> None:
    before, kernels = Optimizer.add_param_group, torch._VF.lstm
    with Watch(tmp_path, 1):
        assert Optimizer.add_param_group is not before
        train(model := nn.LSTM(2, 3), SGD(model.parameters(), 0.1))
        assert torch._VF.lstm is not kernels
    assert Optimizer.add_param_group is before and torch._VF.lstm is kernels


def test_what_goes_wrong_in_gradscope_does_not_reach_the_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with Watch(tmp_path / "file" / "below", None):
        train(model := nn.LSTM(2, 3), SGD(model.parameters(), 0.1))
    first, last = capsys.readouterr().err.splitlines()
    assert "cannot write the run folder" in first and "no step is recorded" in last


def test_without_recurrent_layers_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Watch(tmp_path / "it", None):
        train(model := nn.Linear(2, 1), SGD(model.parameters(), 0.1))
    assert "no torch optimizer took the parameters of a recurrent layer" in capsys.readouterr().err
    assert not (tmp_path / "it").exists()
