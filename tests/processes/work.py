"""The processes of a distributed training: every scenario bare and with a scope; what each saw goes into a file.

python work.py KIND ... WORLD FOLDER, which loads everything once, and whose forks are the processes of each kind
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas  # noqa: F401  (this and the next two are loaded by every training, and so before the processes are made)
import pyarrow.parquet  # noqa: F401
import torch
import torch._dynamo
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import gradscope

STEPS = 3


class Net(nn.Module):
    """A fused stack, a cell in a loop, and something that only some passes use."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4, 2, dropout=0.3)
        self.cell = nn.GRUCell(4, 5)
        self.spare = nn.RNN(5, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor, spare: bool = True) -> Tensor:
        h, states = None, []
        for row in self.rnn(x)[0]:
            h = self.cell(row, h)
            states.append(h)
        output = torch.stack(states)
        return self.head(self.spare(output)[0] if spare else output) + 0.0  # no view, as FSDP wants it


def plain(rank: int, model: nn.Module, wrapped: nn.Module, step: int) -> Tensor:
    loss = wrapped(data(rank, step)).square().mean()
    loss.backward()
    return loss


def accumulating(rank: int, model: nn.Module, wrapped: Any, step: int) -> Tensor:
    with wrapped.no_sync():
        plain(rank, model, wrapped, step)
    return plain(rank, model, wrapped, step + 100)


def unused(rank: int, model: nn.Module, wrapped: nn.Module, step: int) -> Tensor:
    """Each process leaves the spare layer out at another step."""
    loss = wrapped(data(rank, step), spare=step % 2 == rank % 2).square().mean()
    loss.backward()
    return loss


def ill(rank: int, model: nn.Module, wrapped: nn.Module, step: int) -> Tensor:
    """The data of the last process are not numbers at the last step."""
    x = data(rank, step)
    if step == STEPS - 1 and rank == dist.get_world_size() - 1:
        x[2, 1] = torch.nan
    loss = wrapped(x).square().mean()
    loss.backward()
    return loss


def data(rank: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(4, 2, 3, generator=generator, dtype=torch.float64)


def ddp(**options: Any) -> Callable[[nn.Module], nn.Module]:
    return lambda model: DistributedDataParallel(model, **options)


def sharded(*parts: str, **options: Any) -> Callable[[nn.Module], nn.Module]:
    def wrap(model: nn.Module) -> nn.Module:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for part in parts:
            fully_shard(model.get_submodule(part), mesh=mesh, **options)
        return fully_shard(model, mesh=mesh, **options)

    return wrap


HALF = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)}
Scenario = tuple[Callable[[nn.Module], nn.Module], Callable[..., Tensor], dict[str, Any]]
SCENARIOS: dict[str, dict[str, Scenario]] = {
    "ddp": {
        "plain": (ddp(), plain, {}),
        "no_sync": (ddp(), accumulating, {}),
        "unused": (ddp(find_unused_parameters=True), unused, {}),
        "static": (ddp(static_graph=True), plain, {}),
        "views": (ddp(gradient_as_bucket_view=True), accumulating, {}),
        "wrapped": (ddp(), plain, {"attach": "wrapped"}),
        "scaled": (ddp(), plain, {"scaler": True}),
        "ill": (ddp(), ill, {}),
    },
    "fsdp": {
        "whole": (sharded(), plain, {}),
        "parts": (sharded("rnn", "cell", "spare"), plain, {}),
        "attached first": (sharded("rnn", "cell", "spare"), plain, {"attach": "first"}),
        "bfloat16": (sharded("rnn", **HALF), plain, {"dtype": torch.float32}),
    },
}


def train(rank: int, scenario: Scenario, logdir: Path | None) -> dict[str, Any]:
    """One training; what it computed, bit by bit, and what it asked of the others."""
    wrap, backward, options = scenario
    torch.manual_seed(0)
    model = Net().to(options.get("dtype", torch.float64))
    with ExitStack() as undo:
        when = options.get("attach", "then") if logdir else "never"
        if when == "first":
            undo.enter_context(attach(model, logdir))
        wrapped = wrap(model)
        if when in ("then", "wrapped"):
            undo.enter_context(attach(wrapped if when == "wrapped" else model, logdir))
        return loop(rank, model, wrapped, backward, options)


def attach(model: nn.Module, logdir: Path | None) -> gradscope.Scope:
    return gradscope.attach(model, logdir, every=1, max_sequences=None, strict=True)


def loop(
    rank: int, model: nn.Module, wrapped: nn.Module, backward: Callable[..., Tensor], options: dict[str, Any]
) -> dict[str, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=1024.0, enabled=bool(options.get("scaler")))
    torch.manual_seed(rank)
    seen, norms, clips, calls = hashlib.sha256(), list[float](), list[float](), collectives()
    for step in range(STEPS):
        optimizer.zero_grad()
        if scaler.is_enabled():
            scaled(rank, model, wrapped, scaler, step)
            scaler.step(optimizer)
            scaler.update()
        else:
            loss = backward(rank, model, wrapped, step)
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            clips.append(float(getattr(norm, "to_local", lambda norm=norm: norm)()))
            norms.append(recurrent_norm(model))
            optimizer.step()
            seen.update(bits(loss))
        for tensor in (*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)):
            seen.update(bits(tensor))
        seen.update(bits(torch.get_rng_state()))
    return {"seen": seen.hexdigest(), "norms": norms, "clips": clips, "collectives": collectives() - calls}


def scaled(rank: int, model: nn.Module, wrapped: nn.Module, scaler: GradScaler, step: int) -> None:
    """At the second step the last process overflows."""
    loss = wrapped(data(rank, step)).square().mean()
    factor = torch.inf if step == 1 and rank == dist.get_world_size() - 1 else 1.0
    scaler.scale(loss * factor).backward()


def collectives() -> int:
    """How many operations the process group has been asked for, by Python and by C++ alike."""
    return dist.distributed_c10d._get_default_group()._get_sequence_number_for_group()


def recurrent_norm(model: nn.Module) -> float:
    """Of what this process holds of the recurrent gradients, in float64."""
    parts = [
        getattr(p.grad, "to_local", lambda p=p: p.grad)().double().flatten()
        for m in (model.rnn, model.cell, model.spare)
        for p in m.parameters()
        if p.grad is not None
    ]
    return float(torch.linalg.vector_norm(torch.cat(parts)))


def bits(tensor: Tensor) -> bytes:
    here = (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach()
    return here.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def main(kind: str, rank: int, world: int, folder: Path) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    found: dict[str, Any] = {}
    for name, scenario in SCENARIOS[kind].items():
        bare = train(rank, scenario, None)
        found[name] = {"bare": bare, "observed": train(rank, scenario, folder / name)}
        found[name]["rows"] = len(gradscope.load(folder / name).frame("steps", rank=rank))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def launch(kinds: list[str], world: int, folder: Path) -> int:
    """The processes of one kind after those of another; 1 if any has failed."""
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    for kind in kinds:
        ranks = [context.Process(target=main, args=(kind, rank, world, folder / kind)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:-2], int(sys.argv[-2]), Path(sys.argv[-1])))
