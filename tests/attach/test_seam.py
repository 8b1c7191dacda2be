"""A place in torch is replaced while somebody listens, and afterwards exactly as before."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.jit import _builtins

from gradscope.attach.seam import Handle, Seam, replace


class Doorbell:
    """Something that listens."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.rings = 0
        self.then = then

    def ring(self) -> None:
        self.rings += 1
        self.then()


def place() -> tuple[Any, Seam[Doorbell]]:
    """A function `owner.call` that rings for everybody who listens."""
    owner = SimpleNamespace(call=lambda value: value + 1)

    def around(original: Callable[[int], int], value: int) -> int:
        for handle in seam.handles:
            if handle.armed and handle.listener is not None:
                handle.listener.ring()
        return original(value)

    seam: Seam[Doorbell] = Seam(lambda: replace((owner, "call", around)))
    return owner, seam


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_restored_in_any_order(order: tuple[int, ...]) -> None:
    owner, seam = place()
    original = owner.call
    bells = [Doorbell() for _ in order]
    handles = [seam.listen(bell) for bell in bells]
    for index in order:
        assert owner.call is not original
        handles[index].remove()
        assert owner.call(1) == 2
    assert owner.call is original
    assert [bells[index].rings for index in order] == [0, 1, 2]


def test_removing_twice_is_harmless() -> None:
    owner, seam = place()
    original = owner.call
    first, second = seam.listen(Doorbell()), seam.listen(Doorbell())
    first.remove()
    first.remove()
    assert owner.call is not original
    second.remove()
    second.remove()
    assert owner.call is original


def test_installed_again_after_the_last_one_left() -> None:
    owner, seam = place()
    original, bell = owner.call, Doorbell()
    for _ in range(2):
        handle = seam.listen(bell)
        owner.call(0)
        handle.remove()
    assert bell.rings == 2 and owner.call is original


def test_listeners_are_called_in_order_of_registration() -> None:
    owner, seam = place()
    heard: list[int] = []
    for index in range(4):
        seam.listen(Doorbell(lambda index=index: heard.append(index)))
    owner.call(0)
    assert heard == [0, 1, 2, 3]


def test_removed_during_an_event_is_not_called_and_added_is_called_next_time() -> None:
    owner, seam = place()
    handles: list[Handle[Doorbell]] = []
    late = Doorbell()
    first = seam.listen(Doorbell(lambda: (handles[0].remove(), handles.append(seam.listen(late)))[0]))
    second = Doorbell()
    handles.append(seam.listen(second))
    owner.call(0)
    assert (second.rings, late.rings) == (0, 0)
    first.remove()
    owner.call(0)
    assert (second.rings, late.rings) == (0, 1)


def test_a_patch_on_top_stays_and_ours_beneath_goes_silent() -> None:
    owner, seam = place()
    bell = Doorbell()
    handle = seam.listen(bell)
    ours = owner.call
    theirs = owner.call = lambda value: ours(value) * 10
    handle.remove()
    assert owner.call is theirs and owner.call(1) == 20 and bell.rings == 0
    handle = seam.listen(bell)
    assert owner.call(1) == 20 and bell.rings == 1
    handle.remove()
    assert owner.call is theirs


def test_an_attribute_that_came_through_getattr_is_deleted_again() -> None:
    module = ModuleType("forwarding")
    module.__dict__["__getattr__"] = lambda name: len
    before = dict(vars(module))
    restore = replace((module, "measure", lambda original, value: original(value) + 1))
    assert module.measure("abc") == 4
    restore()
    assert vars(module) == before and module.measure("abc") == 3


def test_all_places_or_none() -> None:
    owner = SimpleNamespace(call=len)
    with pytest.raises(AttributeError):
        replace((owner, "call", lambda original, value: 0), (owner, "missing", lambda original: 0))
    assert owner.call is len


def test_a_failed_installation_can_be_tried_again() -> None:
    tries = iter([RuntimeError("not now"), None])

    def install() -> Callable[[], None]:
        if (problem := next(tries)) is not None:
            raise problem
        return lambda: None

    seam: Seam[Doorbell] = Seam(install)
    with pytest.raises(RuntimeError, match="not now"):
        seam.listen(Doorbell())
    assert seam.listen(Doorbell()) and seam.restore


def test_a_removed_listener_is_let_go() -> None:
    _, seam = place()
    handle = seam.listen(Doorbell())
    handle.remove()
    assert handle.listener is None and seam.handles == ()


def test_threads_come_and_go() -> None:
    owner, seam = place()
    original = owner.call

    def visit() -> None:
        for _ in range(200):
            handle = seam.listen(Doorbell())
            owner.call(0)
            handle.remove()

    threads = [threading.Thread(target=visit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert owner.call is original and seam.restore is None


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_torchscript_compiles_what_was_replaced() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 4)

        def forward(self, data: torch.Tensor) -> torch.Tensor:
            return self.rnn(data)[0]

    table = dict(_builtins._get_builtin_table())
    restore = replace((torch._VF, "gru", lambda original, *args: original(*args)))
    try:
        tagger, data = Tagger(), torch.randn(5, 2, 3)
        assert torch.equal(torch.jit.script(tagger)(data), tagger(data))
    finally:
        restore()
    assert _builtins._get_builtin_table() == table
