"""How fast the TensorBoard tab is, and what writing for it takes from the training.

    python benchmarks/tab.py [--small]

The page: 1,000 recorded steps of a stack of 4 RNN layers with 512 timesteps, in Chromium. Seconds from the click on the
tab, in a TensorBoard that has the data and a browser that has Plotly, until the first heatmap is drawn; and from the
choice of another quantity until its heatmap is. The sink: milliseconds of processor time per recorded step of the
reference LSTM, and per idle step in a loop that does nothing else. Needs what `pip install -e '.[dev]'` gives,
Chromium, and 250 MiB of disk for two minutes.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gradscope_integrations.tensorboard import make_sink, sink
from playwright.sync_api import sync_playwright

import gradscope
from costs import machine
from costs.workloads import WORKLOADS, Training
from gradscope import Batch, Rows

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from boards import clip  # noqa: E402
from boards import steps as row  # noqa: E402
from browsers import CHROMIUM, FLAGS, Tab, link, running  # noqa: E402

TIMES = 5
QUANTITIES = ("grad_h", "grad_h_direct", "weight_grad", "jacobian", "jacobian_h", "state")
OPEN = """hash => new Promise(done => {
    const start = performance.now();
    const page = frame => frame.document.querySelector("[data-testid=gradscope][data-state=ready]");
    const inside = () => Array.from({length: frames.length}, (_, place) => frames[place]);
    const look = () => inside().some(page) ? done((performance.now() - start) / 1000) : setTimeout(look, 2);
    location.hash = hash;
    look();
})"""
NEXT = """list => new Promise(done => {
    const page = list.ownerDocument.querySelector("[data-testid=gradscope]");
    const start = performance.now();
    new MutationObserver((_, observer) => {
        if (page.dataset.state !== "ready") return;
        observer.disconnect();
        requestAnimationFrame(() => setTimeout(() => done((performance.now() - start) / 1000)));
    }).observe(page, {attributes: true, attributeFilter: ["data-state"]});
    list.selectedIndex += 1;
    list.dispatchEvent(new Event("change"));
})"""


def batches(steps: int, length: int, layers: int) -> Iterator[Batch]:
    """What a stack of RNN layers leaves, with made-up numbers of all sizes."""
    random = np.random.default_rng(0)
    t, unit = np.arange(length), np.arange(64)
    for step in range(steps):
        rows: list[Rows] = []
        for layer in range(layers):
            key = {"module": "rnn", "layer": layer, "direction": "forward", "chain": 0}
            about = {**key, "se": 0.0, "sequences": 16, "nonfinite": np.zeros(length, np.int64)}
            for quantity in QUANTITIES:
                middle = 10.0 ** (random.normal(0, 0.1, length) - 6 * (length - t) / length)
                spread = {"p10": middle / 2, "p50": middle, "p90": middle * 2, "mean": middle}
                rows.append(Rows("timesteps", {**about, **spread, "t": t, "quantity": quantity}))
            rows.append(Rows("reach", {**about, **spread, "lag": t}))
            share = {"low": random.random(length), "high": random.random(length), "mean": 0.0}
            rows.append(Rows("gates", {**key, **share, "gate": "hidden", "t": t}))
            rows.append(Rows("units", {**key, "gate": "hidden", "unit": unit, "low": unit / 64, "high": unit / 128}))
            state = {"horizon": 9.0, "horizon_censored": False, "decay": -0.3, "lyapunov": np.nan, "residual": 1e-7}
            rows.append(Rows("layers", {**key, **state, "timesteps": length}))
        yield Batch(step, tuple(rows))


def write(logdir: Path, made: Iterator[Batch]) -> None:
    """All of it, however long the thread takes."""
    sink.PATIENCE_S = 60.0
    board = make_sink(logdir)
    assert board is not None
    for batch in made:
        board.write(batch)
    board.close()


def page_times(logdir: Path) -> dict[str, list[float]]:
    """Seconds until the first heatmap, and until others, by the clock and of the page's own thread."""
    found: dict[str, list[float]] = {}
    with running(logdir, "rust") as base, sync_playwright() as control:
        browser = control.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        tab = Tab(context, base, logdir)
        tab.open(view="flow")
        while len(tab.plotted("heatmap")[0]["z"]) < 400:  # until the loader has them all
            tab.page.wait_for_timeout(500)
            tab.open(view="flow", anew=True)
        session = context.new_cdp_session(tab.page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        for place in range(TIMES):
            tab.page.goto(base + "#timeseries")
            tab.page.reload()
            tab.page.locator(".plugins").first.wait_for()
            tab.page.wait_for_timeout(1500)
            open_it = functools.partial(tab.page.evaluate, OPEN, link(view="flow", layer=f"rnn/{place % 4}/forward"))
            note(found, "first heatmap after opening the tab", session, open_it)
        for _ in range(TIMES):
            note(found, "next heatmap", session, lambda: tab.get("curve").evaluate(NEXT))
            tab.page.wait_for_timeout(300)
        assert not tab.problems, tab.problems
        browser.close()
    return found


def note(found: dict[str, list[float]], name: str, session: Any, act: Callable[[], float]) -> None:
    """Keep how long something took, and how much of it the page's thread was at work."""
    before = at_work(session)
    found.setdefault(name, []).append(act())
    found.setdefault(f"{name}, work of the page", []).append(at_work(session) - before)


def at_work(session: Any) -> float:
    """Seconds of processor time of the page's thread."""
    metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    return metrics["TaskDuration"]


def sink_times(steps: int, small: bool) -> dict[str, list[float]]:
    """Milliseconds per recorded step of the reference LSTM, in the training's thread and in the sink's own."""
    torch.set_num_threads(1)
    workload = WORKLOADS["lstm-256"].smaller() if small else WORKLOADS["lstm-256"]
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        board = make_sink(folder)
        assert board is not None
        board.write = timed(board.write, found.setdefault("sink, training's thread", []))  # type: ignore[method-assign]
        work = board._writing
        work.take = timed(work.take, found.setdefault("sink, its own thread", []))  # type: ignore[method-assign]
        training = Training(workload)
        with gradscope.attach(training.model, every=1, sinks=[board]):
            training.steps(steps)
    return found


def idle_times(steps: int) -> dict[str, list[float]]:
    """Milliseconds per idle step, a row of `steps` and one of `clips`: in the training's thread, and of all threads."""
    found: dict[str, list[float]] = {"idle step, training's thread": [], "idle step, all threads": []}
    with tempfile.TemporaryDirectory() as folder:
        for each in range(TIMES):
            board = make_sink(Path(folder, str(each)))
            assert board is not None
            made = [Batch(step, (row(recorded=False, loss=1 / (1 + step)), clip())) for step in range(steps)]
            start, own = time.process_time(), time.thread_time()
            for batch in made:
                board.write(batch)
            found["idle step, training's thread"].append((time.thread_time() - own) / steps * 1e3)
            board.close()
            found["idle step, all threads"].append((time.process_time() - start) / steps * 1e3)
    return found


def timed(action: Callable[[Batch], None], into: list[float]) -> Callable[[Batch], None]:
    """Keeps the processor time that the calling thread spends in it."""

    def act(batch: Batch) -> None:
        start = time.thread_time()
        action(batch)
        into.append((time.thread_time() - start) * 1e3)

    return act


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--small", action="store_true", help="sizes that prove nothing but that it runs")
    small = options.parse_args().small
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), batches(*((400, 32, 2) if small else (1000, 512, 4))))
        found |= {name: (times, "s") for name, times in page_times(Path(folder)).items()}
    found |= {name: (times, "ms") for name, times in sink_times(4 if small else 20, small).items()}
    found |= {name: (times, "ms") for name, times in idle_times(500 if small else 10_000).items()}
    for name, value in machine.describe().items():
        print(f"{name}: {value}")
    print(f"load: {machine.load()}")
    for name, (times, unit) in found.items():
        low, high = min(times), max(times)
        print(f"{name}: median {statistics.median(times):.4f} {unit} ({low:.4f} to {high:.4f}, {len(times)} times)")


if __name__ == "__main__":
    main()
