"""The command line says what it can do, and in one line why it cannot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import gradscope
from gradscope import cli

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command in this process: its exit status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gradscope", *arguments])
        return cli.main(), *capsys.readouterr()

    return run


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_teaches(call: Call, arguments: tuple[str, ...]) -> None:
    status, out, err = call(*arguments)
    assert (status, err) == (0, "")
    assert "gradscope.attach(model" in out
    assert "gradscope demo" in out


def test_demo_help(call: Call) -> None:
    status, out, _ = call("demo", "--help")
    assert status == 0
    assert "[rnn|lstm|gru|all]" in out


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
    ],
)
def test_bad_usage(call: Call, arguments: tuple[str, ...], reason: str) -> None:
    assert_refused(call(*arguments), reason)


@pytest.mark.parametrize("package, extra", [("click", "cli"), ("rich", "cli"), ("sklearn", "demo")])
def test_missing_extra(call: Call, monkeypatch: pytest.MonkeyPatch, package: str, extra: str, tmp_path: Path) -> None:
    for module in [name for name in sys.modules if name.startswith("gradscope.demo")]:
        monkeypatch.delitem(sys.modules, module)
    for module in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    assert_refused(call("demo", "-o", str(tmp_path)), f"pip install 'gradscope-rnn[{extra}]'")


def test_errors_of_ours_are_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise gradscope.GradscopeError("the folder\nis somebody else's")

    monkeypatch.setattr(cli, "commands", fail)
    assert_refused(call("demo"), "gradscope: the folder is somebody else's\n")


def test_as_a_process() -> None:
    """Without click, in a new Python: status 2 and one line."""
    code = "import sys; sys.modules['click'] = None; from gradscope.cli import main; sys.exit(main())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert_refused((run.returncode, run.stdout, run.stderr), "pip install 'gradscope-rnn[cli]'")


def assert_refused(answer: tuple[int, str, str], reason: str) -> None:
    status, out, err = answer
    assert (status, out) == (2, "")
    assert err.startswith("gradscope: ")
    assert err.count("\n") == 1
    assert reason in err
