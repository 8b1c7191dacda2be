"""Rows to write, and a TensorBoard to ask: the real application over either data loader, without a socket."""

from __future__ import annotations

import functools
import json
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gradscope_integrations.tensorboard import make_sink
from gradscope_integrations.tensorboard.loader import GradscopeLoader
from tensorboard import program
from tensorboard.backend.event_processing import data_ingester
from tensorboard.data import server_ingester
from werkzeug.test import Client

from gradscope import Batch, Rows

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of a package within TensorBoard, about another within it
    from tensorboard.backend import application
    from tensorboard.plugins.core import core_plugin

core_plugin._gzip = functools.cache(core_plugin._gzip)  # of every new application, half a second
PREFIX = "/data/plugin/gradscope/"
KEY = {"module": "rnn", "layer": 0, "direction": "forward", "chain": 0}
TAG = "grad_h/rnn/0/forward"
Array = np.ndarray[Any, np.dtype[Any]]


def timesteps(values: Array, quantity: str = "grad_h", **columns: Any) -> Rows:
    """A curve whose statistics are all told apart."""
    spread = {"p10": values / 2, "p50": values, "p90": values * 2, "mean": values * 1.5}
    rest = {"t": np.arange(len(values)), "se": 0.0, "sequences": 4, "nonfinite": np.zeros(len(values), np.int64)}
    return Rows("timesteps", {**KEY, **rest, **spread, "quantity": quantity, **columns})


def layer(**columns: Any) -> Rows:
    """The row of `layers`, by which a step counts as recorded."""
    found = {"horizon": 3.0, "horizon_censored": False, "decay": -0.5, "lyapunov": np.nan, "residual": 1e-7}
    return Rows("layers", {**KEY, **found, "timesteps": 5, **columns})


def steps(**columns: Any) -> Rows:
    """The row of `steps`."""
    found = {"optimizer": "Adam", "loss": 1.0, "grad_norm": 0.5, "nonfinite": 0, "recorded": True, "skipped": False}
    return Rows("steps", {**found, "overhead_s": 0.0, "step_s": 0.1, **columns})


def clip(**columns: Any) -> Rows:
    """A row of `clips`."""
    found = {"index": 0, "kind": "norm", "how": "clip_grad_norm_", "threshold": 1.0, "norm_type": 2.0, "parameters": 4}
    norms = {"norm_before": 3.0, "norm_after": 1.0, "coefficient": 1 / 3}
    return Rows("clips", {**found, **norms, "clipped": True, "nonfinite": 0, **columns})


def gates(gate: str = "forget", count: int = 5, units: int = 7) -> list[Rows]:
    """A gate's saturation by time and by unit, and its block of the weights."""
    low, unit = np.linspace(0, 1, count), np.linspace(0, 1, units)
    return [
        Rows("gates", {**KEY, "gate": gate, "t": np.arange(count), "low": low, "high": 1 - low, "mean": low}),
        Rows("units", {**KEY, "gate": gate, "unit": np.arange(units), "low": unit, "high": unit / 4}),
        Rows(
            "weights",
            {**KEY, "gate": gate, "spectral_radius": 0.9, "spectral_norm": 1.1, "orthogonality": 0.2, "update": 1e-3},
        ),
    ]


def recorded(step: int, values: Array, *more: Rows) -> Batch:
    """A recorded step."""
    return Batch(step, (timesteps(values), *more, layer(), clip(norm_before=float(step)), steps()))


def write(logdir: Path, *batches: Batch, **options: Any) -> None:
    """Write a whole session."""
    sink = make_sink(logdir, **options)
    assert sink is not None
    for batch in batches:
        sink.write(batch)
    sink.close()


class Board:
    """A TensorBoard without a socket.

    Args:
        client: sends requests to it.
        refresh: has it look at the files again, or waits a little until it does.
    """

    def __init__(self, client: Client, refresh: Callable[[], None]) -> None:
        self._client, self._refresh = client, refresh

    def get(self, route: str, prefix: str = PREFIX, **parameters: Any) -> Any:
        """A response."""
        query = {name.rstrip("_"): value for name, value in parameters.items()}
        return self._client.get(prefix + route, query_string=query)

    def json(self, route: str, **parameters: Any) -> Any:
        """A JSON answer."""
        response = self.get(route, **parameters)
        assert response.status_code == 200, response.text
        return json.loads(response.data)

    def block(self, route: str, **parameters: Any) -> tuple[dict[str, Any], dict[str, Array]]:
        """A binary answer."""
        response = self.get(route, **parameters)
        assert response.status_code == 200, response.text
        return decode(response.data)

    def runs(self) -> list[Any]:
        """What there is."""
        return self.json("runs")["runs"]

    def wait(self, ready: Callable[[list[Any]], bool]) -> list[Any]:
        """The runs, once they are as wanted."""
        end = time.monotonic() + 30
        while not ready(runs := self.runs()):
            assert time.monotonic() < end, f"TensorBoard did not load this within 30 s; it has {runs}"
            self._refresh()
        return runs


def decode(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """Head and arrays, by the letter of `http_api.md`."""
    assert data[:4] == b"GSC1"
    (length,) = struct.unpack_from("<I", data, 4)
    assert (8 + length) % 8 == 0
    head = json.loads(data[8 : 8 + length], parse_constant=lambda word: 1 / 0)
    arrays = {}
    for about in head["arrays"]:
        start, size = 8 + length + about["offset"], int(np.prod(about["shape"]))
        assert start % 8 == 0
        arrays[about["name"]] = np.frombuffer(data, f"<{np.dtype(about['dtype']).str[1:]}", size, start).reshape(
            about["shape"]
        )
    return head, arrays


@contextmanager
def board(logdir: Path, loader: str, *flags: str) -> Iterator[Board]:
    """A TensorBoard on a folder, as the command line would make it but for the other plugins."""
    tensorboard = program.TensorBoard([core_plugin.CorePluginLoader(), GradscopeLoader()])
    where = [] if any(flag.startswith("--logdir_spec") for flag in flags) else ["--logdir", str(logdir)]
    reload = ["--reload_interval", "1" if loader == "rust" else "0", "--reload_task", "blocking"]
    tensorboard.configure(argv=["tensorboard", *where, *reload, *flags])
    with _rust(tensorboard.flags) if loader == "rust" else _python(tensorboard.flags) as (data, refresh):
        loaders, assets = tensorboard.plugin_loaders, tensorboard.assets_zip_provider
        yield Board(Client(application.TensorBoardWSGIApp(tensorboard.flags, loaders, data, assets)), refresh)


@contextmanager
def _python(flags: Any) -> Iterator[tuple[Any, Callable[[], None]]]:
    """The loader in Python: it looks at the files when it is told to."""
    ingester = data_ingester.LocalDataIngester(flags)
    ingester.start()
    yield ingester.data_provider, ingester.start


@contextmanager
def _rust(flags: Any) -> Iterator[tuple[Any, Callable[[], None]]]:
    """The fast one, a process of its own that looks at the files every second."""
    ingester = server_ingester.SubprocessServerDataIngester(
        server_ingester.get_server_binary(), flags.logdir, reload_interval=1,
        channel_creds_type=flags.grpc_creds_type, samples_per_plugin=flags.samples_per_plugin,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # TensorBoard forgets the process, which ends with its input
        ingester.start()
    try:
        yield ingester.data_provider, lambda: time.sleep(0.05)
    finally:
        ingester._stdin_handle.close()
