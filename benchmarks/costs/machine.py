"""What the figures were measured on."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch

import gradscope


def processor() -> str:
    """The model as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def revision() -> str:
    """Version of gradscope, with the commit where there is one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return gradscope.__version__
    return f"{gradscope.__version__} ({commit})"


def load() -> float | None:
    """Processes that want a core, over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def describe(device: str = "cpu") -> dict[str, str]:
    """Header of a table of figures."""
    gpu = {} if device == "cpu" else {"device": torch.cuda.get_device_name(device)}
    return {
        **gpu,
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads, Python {platform.python_version()}",
        "gradscope": revision(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
