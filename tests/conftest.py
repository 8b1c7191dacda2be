"""Every test runs single-threaded, from the same seed, with warnings as errors."""

from __future__ import annotations

import pytest
import torch

# Assertions of helpers explain themselves too. Said here, before any test module can have imported one.
pytest.register_assert_rewrite("boards", "chains.hold", "chains.truth", "loop.loops", "reliability.stage")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
    # torch.testing, which test_modules_db imports, says that it would rather have hypothesis
    config.addinivalue_line("filterwarnings", "ignore:Fail to import hypothesis:ImportWarning")
    config.addinivalue_line("filterwarnings", "ignore:LSTM with projections is not supported with oneDNN:UserWarning")
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
