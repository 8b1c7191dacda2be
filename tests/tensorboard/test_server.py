"""The plugin among TensorBoard's: it never breaks it, and serves nothing that is not its own."""

from __future__ import annotations

import gzip
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import gradscope_integrations.tensorboard
import numpy as np
import pytest
from boards import PREFIX, TAG, board, clip, recorded, steps, write
from gradscope_integrations.tensorboard import assets, serve
from gradscope_integrations.tensorboard.loader import GradscopeLoader
from gradscope_integrations.tensorboard.plugin import GradscopePlugin
from tensorboard.plugins import base_plugin

from gradscope import Batch, GradscopeError

VALUES = np.arange(1.0, 6.0)
PACKAGE = Path(gradscope_integrations.tensorboard.__file__).parent


def fresh(code: str) -> str:
    """What a new Python says."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_loader_imports_nothing_of_ours_and_the_plugin_nothing_of_torch() -> None:
    names = "[m for m in sys.modules if m.startswith(('gradscope', 'torch', 'numpy', 'plotly', 'pandas')) and '.' in m]"
    code = f"import sys; from tensorboard.plugins import base_plugin; before = set({names})\n"
    code += f"import gradscope_integrations.tensorboard.loader; print(sorted(set({names}) - before))\n"
    code += "import gradscope_integrations.tensorboard.plugin\n"
    code += "print({'torch', 'gradscope', 'pandas'} & set(sys.modules))"
    assert fresh(code) == "['gradscope_integrations.tensorboard', 'gradscope_integrations.tensorboard.loader']\nset()"


@pytest.mark.parametrize("missing", ["numpy", "gradscope_integrations.tensorboard.plugin", "werkzeug"])
def test_where_something_is_missing_the_tab_is_left_out(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in [name for name in sys.modules if name.startswith("gradscope_integrations.tensorboard.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert GradscopeLoader().load(base_plugin.TBContext()) is None


def test_tensorboard_starts_where_something_is_missing(tmp_path: Path) -> None:
    """The command itself, with all its plugins, and ours found by its entry point."""
    write(tmp_path, recorded(0, VALUES))
    for missing, status in {"gradscope_integrations.tensorboard.wire": 404, "": 200}.items():
        code = (
            f"import sys; sys.modules.update({{{missing!r}: None}} if {missing!r} else {{}})\n"
            "from tensorboard import program\n"
            "import urllib.request, urllib.error\n"
            "tensorboard = program.TensorBoard()\n"
            f"tensorboard.configure(argv=['', '--logdir', {str(tmp_path)!r}, '--port', '0', '--load_fast', 'false'])\n"
            "address = tensorboard.launch()\n"
            "print(urllib.request.urlopen(address).status)\n"
            "try:\n"
            f"    print(urllib.request.urlopen(address.rstrip('/') + {PREFIX!r} + 'runs').status)\n"
            "except urllib.error.HTTPError as error:\n"
            "    print(error.code)\n"
        )
        assert fresh(code).split() == ["200", str(status)]


def test_steps_to_keep_are_asked_for_unless_the_user_says_otherwise() -> None:
    from tensorboard import program

    for given, kept in {"": 0, "gradscope=7": 7, "scalars=3": 0}.items():
        tensorboard = program.TensorBoard()
        tensorboard.configure(argv=["tensorboard", "--logdir", "x", "--samples_per_plugin", given])
        assert tensorboard.flags.samples_per_plugin["gradscope"] == kept


def test_fewer_steps_kept_are_said(tmp_path: Path, loader: str) -> None:
    write(tmp_path, *(recorded(step, VALUES) for step in range(50)))
    with board(tmp_path, loader, "--samples_per_plugin", "gradscope=10") as here:
        (about,) = here.wait(lambda runs: bool(runs) and runs[0]["state"]["closed"])
        assert about["state"]["written"] == 50
        assert here.block("heatmap", run=about["run"], tag=TAG)[0]["steps_kept"] == 10


def test_what_tensorboard_asks() -> None:
    plugin = GradscopePlugin(base_plugin.TBContext())
    assert not plugin.is_active()
    about = plugin.frontend_metadata()
    assert (about.es_module_path, about.tab_name) == ("/index.js", "Gradscope")
    assert about.es_module_path in plugin.get_plugin_apps()


def test_every_route_is_documented() -> None:
    text = (PACKAGE / "http_api.md").read_text(encoding="utf-8")
    table = {line.split("`")[1].split("/<")[0] for line in text.splitlines() if line.startswith("| `")}
    routes = {route[1:].removesuffix("/*") for route in GradscopePlugin(base_plugin.TBContext()).get_plugin_apps()}
    assert routes <= table


def test_behind_a_prefix(tmp_path: Path, loader: str) -> None:
    write(tmp_path, recorded(0, VALUES))
    with board(tmp_path, loader, "--path_prefix", "/deep/tensorboard") as here:
        assert here.get("runs").status_code == 404
        assert here.get("runs", prefix="/deep/tensorboard" + PREFIX).status_code == 200
        entry = here.get("plugin_entry.html", prefix="/deep/tensorboard/data/", name="gradscope")
        assert 'import("./index.js")' in entry.text


def test_of_a_specification_of_folders(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, recorded(0, VALUES))
    spec = f"first:{tmp_path / 'one'},second:{tmp_path / 'two'}"
    with board(tmp_path, "python", "--logdir_spec", spec) as here:
        assert [about["label"] for about in here.wait(bool)] == ["first", "second"]


def test_labels_tell_runs_apart(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    write(tmp_path / "a", recorded(0, VALUES))
    with SummaryWriter(tmp_path / "a") as writer:
        write(tmp_path, recorded(0, VALUES), writer=writer)
    with board(tmp_path, "python") as here:
        assert [about["label"] for about in here.wait(bool)] == ["a", "a/gradscope"]


def test_an_empty_folder(tmp_path: Path, loader: str) -> None:
    with board(tmp_path, loader) as here:
        assert here.json("runs") == {"version": 1, "plotly": assets.plotly_version(), "runs": []}


def test_before_anything_was_recorded(tmp_path: Path, loader: str) -> None:
    write(tmp_path, Batch(0, (steps(recorded=False), clip())))
    with board(tmp_path, loader) as here:
        (about,) = here.wait(bool)
        assert (about["layers"], about["state"]["steps"], about["state"]["findings"]) == ([], 1, None)
        assert here.json("findings", run=about["run"]) == {"step": None, "findings": None}
        assert here.json("notes", run=about["run"]) == {"notes": [], "left_out": 0}
        assert len(here.block("layers", run=about["run"])[1]["step"]) == 0
        assert here.block("curves", run=about["run"], curve="reach")[0]["layers"] == []


def test_data_of_another_version(tmp_path: Path, loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradscope_integrations.tensorboard.state.VERSION", 2)
    write(tmp_path, recorded(0, VALUES))
    with board(tmp_path, loader) as here:
        (about,) = here.wait(bool)
        assert about["error"].endswith("it was written by another gradscope (event data version 2, not 1).")
        assert here.get("curves", run=about["run"], curve="reach").status_code == 400


@pytest.mark.parametrize(
    ("status", "route", "parameters"),
    [
        (400, "heatmap", {"run": "gradscope"}),
        (400, "heatmap", {"run": "gradscope", "tag": TAG, "rows": "0"}),
        (400, "heatmap", {"run": "gradscope", "tag": TAG, "cols": "99999999"}),
        (400, "heatmap", {"run": "gradscope", "tag": TAG, "row": "p51"}),
        (400, "heatmap", {"run": "gradscope", "tag": TAG, "from_": "x"}),
        (400, "profile", {"run": "gradscope", "tag": TAG, "step": "nan"}),
        (400, "series", {"run": "gradscope", "tag": TAG, "over": "all"}),
        (400, "clips", {"run": "gradscope", "rows": "1.5"}),
        (404, "heatmap", {"run": "gradscope", "tag": "grad_h/other/0/forward"}),
        (404, "heatmap", {"run": "gradscope", "tag": "run/state"}),
        (404, "heatmap", {"run": "../gradscope", "tag": TAG}),
        (404, "heatmap", {"run": "/etc/passwd", "tag": "/etc/passwd"}),
        (404, "units", {"run": "gradscope", "key": "rnn/0/forward"}),
        (404, "clips", {"run": "nobody"}),
        (404, "findings", {"run": "nobody"}),
        (404, "nothing", {}),
    ],
)
def test_wrong_questions(tmp_path: Path, loader: str, status: int, route: str, parameters: dict[str, str]) -> None:
    write(tmp_path, recorded(0, VALUES))
    with board(tmp_path, loader) as here:
        here.wait(bool)
        response = here.get(route, **parameters)
        assert (response.status_code, response.mimetype) == (status, "text/plain")


SECRETS = [
    "static/../plugin.py",
    "static/..%2fplugin.py",
    "static/%2e%2e/plugin.py",
    "static/%2e%2e%2f%2e%2e%2f%2e%2e%2fpyproject.toml",
    "static/%252e%252e/plugin.py",
    "static/..%5cplugin.py",
    "static//etc/passwd",
    "static/%2fetc%2fpasswd",
    "static/index.js%00",
    "static/",
    "static/.",
    "static/../static/../plugin.py",
    "../gradscope/static/../plugin.py",
    "plugin.py",
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a real server, for what a client without a socket would tidy up."""
    path = tmp_path_factory.mktemp("served")
    write(path / "exp", recorded(0, VALUES))
    with serve(path, "127.0.0.1", 0) as view:
        yield view.url.removesuffix("#gradscope")


@pytest.mark.parametrize("path", SECRETS)
def test_no_other_file_is_served(address: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(address.rstrip("/") + PREFIX + path)
    assert 400 <= error.value.code < 500
    error.value.close()


def test_our_own_files_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "static" / "views").mkdir(parents=True)
    (tmp_path / "static" / "index.js").write_text("export function render() {}")
    (tmp_path / "static" / "views" / "gates.css").write_text("p {}")
    (tmp_path / "static" / "notes.txt").write_text("not for the page")
    (tmp_path / "secret.js").write_text("secret")
    monkeypatch.setattr(assets, "STATIC", tmp_path / "static")
    with board(tmp_path, "python") as here:
        index = here.get("index.js")
        assert (index.status_code, index.mimetype, index.text) == (
            200,
            "text/javascript",
            "export function render() {}",
        )
        assert here.get("static/views/gates.css").mimetype == "text/css"
        for name in ("notes.txt", "../secret.js", "views", "views/../index.js"):
            assert here.get(f"static/{name}").status_code == 404


def test_plotly_is_served_from_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import plotly

    wanted = (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_bytes()
    with board(tmp_path, "python") as here:
        version = here.json("runs")["plotly"]
        response = here._client.get(f"{PREFIX}plotly.min.js?v={version}", headers={"Accept-Encoding": "gzip"})
        assert gzip.decompress(response.data) == wanted
        assert (response.mimetype, response.headers["Content-Encoding"]) == ("text/javascript", "gzip")
        assert response.headers["Cache-Control"] == "private, max-age=31536000"
        assert here.get("plotly.min.js", v="0.0").headers["Cache-Control"] == "no-cache, must-revalidate"
        monkeypatch.setattr(assets, "_plotly", lambda: None)
        assets.plotly.cache_clear()
        assert here.json("runs")["plotly"] is None
        assert here.get("plotly.min.js").status_code == 404
    assets.plotly.cache_clear()


def test_nothing_can_be_changed(tmp_path: Path) -> None:
    with board(tmp_path, "python") as here:
        response = here._client.post(PREFIX + "runs")
        assert (response.status_code, response.headers["Allow"]) == (405, "GET, HEAD")
        assert here._client.head(PREFIX + "runs").data == b""


def test_view(address: str, tmp_path: Path) -> None:
    with urllib.request.urlopen(address) as answer:
        assert answer.status == 200
    with pytest.raises(GradscopeError, match="is not a folder"):
        serve(tmp_path / "missing")
    port = int(address.rsplit(":", 1)[1].strip("/"))
    with pytest.raises(GradscopeError, match=f"TensorBoard did not start: .*{port}"):
        serve(tmp_path, "127.0.0.1", port)


def test_the_command(tmp_path: Path) -> None:
    write(tmp_path / "exp", recorded(0, VALUES))
    command = [sys.executable, "-W", "ignore", "-m", "gradscope.cli", "view", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address, _, way_out = process.stdout.readline().strip().partition("  ")
        assert (address.endswith("/#gradscope"), way_out) == (True, "(end with Ctrl-C)"), process.stderr
        with urllib.request.urlopen(address.partition("#")[0].rstrip("/") + PREFIX + "runs") as answer:
            assert answer.status == 200
    finally:
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, ""), errors
