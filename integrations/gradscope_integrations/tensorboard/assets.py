"""The files of the page: our own modules, and the installed Plotly."""

from __future__ import annotations

import functools
import gzip
import importlib.metadata
import importlib.util
from pathlib import Path

STATIC = Path(__file__).parent / "static"
KINDS = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".json": "application/json",
}


def own(name: str) -> tuple[bytes, str] | None:
    """A file of ours with its media type, or None. Only files that a listing of the folder contains."""
    for path in STATIC.rglob("*"):
        if path.relative_to(STATIC).as_posix() == name and path.suffix in KINDS and path.is_file():
            return path.read_bytes(), KINDS[path.suffix]
    return None


def plotly_version() -> str | None:
    """The version of the installed package, or None."""
    return importlib.metadata.version("plotly") if _plotly() else None


@functools.cache
def plotly() -> bytes | None:
    """Plotly's script, compressed with gzip; None without the package."""
    path = _plotly()
    return gzip.compress(path.read_bytes(), 6, mtime=0) if path else None


@functools.cache
def _plotly() -> Path | None:
    spec = importlib.util.find_spec("plotly")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / "package_data" / "plotly.min.js"
        if path.is_file():
            return path
    return None
