"""A training under a framework's launcher: its processes train bare and with a scope, and each says what it saw.

python launched.py KIND WORLD FOLDER, where KIND is

* `accelerate`: a loop of one's own; `accelerate launch` has made the processes
* `debug_launcher`: the same loop, in processes made by that launcher of Accelerate's
* a strategy of Lightning's Trainer: `ddp`, `ddp_fork`
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from processes import work
from torch import Tensor, nn
from torch.utils.data import DataLoader

import gradscope

BATCH, STEPS = 2, 2
WAYS = {"plain": 1, "accumulated": 2}
"""Batches to an optimizer step."""


def loader(world: int, way: str) -> DataLoader[Tensor]:
    """Batches [BATCH, T, F], as many as all processes need."""
    return DataLoader(sequences(world, way), batch_size=BATCH)  # type: ignore[arg-type]


def sequences(world: int, way: str) -> list[Tensor]:
    """[T, F] each."""
    return [work.data(0, n)[:, 0] for n in range(world * BATCH * STEPS * WAYS[way])]


class Task(nn.Module):
    """The network and its loss; what a process computes is entered bit by bit."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.seen, self.before = work.Net().double(), hashlib.sha256(), 0
        self.given: list[Tensor] = []

    def begin(self) -> None:
        """From here on operations of the process group are counted."""
        self.before = work.collectives()

    def loss(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Each call of a process has a seed of its own."""
        torch.manual_seed(100 * dist.get_rank() + len(self.given))
        self.given.append(x)
        loss = call(x.transpose(0, 1)).square().mean()
        self.enter(loss, torch.get_rng_state())
        return loss

    def enter(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            self.seen.update(work.bits(tensor))

    def gradients(self) -> None:
        self.enter(*(p.grad for p in self.net.parameters() if p.grad is not None))

    def keep(self, folder: Path, way: str, kind: str) -> None:
        """Write what this process has seen."""
        self.enter(*self.net.parameters())
        found = {"seen": self.seen.hexdigest(), "collectives": work.collectives() - self.before}
        torch.save({**found, "given": torch.stack(self.given)}, folder / f"{way}-{kind}-{dist.get_rank()}.pt")


def accelerated(way: str, kind: str, world: int, folder: Path) -> None:
    """A loop of one's own with Accelerate."""
    import accelerate
    from gradscope_integrations.accelerate import Gradscope

    accelerate.state.GradientState._reset_state()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=WAYS[way])
    watching, task = Gradscope(accelerator, folder / way, every=1, max_sequences=None, strict=True), Task()
    optimizer = torch.optim.SGD(task.net.parameters(), lr=0.1)
    model, optimizer, data = accelerator.prepare(task.net, optimizer, loader(world, way))
    assert isinstance(model, nn.parallel.DistributedDataParallel) and accelerator.num_processes == world
    task.begin()
    with watching.attach(model) if kind == "observed" else nullcontext():
        for x in data:
            with accelerator.accumulate(model):
                accelerator.backward(task.loss(model, x))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.01)
                task.gradients()
                optimizer.step()
                optimizer.zero_grad()
    task.keep(folder, way, kind)


def lightning(way: str, kind: str, world: int, folder: Path, strategy: str) -> None:
    """Lightning's Trainer."""
    from gradscope_integrations.lightning import GradscopeCallback
    from lightning.pytorch import Trainer

    watching = GradscopeCallback(folder / way, every=1, max_sequences=None, strict=True)
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    Trainer(
        accelerator="cpu", devices=world, strategy=strategy, max_epochs=1, gradient_clip_val=0.01,
        accumulate_grad_batches=WAYS[way], callbacks=[watching] if kind == "observed" else [],
        **dict.fromkeys(quiet, False),
    ).fit(module(lambda task: task.keep(folder, way, kind)), loader(world, way))  # fmt: skip


def module(over: Callable[[Task], None]) -> Any:
    """The task as a LightningModule; in each process `over` is called when training has ended."""
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.task = Task()

        def on_train_start(self) -> None:
            self.task.begin()

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return self.task.loss(self.task.net, batch)

        def on_before_zero_grad(self, optimizer: Any) -> None:
            self.task.gradients()

        def on_train_end(self) -> None:
            over(self.task)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def every_way(train: Callable[..., None], *where: Any) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("error", category=gradscope.GradscopeWarning)
    for way in WAYS:
        for kind in ("bare", "observed"):
            train(way, kind, *where)


def main(kind: str, world: int, folder: Path) -> None:
    if kind == "accelerate":
        every_way(accelerated, world, folder)
    elif kind == "debug_launcher":
        from accelerate import debug_launcher

        debug_launcher(every_way, (accelerated, world, folder), num_processes=world)
    else:
        every_way(lightning, world, folder, kind)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
