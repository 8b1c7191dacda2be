"""Everything that a user reads of gradscope, as one text: `python tests/surface.py > tests/golden/surface.txt`.

Public names with their arguments, columns of tables, quantities, help texts, labels, and messages. It is there to be
read in one go: it should be one language.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

from click import Context

import gradscope
from gradscope import cli
from gradscope.observe.quantities import CORE, FULL
from gradscope.plot import style
from gradscope.record import TABLES

HOUSE = Path(gradscope.__file__).parent
WIDTH = 200


def names() -> Iterator[str]:
    """Public names, with arguments and their defaults."""
    for room in ("gradscope", "gradscope.cells", "gradscope.plot"):
        module = importlib.import_module(room)
        for name in module.__all__:
            value = getattr(module, name)
            yield f"{room}.{name}{_arguments(value)}"
            if inspect.isclass(value):
                ours = [kind for kind in reversed(value.__mro__) if kind.__module__.startswith("gradscope")]
                for attribute, member in {name: it for kind in ours for name, it in vars(kind).items()}.items():
                    if not attribute.startswith("_") and (callable(member) or isinstance(member, property)):
                        yield f"{room}.{name}.{attribute}{_arguments(member)}"


def _arguments(value: object) -> str:
    if isinstance(value, property) or not callable(value) or not (inspect.isfunction(value) or inspect.isclass(value)):
        return ""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return ""
    shown = [p.replace(annotation=inspect.Parameter.empty) for p in parameters if p.name != "self"]
    return f"({', '.join(map(str, shown))})"


def tables() -> Iterator[str]:
    """Columns by table, quantities, labels."""
    for name, table in TABLES.items():
        yield f"{name}: {', '.join(table.columns)}"
    yield f"core: {', '.join(CORE)}"
    yield f"full: {', '.join(FULL)}"
    for quantity, title in style.TITLES.items():
        yield f"{quantity}: {title} [{style.UNITS[quantity]}]"


def helps() -> Iterator[str]:
    """What `--help` says."""
    group = cli.commands()
    whole = Context(group, info_name="gradscope", terminal_width=100, **group.context_settings)
    for name, command in group.commands.items():
        yield f"$ gradscope {name} --help"
        yield command.get_help(Context(command, info_name=name, parent=whole, terminal_width=100))


def messages() -> Iterator[str]:
    """Texts in errors, warnings and notes, file by file; `{}` where something is put in."""
    for path in sorted(HOUSE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = [text for node in ast.walk(tree) for text in _said(node)]
        for text in dict.fromkeys(found):
            yield f"{path.relative_to(HOUSE).as_posix()}: {' '.join(text.split())}"


def _said(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        yield from _sentences(node.exc)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "warn":
        yield from _sentences(node)
    elif isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) and t.id.isupper() for t in node.targets):
        yield from _sentences(node.value)


def _sentences(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.JoinedStr):
        text = "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
        if " " in text:
            yield text
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        if " " in node.value:
            yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from _sentences(child)


def surface() -> str:
    """All of it."""
    parts = {"Names": names, "Tables and labels": tables, "Commands": helps, "Messages": messages}
    return "\n".join(f"== {title}\n\n" + "\n".join(part()) + "\n" for title, part in parts.items())


if __name__ == "__main__":
    import sys

    sys.stdout.write(surface())
