"""`run`, `view` and `demo`, called with whatever: one line that names what is wrong; a script is as under python."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from forks import Ended
from gradscope_integrations.tensorboard import serve
from hypothesis import given, settings
from hypothesis import strategies as st
from reliability.shell import Shell

from gradscope import GradscopeError

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("tensorboard")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork")

NO_TEXT = os.fsdecode(b"\xff\xfename")
PLACES = (
    "missing", "missing.py", "folder", "empty.py", "broken.py", "unreadable.py", "no.zip", "bytes.py", "run", NO_TEXT,
    f"{NO_TEXT}.py", "a" * 300, "/dev/null", "/dev/null/below", "", " ", "\n", "../folder", "~", ".", "-",
)  # fmt: skip
WORDS = st.sampled_from(PLACES) | st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12)
OPTIONS = {
    "run": ("-m", "--logdir", "--every", "--every=0", "--every=x", "--logdir=empty.py", "--help", "--nonsense"),
    "view": ("--host", "--port", "--port=-1", "--port=70000", "--port=x", "--help", "--nonsense"),
    "demo": ("--task", "--cell", "--epochs", "--epochs=0", "-o", "--task=x", "--cell=elman", "--nonsense"),
}
OURS = "gradscope: "
EXAMPLES = int(os.environ.get("GRADSCOPE_EXAMPLES", "12"))
"""Of each kind. Each is a process; with 60 the file has taken eight minutes on a busy machine."""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("commands") / "here"
    (folder / "folder").mkdir(parents=True)
    (folder / "run" / "gradscope").mkdir(parents=True)
    (folder / "run" / "gradscope" / "run.json").write_text('{"schema_version": 1}')
    (folder / "empty.py").touch()
    (folder / f"{NO_TEXT}.py").touch()
    (folder / "broken.py").write_text("x = (\n")
    (folder / "bytes.py").write_bytes(b"x = '\xff\xfe'\n")
    (folder / "no.zip").write_bytes(b"PK\x03\x04 and then nothing")
    (folder / "unreadable.py").touch(mode=0)
    return Shell(folder)


def is_ours(ended: Ended, among: tuple[int, ...] = (0, 2)) -> None:
    """No traceback, the exit status as documented, one line where something was refused."""
    assert ended.status in among, ended
    assert "Traceback" not in ended.err, ended
    if ended.status == 2:
        assert ended.err.startswith(OURS) and ended.err.count("\n") == 1 and ended.err.endswith("\n"), ended
        assert len(ended.err) > len(OURS) + 5


@pytest.mark.parametrize("command", [("view",), ("report",), ("check",), ("compare", "folder")])
@pytest.mark.parametrize("name", ["a" * 300, "/".join(["b" * 200] * 30)], ids=["long name", "long path"])
def test_a_name_that_no_file_can_have(shell: Shell, command: tuple[str, ...], name: str) -> None:
    ended = shell.run(*command, name)
    is_ours(ended, among=(2,))


@pytest.mark.parametrize("command", ["view", "demo"])
def test_whatever_is_asked_for(shell: Shell, command: str) -> None:
    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.lists(st.sampled_from(OPTIONS[command]) | WORDS, max_size=5))
    def check(words: list[str]) -> None:
        is_ours(shell.run(command, *words))

    check()


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_whatever_is_to_be_run(shell: Shell, data: st.DataObject) -> None:
    """What python says of it, or else one line; python's status is 1 for a script with an error, 2 for none."""
    options = data.draw(st.lists(st.sampled_from(OPTIONS["run"]) | WORDS, max_size=2))
    script = data.draw(st.sampled_from(PLACES))
    ended = shell.run("run", *options, script, *data.draw(st.lists(WORDS, max_size=2)))
    mine = [line for line in ended.err.splitlines() if line.startswith(OURS)]
    assert ended.status in (0, 1, 2), ended
    if ended.status == 2:
        is_ours(ended)
    assert len(mine) == 1 or ended.out, ended  # a refusal, what was recorded, or the help
    assert "/gradscope/" not in ended.err.replace("gradscope/cli/__main__", ""), ended


NAMED: tuple[tuple[tuple[str, ...], str], ...] = (
    (("run",), "SCRIPT"),
    (("run", "missing.py"), "missing.py"),
    (("run", "missing"), "-m"),
    (("run", "-m", "missing"), "missing"),
    (("run", "--every", "0", "empty.py"), "--every"),
    (("run", "--every", "often", "empty.py"), "often"),
    (("run", "--logdir", "empty.py", "empty.py"), "empty.py"),
    (("run", "--nonsense", "empty.py"), "--nonsense"),
    (("run", f"{NO_TEXT}.no"), "name"),
    (("view",), "LOGDIR"),
    (("view", "missing"), "missing"),
    (("view", "empty.py"), "empty.py"),
    (("view", "run", "--port", "70000"), "--port"),
    (("view", "run", "--port", "http"), "http"),
    (("view", "run", "more"), "more"),
    (("demo", "--task", "chess"), "chess"),
    (("demo", "--cell", "elman"), "elman"),
    (("demo", "--epochs", "0"), "--epochs"),
    (("demo", "-o", "empty.py"), "empty.py"),
    (("demo", "-o", "/dev/null/below"), "/dev/null/below"),
    (("demo", "more"), "more"),
)


@pytest.mark.parametrize(("arguments", "named"), NAMED)
def test_the_message_names_it(shell: Shell, arguments: tuple[str, ...], named: str) -> None:
    ended = shell.run(*arguments)
    assert ended.status == 2
    is_ours(ended)
    assert named in ended.err


@pytest.mark.parametrize(
    "arguments", [("demo", "-o", NO_TEXT), ("view", "run"), ("view", "folder"), ("demo", "-o", "x")]
)
def test_what_is_fine_is_done(shell: Shell, arguments: tuple[str, ...]) -> None:
    assert shell.run(*arguments).status == 0


# --- what the script does is the script's

ENDS = st.one_of(
    st.integers(-300, 300).map(lambda n: f"sys.exit({n})"),
    st.sampled_from(["None", "'told'", "''", "'two\\nlines'", "(1, 2)", "True", "2.5", "[]"]).map(
        "sys.exit({})".format
    ),
    st.integers(0, 255).map(lambda n: f"sys.stdout.flush(); os._exit({n})"),
    st.sampled_from(["KILL", "TERM", "ABRT", "USR1"]).map(
        lambda name: f"sys.stdout.flush(); os.kill(os.getpid(), {int(getattr(signal, f'SIG{name}'))})"
    ),
    st.sampled_from(
        ["KeyError('it')", "ValueError()", "KeyboardInterrupt()", "SystemExit", "GeneratorExit()", "3"]
    ).map("raise {}".format),
    st.sampled_from(["1 / 0", "pass", "import nothing_of_the_kind", "def f(): f()\nf()", "assert sys.argv == 7"]),
    st.just("try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise OSError(5, 'again') from error"),
)


def uncounted(err: str) -> str:
    """How often a script can call itself before Python stops it depends on who called it."""
    return re.sub(r"repeated \d+ more times", "repeated", err)


@settings(max_examples=EXAMPLES, deadline=None)
@given(end=ENDS, arguments=st.lists(WORDS, max_size=3), name=st.sampled_from(["it.py", "no suffix", f"{NO_TEXT}.py"]))
def test_a_script_ends_as_it_would(shell: Shell, end: str, arguments: list[str], name: str) -> None:
    head = "import os, sys\nprint(ascii(sys.argv), __name__, ascii(sys.path[0]))\nsys.stderr.write('on the other\\n')\n"
    Path(shell.folder, name).write_text(head + end + "\n")
    expected, found = shell.python(name, *arguments), shell.run("run", name, *arguments)
    told = [line for line in found.err.splitlines(keepends=True) if line.startswith(OURS)]
    err = "".join(line for line in found.err.splitlines(keepends=True) if not line.startswith(OURS))
    assert (found.status, found.out, uncounted(err)) == expected._replace(err=uncounted(expected.err))
    killed = "os._exit" in end or "os.kill" in end
    assert len(told) == (0 if killed else 1)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port: Any = taken.getsockname()[1]
        with pytest.raises(GradscopeError, match=f"did not start: .*{port}"):
            serve(tmp_path, "localhost", port)
