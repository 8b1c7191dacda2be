"""Arrow's memory comes from the system, which gets it back, where nobody has decided otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os
{before}
from gradscope.record import arrow
before = dict(os.environ)
arrow.ready()
import pyarrow
print(pyarrow.default_memory_pool().backend_name, dict(os.environ) == before)
"""


def pool(before: str = "", **environment: str) -> list[str]:
    """Which allocator a fresh process has, and whether its environment is as it was."""
    clean = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT.format(before=before)]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True).stdout.split()


def test_the_system_s_where_gradscope_loads_it() -> None:
    assert pool() == ["system", "True"]


def test_that_of_the_environment_where_it_says() -> None:
    assert pool(ARROW_DEFAULT_MEMORY_POOL="mimalloc") == ["mimalloc", "True"]


def test_whatever_it_is_where_it_was_loaded_before() -> None:
    import pyarrow as pa

    known = pa.supported_memory_backends()
    if known == ["system"]:
        pytest.skip("this Arrow has no allocator of its own")
    assert pool("import pyarrow") == [known[0], "True"]
