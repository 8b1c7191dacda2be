"""For the API reference: what docstrings show as a doctest becomes a block of code."""

from __future__ import annotations

import re
from typing import Any

import griffe

PARAGRAPH = re.compile(r"^([ \t]*)>>> .*(?:\n(?![ \t]*\n).+)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Puts a fence around every paragraph that begins with `>>>`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """A module, class, function or attribute has been read."""
        if obj.docstring:
            obj.docstring.value = PARAGRAPH.sub(_fenced, obj.docstring.value)


def _fenced(found: re.Match[str]) -> str:
    space = found[1]
    return f"{space}```pycon\n{found[0]}\n{space}```"
