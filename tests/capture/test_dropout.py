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
from torch import Tensor

import gradscope.observer
import gradscope.step
from gradscope.attach.kernel_nodes import CUDNN, RESERVE_ALIGNED, RESERVE_TAIL, dropout_bits
from gradscope.capture.snapshot import begin_dropout


def packed(mask: Tensor) -> Tensor:
    """A bit for every element that is kept, the lowest first: bytes."""
    kept = torch.nn.functional.pad((mask != 0).flatten().long(), (0, -mask.numel() % 8)).view(-1, 8)
    return (kept << torch.arange(8)).sum(1).to(torch.uint8)


def as_on_a_device(built: Built, monkeypatch: pytest.MonkeyPatch, spoil: Any = None) -> None:
    """The generator's state is not known, but bits are, spoilt or not."""
    monkeypatch.setattr(
        gradscope.observer, "begin_dropout", lambda call: replace(begin_dropout(call), generator_state=None)
    )

    def bits(call: Any, output: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):  # as the kernel drew them
            torch.set_rng_state(built.rng_state)
            like = torch.ones(output.numel() // output.shape[-1], output.shape[-1], dtype=output.dtype)
            masks = [torch.nn.functional.dropout(like, call.dropout) for _ in range(call.num_layers - 1)]
        found = torch.stack([packed(mask) for mask in masks])
        return found if spoil is None else spoil(found)

    monkeypatch.setattr(gradscope.step, "dropout_bits", bits)


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


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [2, 3])
def test_where_cudnn_keeps_them(layers: int, directions: int) -> None:
    """The end of a reserve as cuDNN 9 was seen to lay it out: blocks filled up for each direction, and a tail."""
    elements = 3 * 5 * 4 * directions
    block = -(-elements // directions // 8 // RESERVE_ALIGNED) * RESERVE_ALIGNED * directions
    reserve = torch.randint(256, (777 + block * (layers - 1) + RESERVE_TAIL,), dtype=torch.uint8)
    masks = [torch.rand(3, 5, 4 * directions) < 0.5 for _ in range(layers - 1)]
    for number, mask in enumerate(masks):
        bits = packed(mask)
        reserve[777 + number * block :][: len(bits)] = bits
    node = SimpleNamespace(name=lambda: CUDNN, _saved_result3=reserve)
    output = SimpleNamespace(
        device=torch.device("cuda"), dtype=torch.float32, grad_fn=node, numel=lambda: elements, shape=(3, 5)
    )
    call = SimpleNamespace(directions=directions, num_layers=layers)
    assert torch.equal(dropout_bits(call, output), torch.stack([packed(mask) for mask in masks]))
    output.grad_fn = SimpleNamespace(name=lambda: "MiopenRnnBackward0")
    assert dropout_bits(call, output) is None
