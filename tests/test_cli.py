"""The command line says what it can do, and in one line why it cannot."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import forks
import pytest
from made_runs import CLIPPING, ENCODER, HEALTHY, VANISHING, layer, timesteps

import gradscope
from gradscope import cli
from gradscope.record import ParquetStore
from gradscope.run import Run
from gradscope.types import Batch, Finding, Rows

Call = Callable[..., tuple[int, str, str]]
COMMANDS = ("run", "report", "compare", "view", "demo", "check")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command in this process: its exit status, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gradscope", *map(str, arguments)])
        return cli.main(), *capsys.readouterr()

    return run


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What every run is found to have."""
    findings = [VANISHING, CLIPPING]
    monkeypatch.setattr(Run, "findings", lambda self: list(findings))
    return findings


@pytest.fixture
def logdir(tmp_path: Path) -> Path:
    return written(tmp_path / "exp1")


def written(logdir: Path) -> Path:
    store = ParquetStore(logdir, {"layers": {}})
    told = {"optimizer": "SGD", "loss": 1.0, "grad_norm": 1.0, "nonfinite": 0, "recorded": True, "skipped": False}
    steps = Rows("steps", {**told, "overhead_s": 0.0, "step_s": 0.1})
    store.write(Batch(0, (*layer(ENCODER, 8, -0.5), timesteps(ENCODER, "cell", [1.0] * 8), steps)))
    store.close()
    return logdir


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_teaches(call: Call, arguments: tuple[str, ...]) -> None:
    status, out, err = call(*arguments)
    assert (status, err) == (0, "")
    assert "gradscope.attach(model" in out and "gradscope demo" in out
    places = [out.index(f"\n  {command} ") for command in COMMANDS]
    assert places == sorted(places)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches(call: Call, command: str) -> None:
    status, out, _ = call(command, "--help")
    assert status == 0 and len(out.splitlines()) > 8
    assert max(map(len, out.splitlines())) <= 100


def test_demo_help(call: Call) -> None:
    _, out, _ = call("demo", "--help")
    assert "[rnn|lstm|gru|all]" in out and "[digits|adding|copy|tagging]" in out


def test_version(call: Call) -> None:
    assert call("--version") == (0, f"gradscope {gradscope.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("dmeo",), "No such command 'dmeo'"),
        (("demo", "--cell", "elman"), "'elman' is not one of"),
        (("demo", "--epochs", "0"), "0 is not in the range"),
        (("demo", "extra"), "unexpected extra argument"),
        (("--loud",), "No such option"),
        (("demo", "-o", __file__), "is a file"),
        (("demo", "-o", f"{__file__}/below"), "cannot write to"),
        (("report",), "Missing argument 'LOGDIR'"),
        (("report", "nowhere"), "nowhere does not exist: there is no gradscope/run.json"),
        (("check", "nowhere"), "nowhere does not exist"),
        (("view", "nowhere"), "nowhere does not exist"),
        (("compare", "nowhere"), "nowhere does not exist"),
        (("run",), "Missing argument 'SCRIPT'"),
        (("run", "nowhere.py"), "there is no file 'nowhere.py'"),
        (("run", "nowhere"), "for a module, give -m"),
        (("run", "-m", "nowhere.at.all"), "there is no module 'nowhere.at.all'"),
        (("run", "--every", "0", __file__), "0 is not in the range"),
        (("run", "--evry", "1", __file__), "No such option"),
    ],
)
def test_bad_usage(call: Call, arguments: tuple[str, ...], reason: str) -> None:
    assert_refused(call(*arguments), reason)


@pytest.mark.parametrize("package, extra", [("click", "cli"), ("rich", "cli"), ("sklearn", "demo")])
def test_missing_extra(call: Call, monkeypatch: pytest.MonkeyPatch, package: str, extra: str, tmp_path: Path) -> None:
    without(monkeypatch, package)
    assert_refused(call("demo", "-o", tmp_path), f"pip install 'gradscope-rnn[{extra}]'")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib", "seaborn"])
def test_missing_report_extra(
    call: Call, monkeypatch: pytest.MonkeyPatch, package: str, logdir: Path, found: list[Finding]
) -> None:
    without(monkeypatch, package)
    assert_refused(call("report", logdir), "pip install 'gradscope-rnn[report]'")
    assert_refused(call("compare", logdir, "-o", logdir / "it.html"), "pip install 'gradscope-rnn[report]'")


def test_missing_tensorboard_extra(call: Call, monkeypatch: pytest.MonkeyPatch, logdir: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", {"tensorboard": None}.get)
    assert_refused(call("view", logdir), "pip install 'gradscope-rnn[tensorboard]'")


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    from gradscope.report import render

    render._templates.cache_clear()
    for module in [name for name in sys.modules if name.startswith(("gradscope.demo", "gradscope.cli."))]:
        monkeypatch.delitem(sys.modules, module)
    for module in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)


def test_errors_of_ours_are_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise gradscope.GradscopeError("the folder\nis somebody else's")

    monkeypatch.setattr(cli, "commands", fail)
    assert_refused(call("demo"), "gradscope: the folder is somebody else's\n")


def test_as_a_process(tmp_path: Path) -> None:
    """Without click, in a new Python: status 2 and one line."""
    code = "import sys; sys.modules['click'] = None; from gradscope.cli import main; sys.exit(main())"
    assert_refused(forks.code(code, tmp_path), "pip install 'gradscope-rnn[cli]'")


def test_report_is_written_beside_the_run(call: Call, logdir: Path, found: list[Finding]) -> None:
    status, out, err = call("report", logdir)
    assert (status, err) == (0, "")
    assert "vanishing_gradient" in out and out.endswith(f"Report: {logdir / 'report.html'}\n")
    assert (logdir / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("form", "start"), [("text", "gradscope report"), ("md", "# gradscope report"), ("json", "{")])
def test_report_on_stdout(call: Call, logdir: Path, found: list[Finding], form: str, start: str) -> None:
    status, out, err = call("report", logdir, "--format", form)
    assert (status, err) == (0, "") and out.startswith(start)
    if form == "json":
        assert json.loads(out)["findings"][0]["code"] == "vanishing_gradient"
    assert call("report", logdir, "-o", "-")[1].startswith("<!DOCTYPE html>")


def test_report_prints_one_screen_and_the_rest_on_demand(
    call: Call, logdir: Path, found: list[Finding], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, undrawn: None
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, screen, _ = call("report", logdir, "--format", "text")
    _, full, _ = call("report", logdir, "--format", "text", "--full")
    assert screen.splitlines()[1].endswith("loss 1.00, 1 step, 1 recorded.")
    assert "To try first: " in screen and "SETTINGS" not in screen and "\x1b" not in screen
    assert "SETTINGS" in full and max(map(len, screen.splitlines()[1:])) <= 80
    assert screen in call("report", logdir)[1]
    call("report", logdir, "-o", tmp_path / "it.txt")
    assert "SETTINGS" in (tmp_path / "it.txt").read_text(encoding="utf-8")


def test_report_where_stdout_knows_ascii_only(logdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "argv", ["gradscope", "report", str(logdir), "--format", "text"])
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main() == 0
    out = stdout.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "?" not in out and "***" in out


def test_report_goes_by_the_suffix(call: Call, logdir: Path, found: list[Finding], tmp_path: Path) -> None:
    call("report", logdir, "-o", tmp_path / "new" / "it.md")
    assert (tmp_path / "new" / "it.md").read_text(encoding="utf-8").startswith("# gradscope")
    assert_refused(call("report", logdir, "-o", tmp_path / "it.pdf"), "the suffix is of no known format")
    assert_refused(call("report", logdir, "-o", logdir / "gradscope/run.json/x.html"), "cannot write to")


def test_compare(call: Call, logdir: Path, found: list[Finding], tmp_path: Path) -> None:
    other, output = written(tmp_path / "deep" / "exp1"), tmp_path / "both.json"
    assert call("compare", logdir, other, "-o", output)[0] == 0
    names = [run["name"] for run in json.loads(output.read_text(encoding="utf-8"))["runs"]]
    assert names == [str(logdir), str(other)]
    assert_refused(call("compare", logdir, logdir, "-o", output), "appears twice")


@pytest.mark.parametrize(
    ("findings", "level", "status"),
    [
        ([HEALTHY], "warning", 0),
        ([CLIPPING], "warning", 1),
        ([CLIPPING], "critical", 0),
        ([CLIPPING, VANISHING], "critical", 1),
        ([], "warning", 0),
    ],
)
def test_check(
    call: Call, logdir: Path, found: list[Finding], findings: list[Finding], level: str, status: int
) -> None:
    found[:] = findings
    got, out, err = call("check", logdir, "--fail-on", level)
    assert (got, err) == (status, "")
    assert all(finding.code in out for finding in findings)


def test_tables_fit_a_narrow_terminal(
    call: Call, logdir: Path, found: list[Finding], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = call("check", logdir)
    table, _, hint = out.partition("Reasons and remedies: ")
    assert hint == f"gradscope report {logdir}\n"  # in one line, to be copied
    assert max(map(len, table.splitlines())) <= 60


def test_view(call: Call, logdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    class Served(SimpleNamespace):
        def __enter__(self) -> Served:
            return self

        def __exit__(self, *exception: object) -> None:
            asked.append("stopped")

        def wait(self) -> int:
            raise KeyboardInterrupt

    def serve(*given: object) -> Served:
        asked.extend(given)
        return Served(url="http://localhost:6007/#gradscope")

    monkeypatch.setattr("gradscope_integrations.tensorboard.view.serve", serve)
    status, out, _ = call("view", logdir, "--port", "6007")
    assert status == 0 and "http://localhost:6007/#gradscope" in out
    assert asked == [logdir, "localhost", 6007, "stopped"]
    (empty := logdir.parent / "not yet").mkdir()
    status, _, err = call("view", empty)
    assert status == 0 and f"{empty} holds no records yet. Train with: gradscope run --logdir '{empty}' train.py" in err
    ParquetStore(empty, {"layers": {}}).close()
    assert "no recorded step yet" in call("view", empty)[2] and "--every 1" in call("view", empty)[2]


def assert_refused(answer: tuple[int, str, str], reason: str) -> None:
    status, out, err = answer
    assert (status, out) == (2, "")
    assert err.startswith("gradscope: ")
    assert err.count("\n") == 1
    assert reason in err


def test_a_folder_of_many_runs(call: Call, tmp_path: Path, found: list[Finding], undrawn: None) -> None:
    pytest.importorskip("duckdb")
    for name in ("lr=1", "lr=10"):
        written(tmp_path / name)
    status, out, err = call("report", tmp_path)
    assert (status, err) == (0, "") and "lr=10" in out and "vanishing_gradient" in out
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("<svg") == 5
    told = json.loads(call("report", tmp_path, "--format", "json")[1])
    assert [row["run"] for row in told["rows"]] == ["lr=1", "lr=10"]
    status, out, err = call("check", tmp_path)
    assert (status, err) == (1, "") and "2 of 2 runs" in out
    found.clear()
    found.append(HEALTHY)
    assert call("check", tmp_path)[0] == 0
    status, out, _ = call("compare", tmp_path, "-o", tmp_path / "it.md")
    assert status == 0 and "| lr=10 |" in (tmp_path / "it.md").read_text(encoding="utf-8")


def test_compare_refuses_what_nobody_could_tell_apart(call: Call, tmp_path: Path) -> None:
    for number in range(17):
        (tmp_path / f"{number}" / "gradscope").mkdir(parents=True)
        (tmp_path / f"{number}" / "gradscope" / "run.json").write_text('{"schema_version": 1}')
    status, _, err = call("compare", tmp_path)
    assert status == 2 and "17 runs" in err and err.count("\n") == 1 and "gradscope report" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_in_help_stand_on_lines_of_their_own(call: Call, command: str) -> None:
    _, out, _ = call(command, "--help")
    assert "\\b" not in out
    examples = [line for line in out.splitlines() if line.startswith("      gradscope ")]
    assert command in ("view", "demo") or len(examples) >= 2
