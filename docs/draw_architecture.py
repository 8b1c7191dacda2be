"""Draws docs/images/architecture.svg from the imports of the library: which room sees which.

    python docs/draw_architecture.py

A room stands above all that it imports, lazy imports too. Lines that follow from others are left out, and so are the
rooms that hold only plain values, errors and torch's private names, which any room may see.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
from test_architecture import room_graph  # noqa: E402

PICTURE = HERE / "images" / "architecture.svg"
NAMED = {"__init__": "gradscope"}
EVERYWHERE = {"types", "errors", "private", "version"}
BOX, GAP = (108, 34), (26, 46)
STYLE = """
  text { font: 14px sans-serif; fill: #1c2024; text-anchor: middle; dominant-baseline: central }
  rect { fill: #eef1f6; stroke: #7b8794 }
  path { fill: none; stroke: #7b8794; stroke-width: 1.4 }
  @media (prefers-color-scheme: dark) { text { fill: #e6e9ed } rect { fill: #262c35 } }
"""


def rooms() -> dict[str, set[str]]:
    """What each room sees, as the test of the architecture reads it."""
    return {name: seen - EVERYWHERE for name, seen in room_graph().items() if name not in EVERYWHERE}


def below(room: str, sees: Mapping[str, set[str]]) -> set[str]:
    """All that a room sees, and what that sees."""
    return sees[room].union(*(below(other, sees) for other in sees[room]))


def levels(sees: Mapping[str, set[str]]) -> dict[str, int]:
    """The height of each room: one above the highest that it sees. A circle has none, and raises RecursionError."""

    @functools.cache
    def height(name: str) -> int:
        return 1 + max(map(height, sees[name]), default=-1)

    return {name: height(name) for name in sees}


def arranged(sees: Mapping[str, set[str]], height: Mapping[str, int]) -> list[list[str]]:
    """The rooms of each height, the highest first, each near those that see it."""
    place: dict[str, float] = {}
    rows: list[list[str]] = []
    for level in range(max(height.values()), -1, -1):
        above = {r: [place[o] for o, seen in sees.items() if r in seen] for r in sorted(sees) if height[r] == level}
        row = sorted(above, key=lambda room: sum(above[room]) / max(1, len(above[room])))
        place |= {room: i - (len(row) - 1) / 2 for i, room in enumerate(row)}
        rows.append(row)
    return rows


def picture() -> str:
    """The drawing."""
    sees = rooms()
    height = levels(sees)
    rows = arranged(sees, height)
    widest = max(map(len, rows))
    size = widest * (BOX[0] + GAP[0]) + GAP[0], len(rows) * (BOX[1] + GAP[1]) + GAP[1] // 2
    place: dict[str, tuple[float, float]] = {}
    for n, row in enumerate(rows):
        for i, room in enumerate(row):
            x = size[0] / 2 + (i - (len(row) - 1) / 2) * (BOX[0] + GAP[0])
            place[room] = x, GAP[1] / 4 + BOX[1] / 2 + n * (BOX[1] + GAP[1])
    lines = []
    for name, seen in sees.items():
        for other in sorted(seen - set().union(*(below(each, sees) for each in seen), set())):
            (x, y), (u, v) = place[name], place[other]
            y, v = y + BOX[1] / 2, v - BOX[1] / 2
            lines.append(f'<path d="M{x:g} {y:g} C{x:g} {y + 30:g} {u:g} {v - 30:g} {u:g} {v:g}"/>')
    for name, (x, y) in place.items():
        lines.append(f'<rect x="{x - BOX[0] / 2:g}" y="{y - BOX[1] / 2:g}" width="{BOX[0]}" height="{BOX[1]}" rx="6"/>')
        lines.append(f'<text x="{x:g}" y="{y:g}">{NAMED.get(name, name)}</text>')
    body = "\n".join(lines)
    box = f'viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" height="{size[1]}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>\n<style>{STYLE}</style>\n{body}\n</svg>\n'


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
