"""Arrow's memory comes from the system, which gets it back, where nobody has decided otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import forked, host

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each process is a fork")
SCRIPT = """
import os
{before}
from gradscope.record import arrow
before = dict(os.environ)
arrow.ready()
import pyarrow
print(pyarrow.default_memory_pool().backend_name, dict(os.environ) == before)
"""


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Which allocator a process has that has not loaded Arrow, and whether its environment is as it was."""
    monkeypatch.delenv("ARROW_DEFAULT_MEMORY_POOL", raising=False)

    def of(before: str = "", **environment: str) -> list[str]:
        program = host("import torch\nassert 'pyarrow' not in sys.modules", "exec(sys.argv[0])\nstatus = 0")
        written = tmp_path / "out", tmp_path / "err"
        found = forked(program, [SCRIPT.format(before=before)], tmp_path, written, environment)
        assert found.status == 0, found.err
        return found.out.split()

    return of


def test_the_system_s_where_gradscope_loads_it(pool: Callable[..., list[str]]) -> None:
    assert pool() == ["system", "True"]


def test_that_of_the_environment_where_it_says(pool: Callable[..., list[str]]) -> None:
    assert pool(ARROW_DEFAULT_MEMORY_POOL="mimalloc") == ["mimalloc", "True"]


def test_whatever_it_is_where_it_was_loaded_before(pool: Callable[..., list[str]]) -> None:
    import pyarrow as pa

    known = pa.supported_memory_backends()
    if known == ["system"]:
        pytest.skip("this Arrow has no allocator of its own")
    assert pool("import pyarrow") == [known[0], "True"]
