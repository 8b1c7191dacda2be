"""The plan of the house, held by reading the imports: attach -> capture -> families -> record -> show."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import forks
import pytest

import gradscope

HOUSE = Path(gradscope.__file__).parent
FILES = sorted(HOUSE.rglob("*.py"))

# What each room may see beside itself: of ours, and of others'. The standard library is free.
# A file within a room may have a row of its own, which then holds instead of the room's.
ARROWS: dict[str, tuple[str, str]] = {
    "types":           ("",                                                 "torch numpy"),
    "errors":          ("",                                                 ""),
    "private":         ("",                                                 "torch"),
    "version":         ("",                                                 ""),
    "cells":           ("types errors",                                     "torch"),
    "attach":          ("types errors private",                             "numpy torch"),
    "capture":         ("types errors private",                             "torch"),
    "families":        ("types errors private",                             "torch"),
    "record":          ("types errors",                                     "numpy pandas pyarrow"),
    "record.summary":  ("types errors",                                     "numpy"),
    "record.statistics": ("types errors",                                   "numpy torch"),
    "record.recorder": ("types errors",                                     "numpy torch"),
    "observe":         ("types errors private version attach capture families record", "torch"),
    "diagnose":        ("types errors cells",                               "numpy pandas torch"),
    "whatif":          ("types errors diagnose",                            "numpy pandas torch"),
    "plot":            ("types errors record",                              "numpy pandas matplotlib seaborn"),
    "report":          ("types errors record diagnose plot",            "numpy pandas matplotlib jinja2 markupsafe"),
    "run":             ("types errors record diagnose report",              "pandas"),
    "scope":           ("types errors record observe whatif run",           "torch"),
    "compare":         ("types errors report run",                          "pandas"),
    "__init__":        ("types errors attach run scope compare version",    ""),
    "testing":         ("types errors whatif run scope",                    "pandas torch"),
    "cli":             ("types compare demo PUBLIC",                        "click rich"),
    "cli.demo":        ("compare demo PUBLIC",                              "click torch"),
    "cli.view":        ("record PUBLIC",                                    "click"),
    "cli.run":         ("attach record PUBLIC",                             "click"),
    "cli.watch":       ("private attach diagnose PUBLIC",                   "torch"),
    "demo":            ("PUBLIC",                                           "sklearn torch"),
}  # fmt: skip
FREE = {*sys.stdlib_module_names, "__future__", "typing_extensions", "gradscope"}


def room(path: Path) -> str:
    """The dotted name of a file within the house: `families.lstm`."""
    parts = path.relative_to(HOUSE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def row(name: str) -> str | None:
    """The most particular row of the table that speaks of a room."""
    return next((key for key in sorted(ARROWS, key=len, reverse=True) if f"{name}.".startswith(f"{key}.")), None)


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """All of a file's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Every module that a file imports, anywhere in it, with the name taken from it (or nothing)."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            yield from ((node.module or "", alias.name) for alias in node.names)


def room_graph() -> dict[str, set[str]]:
    """The rooms that each room sees; the public names count as the file that has them."""
    sees: dict[str, set[str]] = {}
    for path in FILES:
        top = room(path).partition(".")[0]
        seen = {inside.partition(".")[0].replace("PUBLIC", "__init__") for inside, _ in of_ours(path)}
        sees.setdefault(top, set()).update(seen - {top})
    return sees


def of_ours(path: Path) -> Iterator[tuple[str, str]]:
    """The rooms that a file sees, or `PUBLIC`, with the name it takes from there."""
    for module, name in imports(path):
        top, _, inside = module.partition(".")
        if top == "gradscope":
            yield (inside or "PUBLIC"), name


@pytest.mark.parametrize("path", FILES, ids=room)
def test_arrows(path: Path) -> None:
    name = row(room(path))
    assert name, f"{room(path)} is a new room: say in ARROWS what it may see"
    ours, others = ARROWS[name]
    inside = {inside.partition(".")[0] for inside, _ in of_ours(path)}
    assert inside <= {*ours.split(), name.partition(".")[0]}
    outside = {module.partition(".")[0] for module, _ in imports(path)}
    assert outside <= FREE | set(others.split())


@pytest.mark.parametrize("path", [path for path in FILES if room(path).startswith(("cli", "demo"))], ids=room)
def test_commands_use_public_names_only(path: Path) -> None:
    taken = {name for inside, name in of_ours(path) if inside == "PUBLIC" and name}
    used = {
        node.attr
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gradscope"
    }
    assert taken | used <= {*gradscope.__all__, "__version__"}


# Names that begin with an underscore though they are public, or are read at many places: see `gradscope.private`.
KNOWN = {"_asdict", "_fields", "_replace", "_version", "_parameters", "_modules", "_forward_pre_hooks"}
OTHERS = {"_getframe", "_run_module_as_main", "_set_axes_scale"}
"""Of Python's and matplotlib's."""


def private_names(path: Path) -> Iterator[str]:
    """Names with an underscore that a file takes from others: attributes of anything, and what it imports of torch."""
    for module, name in imports(path):
        if module.partition(".")[0] == "torch":
            yield from (part for part in (*module.split("."), name) if part.startswith("_"))
    for node in nodes(path):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            yield node.attr


def made_here(path: Path) -> Iterator[str]:
    """Names that a file gives to what is its own: functions, classes, attributes of `self` and fields."""
    for node in nodes(path):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def test_private_names_of_torch_are_in_one_room() -> None:
    ours = {name for path in FILES for name in made_here(path)} | KNOWN | OTHERS
    found = {room(path): {*private_names(path)} - ours for path in FILES}
    assert {name for name, names in found.items() if names} == {"private"}


# What each module in integrations/ may see beside gradscope's public names and the standard library.
BRIDGES: dict[str, str] = {
    "accelerate":   "sessions | torch accelerate",
    "ignite":       "sessions | torch ignite",
    "lightning":    "sessions | lightning pytorch_lightning",
    "mlflow":       "tracking | mlflow matplotlib",
    "pytest":       "| pytest torch",
    "sb3":          "sessions | stable_baselines3",
    "scalars":      "| numpy",
    "sessions":     "| torch",
    "skorch":       "sessions | skorch",
    "tensorboard":  "scalars | crc32c numpy tensorboard torch werkzeug",
    "tracking":     "scalars | matplotlib",
    "transformers": "sessions | torch transformers",
    "wandb":        "tracking | wandb matplotlib",
}  # fmt: skip
PACKAGE = HOUSE.parent / "integrations" / "gradscope_integrations"
MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).with_suffix("").as_posix())
def test_integrations_see_public_names_and_their_framework(path: Path) -> None:
    seen = {*imports(path)}
    names = {name for module, name in seen if module == "gradscope" and name}
    assert names <= {*gradscope.__all__, "plot", "testing"}
    assert not any(module.startswith("gradscope.") for module, _ in seen)
    mine = path.relative_to(PACKAGE).with_suffix("").parts[0]
    others, _, frameworks = BRIDGES.get(mine, "|").partition("|")
    ours = {module.split(".")[1] for module, _ in seen if module.startswith(f"{PACKAGE.name}.")}
    assert ours <= {mine, *others.split()}
    tops = {module.partition(".")[0] for module, _ in seen}
    assert tops <= FREE | {PACKAGE.name} | set(frameworks.split())


def test_the_library_names_no_integration() -> None:
    assert not [path for path in FILES if PACKAGE.name in path.read_text(encoding="utf-8")]


def test_no_import_goes_round() -> None:
    """Lazy imports too: a room is finished when what it imports is, and nothing comes back to it."""
    sees = room_graph()
    while done := [name for name in sees if not sees[name] & sees.keys()]:
        for name in done:
            del sees[name]
    assert not sees


def test_the_table_has_no_row_too_many() -> None:
    used = {row(room(path)) for path in FILES}
    assert used == set(ARROWS)


def sizes(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, lines and most lines of each class, and of the body of each function without its docstring."""
    for node in nodes(path):
        if isinstance(node, ast.ClassDef):
            yield node.name, (node.end_lineno or 0) - node.lineno + 1, 200
        elif isinstance(node, ast.FunctionDef):
            body = node.body[0 if ast.get_docstring(node) is None else 1 :]
            yield node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0, 30


@pytest.mark.parametrize("path", [*FILES, *MODULES], ids=lambda path: path.relative_to(HOUSE.parent).as_posix())
def test_rooms_are_small_and_silent(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 300
    assert [name for name, lines, most in sizes(path) if lines > most] == []
    calls = [node.func for node in nodes(path) if isinstance(node, ast.Call)]
    assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls)


def test_public_names() -> None:
    assert len(gradscope.__all__) <= 12
    assert sorted(gradscope.__all__) == gradscope.__all__
    assert all(hasattr(gradscope, name) for name in gradscope.__all__)


def test_base_install_is_small() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((HOUSE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dependencies"] == ["torch>=2.6", "numpy", "pandas>=2.0", "pyarrow"]


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[str], str]:
    """What a Python says that has loaded torch alone."""

    def run(code: str) -> str:
        status, out, err = forks.code(code, tmp_path)
        assert status == 0, err
        return out.strip()

    return run


def test_import_loads_nothing_heavier_than_torch(fresh: Callable[[str], str]) -> None:
    heavy = "pandas pyarrow click rich matplotlib seaborn sklearn jinja2 tensorboard plotly IPython"
    code = f"import sys; from gradscope import attach; print(*(set('{heavy}'.split()) & set(sys.modules)))"
    assert fresh(code) == ""


def test_attach_stays_a_function(fresh: Callable[[str], str]) -> None:
    """The room `gradscope.attach` has the name of the function, and must not take its place once imported."""
    modules = ", ".join(f"gradscope.{room(path)}" for path in FILES if room(path).startswith("attach"))
    assert fresh(f"import {modules}; import gradscope; print(callable(gradscope.attach))") == "True"


def test_what_findings_say_to_type_works_after_import_alone(fresh: Callable[[str], str]) -> None:
    code = (
        "import gradscope, sys; before = 'gradscope.cells' in sys.modules; gradscope.cells.orthogonal_; print(before)"
    )
    assert fresh(code) == "False"
