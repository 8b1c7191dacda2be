"""Places in torch that gradscope replaces while a listener is armed, and restores exactly afterwards."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch.compiler import is_dynamo_compiling

from gradscope.attach.uncompiled import as_written, uncompiled
from gradscope.private import has_compiled, operators, set_eval_frame

Listener = TypeVar("Listener")
Restore = Callable[[], None]


@dataclass(eq=False)
class Handle(Generic[Listener]):
    """One listener's place in a seam."""

    seam: Seam[Listener]
    listener: Listener | None = field(repr=False)
    armed: bool = True

    def arm(self, wanted: bool) -> None:
        """Start or stop receiving events. Torch is unchanged while no handle of a seam is armed."""
        if wanted != self.armed and self.listener is not None:
            self.armed = wanted
            self.seam.settle()

    def remove(self) -> None:
        """Stop listening at once, even in the middle of an event. Idempotent."""
        self.armed, self.listener = False, None
        self.seam.leave(self)


@dataclass(eq=False)
class Seam(Generic[Listener]):
    """A place in torch that is replaced while any listener is armed. Listeners come and leave in any order."""

    install: Callable[[], Restore]  # see `replace`
    restore: Restore | None = None
    handles: tuple[Handle[Listener], ...] = ()
    """In order of arrival. Events go to armed handles; a caller reads each at its turn, and so heeds removals."""
    _lock: Any = field(default_factory=threading.RLock)  # re-entrant: the garbage collector may close a scope in here

    def listen(self, listener: Listener, *, armed: bool = True) -> Handle[Listener]:
        """Add a listener after the present ones."""
        handle = Handle(self, listener, armed)
        with self._lock:
            self.handles = (*self.handles, handle)
            try:
                self.settle()
            except BaseException:
                self.handles = self.handles[:-1]
                raise
        return handle

    def leave(self, handle: Handle[Listener]) -> None:
        """Remove a handle; called by `Handle.remove`."""
        with self._lock:
            self.handles = tuple(other for other in self.handles if other is not handle)
            self.settle()

    def settle(self) -> None:
        """Replace or restore the place. After any `torch.compile` it stays replaced: a change would recompile code."""
        with self._lock:
            if any(handle.armed for handle in self.handles):
                self.restore = self.restore or self.install()
            elif self.restore and not (self.handles and has_compiled()):
                restore, self.restore = self.restore, None
                restore()

    @property
    def busy(self) -> bool:
        """True if any handle is armed."""
        return any(handle.armed for handle in self.handles)


def replace(*places: tuple[Any, str, Callable[..., Any]]) -> Restore:
    """Replace each `(owner, name)` by `around(original, *args, **kwargs)`: all of them or none.

    An owner is anything with attributes: a module, a class (the name is a method), a closure cell (`"cell_contents"`).
    `torch.compile` and `torch.jit.script` compile the original, as without the seam; `around` receives the calls that
    they leave to Python.
    """
    with ExitStack() as undo:
        for place in places:
            undo.callback(_replace(*place))
        return undo.pop_all().close


@uncompiled
def _replace(owner: Any, name: str, around: Callable[..., Any]) -> Restore:
    inherited = hasattr(owner, "__dict__") and name not in owner.__dict__
    original = getattr(owner, name)
    scripted = operators()  # TorchScript's table of operators: it cannot read builtins
    live = True

    @functools.wraps(original)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        if not live or is_dynamo_compiling():
            return original(*args, **kwargs)
        compiler = set_eval_frame(None)
        if compiler is None:
            return around(original, *args, **kwargs)
        return as_written(compiler, around, original, args, kwargs)

    def restore() -> None:
        nonlocal live
        live = False
        scripted.pop(id(replacement), None)
        if getattr(owner, name, None) is not replacement:
            return  # another program has patched on top: its patch stays, and ours beneath it only passes calls on
        delattr(owner, name) if inherited else setattr(owner, name, original)

    if operator := scripted.get(id(original)):
        scripted[id(replacement)] = operator
    setattr(owner, name, replacement)
    return restore
