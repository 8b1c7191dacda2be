"""Dropout masks that are read where cuDNN keeps them, by a stand-in for it: believed if the layers confirm them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cases
import oracles
import pytest
import torch
from cases import Built, Case
from families.jobs import recorded
from processors import needs
from torch import Tensor

import gradscope.observe.calls
import gradscope.observe.step
from gradscope.attach.kernel_nodes import CUDNN, RESERVE_ALIGNED, RESERVE_TAIL, dropout_bits
from gradscope.capture.snapshot import begin_dropout


def packed(mask: Tensor) -> Tensor:
    """A bit for every element that is kept, the lowest first: bytes."""
    kept = torch.nn.functional.pad((mask != 0).flatten().long(), (0, -mask.numel() % 8)).view(-1, 8)
    return (kept << torch.arange(8)).sum(1).to(torch.uint8)


def without_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of the generator that the masks are drawn from is not known."""
    hidden = lambda call: replace(begin_dropout(call), generator_state=None)  # noqa: E731
    monkeypatch.setattr(gradscope.observe.calls, "begin_dropout", hidden)


def as_on_a_device(built: Built, monkeypatch: pytest.MonkeyPatch, spoil: Any = None) -> None:
    """The generator's state is not known, but bits are, spoilt or not."""
    without_generator(monkeypatch)

    def bits(call: Any, output: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):  # as the kernel drew them
            torch.set_rng_state(built.rng_state)
            like = torch.ones(output.numel() // output.shape[-1], output.shape[-1], dtype=output.dtype)
            masks = [torch.nn.functional.dropout(like, call.dropout) for _ in range(call.num_layers - 1)]
        found = torch.stack([packed(mask) for mask in masks])
        return found if spoil is None else spoil(found)

    monkeypatch.setattr(gradscope.observe.step, "dropout_bits", bits)


@pytest.mark.parametrize("case", cases.DROPOUT, ids=str)
def test_masks_are_read(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    built = cases.build(case)
    as_on_a_device(built, monkeypatch)
    run = recorded(built)
    oracles.assert_agrees(run, oracles.frames(oracles.examine(built.call())), rtol=1e-10)
    assert run.frame("notes").empty


@pytest.mark.parametrize("spoil", [lambda bits: ~bits, lambda bits: bits.roll(1, 1)], ids=["inverted", "shifted"])
def test_what_the_layers_do_not_confirm_is_not_believed(spoil: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    built = cases.build(Case("lstm", 2, dropout=0.5))
    as_on_a_device(built, monkeypatch, spoil)
    run = recorded(built)
    assert run.frame("timesteps")["p50"].isna().all()
    assert run.frame("notes")["reason"].str.contains("hidden inside the kernel").all()


def one_direction(x: Tensor, weights: Any, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A layer of an LSTM in one direction, from zeros."""
    zeros = x.new_zeros(1, x.shape[1], weights[1].shape[1])
    x = x.flip(0) if reverse else x
    output, h, c = torch.lstm(x, [zeros, zeros], weights, True, 1, 0.0, True, False, False)
    return output.flip(0) if reverse else output, h, c


def test_each_direction_has_a_mask_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in cuDNN; the gradient that is accumulated into the weights of the lower layers tells whether that is so."""
    module, x = torch.nn.LSTM(3, 4, 3, bidirectional=True, dropout=0.25, dtype=torch.float64), torch.randn(6, 2, 3)
    masks = [(torch.rand(6, 2, 8) < 0.75) for _ in range(4)]

    def kernel(x: Tensor, state: Any, weights: Any, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        given, finals = [x, x], []
        for layer in range(3):
            parts = [one_direction(given[r], weights[8 * layer + 4 * r :][:4], bool(r)) for r in (0, 1)]
            finals += [part[1:] for part in parts]
            output = torch.cat([part[0] for part in parts], -1)
            given = [output * mask / 0.75 for mask in masks[2 * layer :][:2]]
        return output, *(torch.cat(part) for part in zip(*finals, strict=True))

    monkeypatch.setattr(torch._VF, "lstm", kernel)
    without_generator(monkeypatch)
    monkeypatch.setattr(
        gradscope.observe.step, "dropout_bits", lambda call, output: torch.stack([packed(m) for m in masks])
    )
    with gradscope.attach(module, every=1, quantities="full", strict=True) as scope:
        cases.uneven(module(x.double())[0]).backward()
    layers = scope.run.frame("layers")
    assert scope.run.frame("notes").empty and len(layers) == 6 and layers["residual"].max() < 1e-12


@needs("sight of hooks on saved tensors")
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [2, 3])
def test_where_cudnn_keeps_them(layers: int, directions: int) -> None:
    """The end of a reserve as cuDNN 9 was seen to lay it out: a block for each direction of a layer, and a tail."""
    elements, count = 7 * 11 * 4 * directions, (layers - 1) * directions
    block = -(-elements // 8 // RESERVE_ALIGNED) * RESERVE_ALIGNED
    reserve = torch.randint(256, (777 + block * count + RESERVE_TAIL,), dtype=torch.uint8)
    masks = [torch.rand(7, 11, 4 * directions) < 0.5 for _ in range(count)]
    for number, mask in enumerate(masks):
        bits = packed(mask)
        reserve[777 + number * block :][: len(bits)] = bits
    node = SimpleNamespace(name=lambda: CUDNN, _saved_result3=reserve)
    output = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, grad_fn=node, numel=lambda: elements)
    call = SimpleNamespace(directions=directions, num_layers=layers)
    assert torch.equal(dropout_bits(call, output), torch.stack([packed(mask) for mask in masks]))
    output.grad_fn = SimpleNamespace(name=lambda: "MiopenRnnBackward0")
    assert dropout_bits(call, output) is None
