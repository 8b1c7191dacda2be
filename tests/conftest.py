"""Every test runs single-threaded, from the same seed, with warnings as errors."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

# The same examples every time: a change is judged by itself. `pytest --hypothesis-profile=default` draws others.
settings.register_profile("repeated", derandomize=True, database=None)
settings.load_profile("repeated")

# Assertions of helpers explain themselves too. Said here, before any test module can have imported one.
pytest.register_assert_rewrite("boards", "chains.hold", "chains.truth", "loop.loops", "reliability.stage")


LONGEST = """browser shell test_launchers test_processes test_report test_schedule test_faults test_saved test_main_job
test_compile test_losses test_frameworks test_bench test_tutorial test_pages test_whatif""".split()
"""What takes longest begins first, so that all workers are busy to the end."""


def group(nodeid: str) -> str:
    """What one worker runs, and makes fixtures for once: a file, or files that share what takes long to make."""
    path = Path(nodeid.partition("::")[0])
    if path.parent.name == "browser":  # one TensorBoard for each loader
        return "browser"
    return "shell" if path.stem in ("test_cli_run", "test_bad_commands") else path.stem


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Marks for groups do not arrive: with pytest 9.2 nothing comes of what xdist 3.8 adds to the name of a test."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    config.option.loadscopereorder = False
    return ByGroup(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        place = {name: number for number, name in enumerate(LONGEST)}
        items.sort(key=lambda item: place.get(group(item.nodeid), len(place)))


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until everything is imported: nothing of that is garbage
    config.addinivalue_line("filterwarnings", "error")
    # torch.testing, which test_modules_db imports, says that it would rather have hypothesis
    config.addinivalue_line("filterwarnings", "ignore:Fail to import hypothesis:ImportWarning")
    config.addinivalue_line("filterwarnings", "ignore:LSTM with projections is not supported with oneDNN:UserWarning")
    # of torch 2.8's own
    config.addinivalue_line("filterwarnings", "ignore:Converting a tensor with req:UserWarning:torch.optim.lbfgs")
    # of Python 3.13.0 alone; torch.compile makes a failure of it
    config.addinivalue_line("filterwarnings", "ignore:Guards may run slower on Python:RuntimeWarning")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the programs that tests start
    # A shell ignores interrupts for what it runs in the background, and programs that are started here inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    gc.enable()
    gc.set_threshold(20_000, 20, 20)  # a test makes few cycles and many objects


_seen = 0


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Collections pass over libraries and tests themselves: hundreds of tests collect, for up to a second each else."""
    global _seen
    if len(sys.modules) > _seen + 100:
        _seen = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """What is said of a module that was not seen depends on whether the process has ever compiled anything."""
    yield
    frames = sys.modules.get("torch._dynamo.convert_frame")
    if frames is not None and getattr(frames, "FRAME_COUNTER", 0):
        frames.FRAME_COUNTER = 0  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    # Without a device torch.manual_seed keeps the call for later, with a traceback: a millisecond under pytest.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages have an empty element for each picture: where their text counts, nothing has to be drawn."""
    pytest.importorskip("seaborn")
    monkeypatch.setattr("gradscope.report.figures.svg", lambda name, title, draw, across=False: "<svg></svg>")
