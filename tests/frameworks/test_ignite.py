"""PyTorch-Ignite: what its Engine does under the handler is what a plain loop does under a scope."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks.plain import assert_same_records, batches, found, net, plain, same_bits
from torch import nn
from torch.nn import functional as F

import gradscope

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)  # Ignite 0.5.5 uses it
    pytest.importorskip("ignite", minversion="0.5", reason="make frameworks installs Ignite")
    from gradscope_integrations.ignite import GradscopeHandler
    from ignite import handlers
    from ignite.engine import Engine, Events


def trainer(model: nn.Module, fail_at: int = -1) -> tuple[Engine, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def update(engine: Engine, batch: Any) -> float:
        if engine.state.iteration == fail_at:
            raise ArithmeticError
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    engine = Engine(update)
    engine.add_event_handler(Events.STARTED, lambda _: torch.manual_seed(2))
    return engine, optimizer


def clip_norm(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)


def test_engine() -> None:
    model, bare, alone = net(), net(), net()
    watching = GradscopeHandler(model, every=1, strict=True)
    engine, _ = trainer(model)
    watching.attach(engine)
    engine.run(batches(6))
    trainer(bare)[0].run(batches(6))
    assert_same_records(watching.run, plain(alone, batches(6), clip=clip_norm))
    assert same_bits(model, bare) and same_bits(model, alone) and not same_bits(model, net())
    found(
        "Ignite",
        "pytorch-ignite",
        "gradscope_integrations.ignite",
        "as in a plain loop",
        identical=same_bits(model, bare),
    )


def test_terminated() -> None:
    model = net()
    watching, (engine, _) = GradscopeHandler(model, every=1), trainer(model)
    watching.attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda e: e.terminate(skip_completed=True))
    engine.run(batches(6))
    plain(model, batches(1))  # the scope is closed: it hears of no other step
    assert list(watching.run.frame("steps")["step"]) == [0, 1]


def test_resumed(tmp_path: Path) -> None:
    """With Ignite's own Checkpoint."""
    for epochs in (1, 2):
        model = net()
        watching, (engine, optimizer) = GradscopeHandler(model, tmp_path / "run", every=1), trainer(model)
        watching.attach(engine)
        kept = {"model": model, "optimizer": optimizer, "trainer": engine, "gradscope": watching}
        if epochs == 2:
            handlers.Checkpoint.load_objects(kept, checkpoint=next(tmp_path.glob("checkpoint_*.pt")))
        saver = handlers.Checkpoint(kept, handlers.DiskSaver(tmp_path, require_empty=False))
        engine.add_event_handler(Events.EPOCH_COMPLETED, saver)
        engine.run(batches(3), max_epochs=epochs)
    assert list(gradscope.load(tmp_path / "run").frame("steps")["step"]) == [0, 1, 2, 3, 4, 5]


def test_exceptions_are_raised_as_ever(tmp_path: Path) -> None:
    model = net()
    with pytest.raises(ArithmeticError), GradscopeHandler(model, tmp_path / "run", every=1) as watching:
        engine, _ = trainer(model, fail_at=4)
        watching.attach(engine)
        engine.run(batches(6))
    assert len(gradscope.load(tmp_path / "run").frame("steps")) == 3
