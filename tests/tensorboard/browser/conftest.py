"""A real browser on a real TensorBoard, with runs that were recorded by attaching to small trainings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("tensorboard")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from browsers import CHROMIUM, FLAGS, PATIENCE_MS, Tab, running  # noqa: E402
from made_boards import Made, make  # noqa: E402


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The runs, and the tables to hold the page against."""
    return make(tmp_path_factory.mktemp("board"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, as the system has it."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as control:
        chromium = control.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def address(made: Made) -> Iterator[Callable[[str], str]]:
    """Starts a TensorBoard for each loader that is asked for, and stops them all."""
    servers: dict[str, Any] = {}

    def start(loader: str) -> str:
        if loader not in servers:
            server = running(made.logdir, loader)
            servers[loader] = (server, server.__enter__())
        return servers[loader][1]

    try:
        yield start
    finally:
        for server, _ in servers.values():
            server.__exit__(None, None, None)


@pytest.fixture(scope="session")
def context(browser: Any) -> Iterator[Any]:
    """What all pages share: Plotly is loaded once."""
    found = browser.new_context(viewport={"width": 1400, "height": 1000}, accept_downloads=True)
    found.set_default_timeout(PATIENCE_MS)
    yield found
    found.close()


@pytest.fixture(scope="session")
def tabs(context: Any, address: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tab]:
    """A page for each loader that is asked for."""
    return functools.cache(lambda loader: Tab(context, address(loader), tmp_path_factory.mktemp(loader)))


@pytest.fixture
def tab(tabs: Callable[[str], Tab], request: pytest.FixtureRequest) -> Iterator[Tab]:
    """The page; the test fails if anything was wrong in the browser's console."""
    found = tabs(request.getfixturevalue("loader") if "loader" in request.fixturenames else "python")
    yield found
    problems, found.problems[:] = list(found.problems), []
    assert problems == []
