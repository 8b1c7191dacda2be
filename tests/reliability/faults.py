"""The faults: what happens, and what is promised of training and folder; `docs/reliability.md` has them as a table."""

from __future__ import annotations

import errno
import math
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from reliability.stage import AT, STEPS, Stage, stage
from torch import Tensor
from torch.utils.data import DataLoader

from gradscope.observe.step import Recording
from gradscope.record import parts
from gradscope.types import Batch


@dataclass(frozen=True)
class Fault:
    """One of them.

    Attributes:
        name: of the test.
        make: a training in which it happens.
        ends: how the training ends, with a scope as without one; None if it goes on to its end.
        warns: what gradscope warns of; empty if it has nothing to do with it.
        cause: what `strict=True` raises for; None where that changes nothing.
        kept: so many steps are in the folder, or at least so many where the fault is the folder's.
        sinks: of the scope.
        empty: steps in which there is nothing to record.
    """

    name: str
    make: Callable[[], Stage]
    ends: type[BaseException] | None = None
    warns: str = ""
    cause: type[BaseException] | None = None
    kept: int = STEPS
    sinks: Callable[[], Sequence[Any]] = lambda: ()
    empty: frozenset[int] = frozenset()


# --- the user's own


def before(step: int, act: Callable[[Stage], Any], **options: Any) -> Callable[[], Stage]:
    def make() -> Stage:
        one = stage(**options)
        one.before[step] = act
        return one

    return make


def spoilt(spoil: Callable[[Tensor], Tensor]) -> Callable[[], Stage]:
    def make() -> Stage:
        one = stage()
        one.spoil[AT] = spoil
        return one

    return make


def raises(kind: type[BaseException]) -> Callable[..., Any]:
    def act(*_: Any) -> Any:
        raise kind("the user's own")

    return act


def in_backward(kind: type[BaseException]) -> Callable[[Tensor], Tensor]:
    def spoil(loss: Tensor) -> Tensor:
        loss.register_hook(raises(kind))
        return loss * 1.0 if not loss.requires_grad else loss

    return spoil


def hooked(one: Stage) -> None:
    """A hook in the middle of the way back, between two layers that are watched."""
    one.model.rnn.register_forward_hook(
        lambda module, args, result: result[0].register_hook(raises(ValueError)) and None
    )


def broken(how: str) -> Callable[[Stage], None]:
    def act(one: Stage) -> None:
        one.model.own.broken = how

    return act


def put(value: float, where: str) -> Callable[[Stage], None]:
    """A value that is not finite: in the input, a weight, a bias."""

    def act(one: Stage) -> None:
        if where == "input":
            one.batches[AT][2, 0, 1] = value
            return
        with torch.no_grad():
            one.model.get_parameter(where).view(-1)[1] = value

    return act


def spoiled_state(value: float) -> Callable[[Stage], None]:
    """The state that a cell hands on is no longer finite."""

    def act(one: Stage) -> None:
        one.model.cell.register_forward_hook(lambda module, args, state: tuple(part * value for part in state))

    return act


def sized(*shapes: tuple[int, int], **options: Any) -> Callable[[], Stage]:
    """Batches of these lengths and sizes in turn."""

    def make() -> Stage:
        one = stage(**options)
        one.batches = [torch.randn(*shapes[k % len(shapes)], 3) for k in range(len(one.batches))]
        return one

    return make


def forked(one: Stage) -> None:
    """A child goes on training and closes the scope; nothing of that may be in the parent's folder."""
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        return
    status = 1
    try:
        one.before.clear()
        one.train()
        if one.scope is not None:
            one.scope.close()
        status = 0
    finally:
        os._exit(status)


def loaded() -> Stage:
    """Batches come from the workers of a DataLoader, forked while the scope writes."""
    one = stage()
    one.batches = Loaded(DataLoader(one.batches, batch_size=None, num_workers=1))  # type: ignore[assignment]
    return one


class Loaded:
    """As a list of batches."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        yield from self.loader

    def __len__(self) -> int:
        return STEPS


def beside(one: Stage) -> None:
    """Another thread trains another model, with a scope of its own, until it has made as many steps."""
    other = stage()
    thread = threading.Thread(target=_train_beside, args=(other, one.scope is not None))
    thread.start()
    thread.join()


def _train_beside(other: Stage, scoped: bool) -> None:
    import gradscope

    with torch.random.fork_rng():
        if not scoped:
            return other.train()
        with gradscope.attach(other.model, every=1, strict=True):
            return other.train()


# --- gradscope's


def failing(owner: Any, name: str, error: BaseException, times: int = 10**9) -> Callable[[], Stage]:
    """Something of gradscope's raises from step `AT` on."""

    def make() -> Stage:
        one, left = stage(), iter(range(times))
        original = getattr(owner, name)

        def fail(*args: Any, **options: Any) -> Any:
            if next(left, None) is None:
                return original(*args, **options)
            raise error

        def begin(one: Stage) -> None:
            if one.scope is not None:
                setattr(owner, name, fail)

        one.before[AT], one.undo = begin, lambda: setattr(owner, name, original)
        return one

    return make


class Failing:
    """A sink that raises."""

    def write(self, batch: Batch) -> None:
        if batch.step >= AT:
            raise ConnectionError("no route to host")

    def close(self) -> None:
        raise ConnectionError("no route to host")


class Hanging:
    """A sink that never returns."""

    def write(self, batch: Batch) -> None:
        threading.Event().wait(3600)

    def close(self) -> None:
        threading.Event().wait(3600)


# --- the folder's


def folder_gone(one: Stage) -> None:
    if one.logdir is not None:
        shutil.rmtree(one.logdir)


def contents_gone(one: Stage) -> None:
    if one.logdir is not None:
        for entry in (one.logdir / "gradscope").iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def mounted(kind: str) -> Callable[[], Stage]:
    """A real file system that is full, or read-only, from step `AT` to the end of the training or for good."""

    def make() -> Stage:
        one = stage()

        def begin(one: Stage) -> None:
            if one.logdir is None:
                return
            if kind == "full":
                fill = one.logdir / "fill"
                with open(fill, "wb", buffering=0) as file:
                    _write_all(file)
            else:
                _run("mount", "--bind", one.logdir, one.logdir)
                _run("mount", "-o", "remount,bind,ro", one.logdir)

        one.before[AT] = begin
        return one

    return make


def mended(kind: str) -> Callable[[], Stage]:
    def make() -> Stage:
        one = mounted(kind)()

        def mend(one: Stage) -> None:
            if one.logdir is not None and kind == "full":
                (one.logdir / "fill").unlink()
            elif one.logdir is not None:
                _run("umount", "--lazy", one.logdir)

        one.before[STEPS - 3] = mend
        return one

    return make


def _write_all(file: Any) -> None:
    for size in (4096, 1):
        try:
            while True:
                file.write(b"x" * size)
        except OSError as error:
            assert error.errno == errno.ENOSPC


def _run(*command: Any) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


def can_mount(folder: Path) -> bool:
    """Whether this process may mount; makes `folder` a small file system of its own if so."""
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


NO_ROOM = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
CANNOT = r"RecordError: gradscope cannot write rows up to step \d+"

ANY_ROOT: tuple[Fault, ...] = (
    Fault("an exception in the loop", before(AT, raises(RuntimeError)), ends=RuntimeError, kept=AT),
    Fault("an exception in a backward pass", spoilt(in_backward(RuntimeError)), ends=RuntimeError, kept=AT),
    Fault("a hook of the user's that raises", before(AT, hooked), ends=ValueError, kept=AT),
    Fault("Ctrl-C in the loop", before(AT, raises(KeyboardInterrupt)), ends=KeyboardInterrupt, kept=AT),
    Fault("Ctrl-C in a backward pass", spoilt(in_backward(KeyboardInterrupt)), ends=KeyboardInterrupt, kept=AT),
    Fault("a cell of the user's that raises", before(AT, broken("raises")), ends=ZeroDivisionError, kept=AT),
    Fault("a cell of the user's that changes its mind", before(AT, broken("odd"))),
    *(
        Fault(f"{value} in {where}", before(AT, put(value, where)))
        for where in ("input", "rnn.weight_hh_l0", "rnn.bias_ih_l1", "cell.weight_ih", "own.linear.weight")
        for value in (math.nan, math.inf)
    ),
    *(Fault(f"{value} in the states", before(AT, spoiled_state(value))) for value in (math.nan, math.inf)),
    Fault("NaN in the loss", spoilt(lambda loss: loss * math.nan)),
    Fault("infinite gradients", spoilt(lambda loss: loss * math.inf)),
    Fault("length 0", sized((0, 3)), ends=RuntimeError, kept=0),
    Fault("length 1", sized((1, 3))),
    Fault("batch size 0", sized((4, 0)), empty=frozenset(range(STEPS))),
    Fault("batch size 1", sized((4, 1))),
    Fault("hidden size 1", sized((4, 3), hidden=1)),
    Fault("10,000 timesteps", sized((10_000, 1), hidden=1, steps=1, layers=1), kept=1),
    Fault("changing lengths and batch sizes", sized((4, 3), (1, 1), (9, 2), (2, 5), (4, 0)), empty=frozenset({4})),
    Fault("a fork in mid-run", before(AT, forked)),
    Fault("workers of a DataLoader", loaded),
    Fault("another thread with a scope of its own", before(AT, beside)),
    Fault(
        "an observation of gradscope's that fails",
        failing(Recording, "observe", ArithmeticError("ours")),
        warns="gradscope failed: ArithmeticError: ours",
        cause=ArithmeticError,
    ),
    Fault(
        "an analysis of gradscope's that fails",
        failing(Recording, "analyse", torch.OutOfMemoryError("ours")),
        warns="gradscope failed: OutOfMemoryError: ours",
        cause=torch.OutOfMemoryError,
    ),
    Fault(
        "a sink that raises", stage, warns="the sink Failing failed", cause=ConnectionError, sinks=lambda: [Failing()]
    ),
    Fault("a sink that hangs", stage, warns="the sink Hanging has not finished", sinks=lambda: [Hanging()]),
    Fault("no room, for a while", failing(parts, "write", NO_ROOM, 3), warns=CANNOT, cause=OSError),
    Fault("no room, for good", failing(parts, "_sync", NO_ROOM), kept=STEPS - 2),
    Fault("a folder deleted in mid-run", before(AT, folder_gone), kept=STEPS - AT),
    Fault("the contents of a folder deleted in mid-run", before(AT, contents_gone), kept=STEPS - AT),
)

MOUNTED: tuple[Fault, ...] = (
    Fault("a disk that is full, for a while", mended("full"), warns=CANNOT, cause=OSError),
    Fault("a disk that is full, for good", mounted("full"), warns=CANNOT, cause=OSError, kept=AT - 2),
    Fault("a folder that is read-only, for a while", mended("read-only"), warns=CANNOT, cause=OSError),
    Fault("a folder that is read-only, for good", mounted("read-only"), warns=CANNOT, cause=OSError, kept=AT - 2),
)
