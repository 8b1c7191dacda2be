"""Peak memory of a recorded step over that of a bare one, each in a process of its own.

Of a GPU, the peak of what torch has allocated on it. Run as a program, `memory.py WORKLOAD QUANTITIES THREADS DEVICE
[--small]` is such a process and prints what it saw.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import gradscope
from costs.workloads import ANALYSED, WORKLOADS, Training, Workload

BARE = "bare"
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Peak:
    """Extra memory of a recorded step.

    Attributes:
        step: at the peak of the step as a whole, in copies of the gates.
        analysis: at the peak of what happens within `optimizer.step`, where the analysis is, in copies of the gates.
        copy: bytes of one copy, (T, 16, 4H) float32.
        reset: whether peaks were reset before each part; otherwise they are those of the whole process.
    """

    step: float
    analysis: float
    copy: int
    reset: bool


def copy_of_gates(workload: Workload) -> int:
    """Bytes of (T, 16, 4H) in float32: the contract's unit, for one layer in one direction, whatever the family."""
    return workload.T * min(ANALYSED, workload.B) * 4 * workload.H * 4


def reset_peak(device: str = "cpu") -> bool:
    """Start the peak anew; false where the system does not let us."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak(device: str = "cpu") -> int:
    """Peak resident set, or of what is allocated on a GPU, in bytes, since the last `reset_peak`."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return size if sys.platform == "darwin" else size * 1024


def child(workload: Workload, quantities: str) -> dict[str, int | bool]:
    """Peaks of one step, up to the optimizer and within it, after what both kinds of process load and warm up."""
    warm = Training(replace(WORKLOADS["lstm-128"].one_timestep(), device=workload.device))
    with gradscope.attach(warm.model, every=1, quantities="full"):
        warm.steps(2)
    training = Training(workload)
    training.steps(2)
    scope = (
        None if quantities == BARE else gradscope.attach(training.model, every=1, quantities=quantities, strict=True)
    )
    seen: dict[str, int | bool] = {}

    def before_optimizer() -> None:
        seen["before"] = peak(workload.device)
        seen["reset"] = reset_peak(workload.device)

    training.after_backward = before_optimizer
    reset_peak(workload.device)
    training.step()
    seen["within"] = peak(workload.device)
    if scope is not None:
        scope.close()
    return seen


def spawn(workload: Workload, quantities: str, small: bool) -> dict[str, int]:
    """Run `child` in a process whose allocator hands freed memory back at once, so that peaks are of what is in use."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, workload.key, quantities, str(torch.get_num_threads()), workload.device]
    command += ["--small"] if small else []
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _here(workload: Workload, quantities: str, small: bool) -> dict[str, int]:
    return child(workload.smaller() if small else workload, quantities)


def measure_memory(workload: Workload, *, small: bool = False, quantities: str = "core", repeats: int = 2) -> Peak:
    """Compare a recorded step with a bare one."""
    key = replace(WORKLOADS[workload.key], device=workload.device)
    in_its_own_process = spawn if workload.device == "cpu" else _here  # torch counts what it allocates on a GPU
    runs = [tuple(in_its_own_process(key, what, small) for what in (BARE, quantities)) for _ in range(repeats)]
    copy = copy_of_gates(workload)

    def whole(seen: dict[str, int]) -> int:
        return max(seen["before"], seen["within"])

    return Peak(
        step=statistics.median(whole(mine) - whole(bare) for bare, mine in runs) / copy,
        analysis=statistics.median(mine["within"] - bare["within"] for bare, mine in runs) / copy,
        copy=copy,
        reset=all(seen["reset"] for pair in runs for seen in pair),
    )


def main() -> None:
    key, quantities, threads, device, *rest = sys.argv[1:]
    torch.set_num_threads(int(threads))
    workload = replace(WORKLOADS[key], device=device)
    workload = workload.smaller() if "--small" in rest else workload
    sys.stdout.write(json.dumps(child(workload, quantities)) + "\n")


if __name__ == "__main__":
    main()
