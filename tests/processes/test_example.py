"""The example under the launcher that it names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradscope

if not torch.distributed.is_available():
    pytest.skip("torch was built without torch.distributed", allow_module_level=True)

EXAMPLE = Path(__file__).parents[2] / "examples" / "ddp.py"


def test_torchrun(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, EXAMPLE, "--steps", "4", "--logdir", tmp_path],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "begun on rank 1" in done.stdout
    run = gradscope.load(tmp_path)
    assert run.source.ranks == [0, 1] and len(run.frame("steps")) == 8
    assert not (run.frame("timesteps", rank=0, step=3)["nonfinite"] > 0).any()
