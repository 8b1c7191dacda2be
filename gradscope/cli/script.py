"""Execution of a user's script in this process as by python: with its `sys.argv`, `sys.path` and `__main__`."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
import types
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import TracebackType
from typing import Any

import click

_HOUSE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


@dataclass(frozen=True, slots=True)
class Script:
    """A script.

    Attributes:
        target: the file, the folder, or the module, as typed.
        arguments: `sys.argv[1:]` of the script.
        as_module: `target` is a module.
    """

    target: str
    arguments: tuple[str, ...]
    as_module: bool

    @classmethod
    def find(cls, target: str, arguments: tuple[str, ...], as_module: bool) -> Script:
        """Find the script.

        Raises:
            ClickException: there is no such script.
        """
        if not as_module and not os.path.exists(target):
            hint = "; for a module, give -m" if "/" not in target and not target.endswith(".py") else ""
            raise click.ClickException(f"there is no file {target!r}{hint}")
        if as_module and importlib.util.find_spec(target.partition(".")[0]) is None and not _beside(target):
            raise click.ClickException(f"there is no module {target!r}")
        return cls(target, arguments, as_module)

    @property
    def name(self) -> str:
        """The name of its run."""
        if not self.as_module:
            return Path(self.target).resolve().stem
        return self.target.removesuffix(".__main__").rpartition(".")[2]


def execute(script: Script, around: AbstractContextManager[object]) -> int:
    """Run a script to its end within a context, and pass its exceptions on, `SystemExit` included."""
    try:
        with around:
            if script.as_module:
                _module(script)
            else:
                main, code = _file(script)
                exec(code(), main.__dict__)
    except BaseException:
        hide_ours()
        raise
    return 0


def _beside(module: str) -> bool:
    """True if a module is in the current folder, where `python -m` looks first."""
    return PathFinder.find_spec(module.partition(".")[0], [os.getcwd()]) is not None


def _main(**attributes: Any) -> types.ModuleType:
    """Install a fresh `__main__`; it stays for functions that run at exit."""
    main = types.ModuleType("__main__")
    main.__dict__.update({"__builtins__": sys.modules["builtins"], "__spec__": None, "__package__": None, **attributes})
    sys.modules["__main__"] = main
    return main


def _put_first(folder: str) -> None:
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder


def _file(script: Script) -> tuple[types.ModuleType, Any]:
    path = os.path.abspath(script.target)
    sys.argv = [script.target, *script.arguments]
    spec = None if os.path.isfile(path) and path.endswith(".py") else PathFinder.find_spec("__main__", [path])
    if spec is not None:  # a folder or an archive with a __main__.py in it
        sys.path[0] = path
        return _of(spec)
    _put_first(os.path.dirname(os.path.realpath(path)))
    loader = SourceFileLoader("__main__", path)
    return _main(__file__=path, __loader__=loader, __cached__=None), lambda: compile(
        loader.get_data(path), path, "exec", dont_inherit=True
    )


def _module(script: Script) -> None:
    """Run a module with the function behind `python -m`, for the same tracebacks and error messages."""
    _put_first(os.getcwd())
    sys.argv = ["-m", *script.arguments]
    _main()
    runpy._run_module_as_main(script.target)  # type: ignore[attr-defined]


def _of(spec: ModuleSpec) -> tuple[types.ModuleType, Any]:
    loader: Any = spec.loader
    attributes = {"__file__": spec.origin, "__cached__": spec.cached, "__loader__": loader, "__package__": spec.parent}
    return _main(**attributes, __spec__=spec), lambda: loader.get_code(spec.name)


def hide_ours() -> None:
    """Hide gradscope's frames in the exception that ends the process."""
    show = sys.excepthook

    def shown(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        clean(error)
        show(kind, error, error.__traceback__)

    sys.excepthook = shown


def clean(error: BaseException) -> None:
    """Remove gradscope's frames from an exception and from its causes."""
    pending, done = [error], set[int]()
    while pending:
        error = pending.pop()
        if id(error) in done:
            continue
        done.add(id(error))
        error.__traceback__ = _without_ours(error.__traceback__)
        causes = (error.__cause__, error.__context__, *getattr(error, "exceptions", ()))
        pending += [cause for cause in causes if isinstance(cause, BaseException)]


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    frames: list[TracebackType] = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    last = max((place for place, frame in enumerate(frames) if _runs_the_script(frame)), default=-1)
    rest: TracebackType | None = None
    for frame in reversed(frames[last + 1 :]):
        if not frame.tb_frame.f_code.co_filename.startswith(_HOUSE):
            rest = TracebackType(rest, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return rest


def _runs_the_script(trace: TracebackType) -> bool:
    """True for the frame that began the script: earlier frames are not the script's."""
    code = trace.tb_frame.f_code
    return code.co_name == "execute" and code.co_filename.startswith(_HOUSE)
