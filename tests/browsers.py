"""Chromium and TensorBoard as processes, and the Gradscope tab as a user drives it.

Loading TensorBoard's own page takes longer than all of a test, so that a `Tab` is loaded once and then follows links.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-dev-shm-usage --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
WATCH = """document.addEventListener("securitypolicyviolation",
    (event) => console.error("policy: " + event.violatedDirective + " " + event.blockedURI));"""
PATIENCE_MS = 60_000
GO = """hash => new Promise(done => {
    if (location.hash === hash) return done();
    addEventListener("hashchange", () => done(), {once: true});
    location.hash = hash;
})"""
PLOTTED = """plot => JSON.stringify((plot.data ?? []).map(({name, type, x, y, z}) =>
    ({name: name ?? "", type, x: [...(x ?? [])], y: [...(y ?? [])], z: (z ?? []).map(row => [...row])})))"""


@contextmanager
def running(logdir: Path, loader: str = "python", *flags: str) -> Iterator[str]:
    """TensorBoard on a folder; gives its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", "0", "--host", "127.0.0.1"]
    command += ["--reload_interval", "1", "--load_fast", "true" if loader == "rust" else "false", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = ""
        for said_now in process.stderr:
            said += said_now
            if found := re.search(r" at (http://\S+)", said_now):
                yield found[1]
                break
        else:
            raise AssertionError(f"TensorBoard did not start: {said}")
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()


class Tab:
    """The tab in a page of its own; what goes wrong in the browser is in `problems`."""

    def __init__(self, context: Any, base: str, folder: Path) -> None:
        self.base, self.folder, self.problems, self.loaded = base, folder, list[str](), False
        context.add_init_script(WATCH)
        self.page = context.new_page()
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.frame = self.page.frame_locator("iframe[src*='name=gradscope']")

    def _listen(self, said: Any) -> None:
        if said.type == "error":
            self.problems.append(f"{said.text} {said.location['url']}")

    def open(self, *, anew: bool = False, **state: Any) -> None:
        """Go to a deep link, with TensorBoard loaded `anew` or as it is; tables are closed, the mouse is away."""
        if anew or not self.loaded:
            self.page.goto("about:blank")
            self.page.goto(self.base + link(**state))
            self.loaded = True
        else:
            self.page.mouse.move(0, 0)
            self.page.evaluate(GO, link(**state))
            self._close_tables()
        self.ready(state.get("view", "overview"))

    def _close_tables(self) -> None:
        for figure in self.frame.locator("figure:has([data-testid=table])").all():
            figure.locator(".tools button:text-is('Table')").evaluate("button => button.click()")

    def go(self, **state: Any) -> None:
        """Change the address only, as somebody would who pastes a link."""
        self.page.evaluate(GO, link(**state))
        self.ready(state.get("view"))

    def ready(self, view: str | None = None) -> None:
        """Wait until what was asked for is drawn; a page that fails to is loaded anew the next time."""
        before, self.loaded = self.loaded, False
        shown = f"[data-view='{view}']" if view else ""
        self.frame.locator(f"[data-testid=gradscope]{shown}[data-state=ready]").wait_for(timeout=PATIENCE_MS)
        self.loaded = before

    def get(self, name: str, within: str = "") -> Any:
        """A part of the page that is seen, by its marker."""
        return self.frame.locator(f"{within} [data-testid='{name}']:visible")

    def choose(self, control: str, value: str) -> None:
        """Choose from a list."""
        self.get(control).select_option(value)
        self.ready()

    def words(self) -> dict[str, str]:
        """What the address says."""
        pairs = [part.split("=") for part in self.page.evaluate("location.hash").split("&")[1:]]
        return {name.removeprefix("p.gradscope."): value for name, value in pairs}

    def plotted(self, figure: str, place: int = 0) -> list[dict[str, Any]]:
        """The traces of a figure, with NaN as None."""
        return json.loads(self.get(f"figure-{figure}").nth(place).locator(".plot").evaluate(PLOTTED))

    def saved(self, button: str, place: int = 0) -> Path:
        """The file that a click on a button saves."""
        with self.page.expect_download() as download:
            self.get(button).nth(place).click()
        path = self.folder / download.value.suggested_filename
        download.value.save_as(path)
        return path

    def rows(self, figure: str) -> list[dict[str, str]]:
        """All pages of a figure's table, as it is read."""
        self.get(f"{figure}-table").first.click()
        table, found = self.get(f"figure-{figure}").first.locator("[data-testid=table]"), list[dict[str, str]]()
        names = table.locator("th").all_inner_texts()
        following = table.locator("[data-testid=table-next]")
        while True:
            cells = table.locator("tbody").evaluate("b => [...b.rows].map(r => [...r.cells].map(c => c.textContent))")
            found += [dict(zip(names, row, strict=True)) for row in cells]
            if not following.count() or following.is_disabled():
                return found
            following.click()


def link(runs: Sequence[str] = (), **state: Any) -> str:
    """A deep link; `runs` are names of runs as TensorBoard has them."""
    words = {**state, **({"runs": ",".join(quote(run, safe="") for run in runs)} if runs else {})}
    return "#gradscope" + "".join(f"&p.gradscope.{name}={quote(str(value), safe='')}" for name, value in words.items())


def walked(tab: Tab, figure: str, *keys: str) -> str:
    """What is read out after some keys in a picture of the tab."""
    tab.get(f"figure-{figure}").first.locator(".plot").focus()
    for key in keys:
        tab.page.keyboard.press(key)
    return tab.get(f"{figure}-walked").first.inner_text()


def until(holds: Callable[[], bool], patience_s: float = 60) -> None:
    """Wait until something holds."""
    end = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)
