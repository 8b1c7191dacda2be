"""A distributed training with bad data in one process, and the common run of all processes.

    torchrun --nproc_per_node 2 examples/ddp.py [--steps N] [--logdir DIR]

Every process attaches to its own replica and writes its own part of one folder, without communication. DDP averages
gradients before the optimizer steps, so all processes end up with NaN. The run names the process where NaN began.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gradscope


class Tagger(nn.Module):
    """Predicts for each timestep whether the sum of the input so far is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 16)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0]).squeeze(-1)


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(20, 8, 1, generator=generator)
    return x, (x.cumsum(0) > 0).float().squeeze(-1)


def train(steps: int, logdir: str, spoil_at: int) -> None:
    rank = dist.get_rank()
    torch.manual_seed(0)  # the same weights everywhere, other data on each rank
    generator = torch.Generator().manual_seed(rank)
    model = Tagger()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with gradscope.attach(model, logdir, every=1):
        for step in range(steps):
            x, target = batch(generator)
            if step == spoil_at and rank == dist.get_world_size() - 1:
                x[5, 2] = torch.nan
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(parallel(x), target).backward()
            optimizer.step()
    dist.barrier()  # after the training: every part is complete now


def report(logdir: str) -> None:
    run = gradscope.load(logdir)
    steps = run.frame("steps")
    print(steps.loc[steps["step"] == steps["step"].max(), ["rank", "grad_norm", "nonfinite"]].to_string(index=False))
    for finding in run.findings():
        if finding.code == "nonfinite_gradient":
            print(finding.title)
            print(finding.explanation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--logdir", default="runs/ddp")
    options = parser.parse_args()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("WORLD_SIZE", "1"))))
    dist.init_process_group("gloo")
    train(options.steps, options.logdir, spoil_at=options.steps * 3 // 4)
    if dist.get_rank() == 0:
        report(options.logdir)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
