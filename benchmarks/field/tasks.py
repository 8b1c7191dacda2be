"""Every task by its name. Tasks, not cases, belong to one half or the other."""

from __future__ import annotations

import functools
from dataclasses import replace

from benchmarks.field import tasks_memory, tasks_other, tasks_pairs, tasks_signal, tasks_text
from benchmarks.field.task import Task

HALVES = ("tuning", "held-out")


@functools.cache
def tasks() -> dict[str, Task]:
    """Name -> task, with its own length in its usual setup."""
    rooms = (tasks_text, tasks_signal, tasks_pairs, tasks_memory, tasks_other)
    found = [task for room in rooms for task in room.tasks()]
    return {task.name: replace(task, usual=task.usual.but(length=task.length)) for task in found}
