"""Findings about a training."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from gradscope.types.calls import LayerKey, in_words

if TYPE_CHECKING:
    from torch import nn

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
"""The least severe first."""
COLOURS: Mapping[Severity, str] = {"critical": "#c62828", "warning": "#b26a00", "info": "#1565c0"}


@dataclass(frozen=True, slots=True)
class Remedy:
    """Something to try against a finding.

    Attributes:
        title: the effect, in a few words.
        code: code to type, with the names of the user's own model.
        apply: changes the module of the finding in place, or returns its replacement; None if code cannot do so.
    """

    title: str
    code: str
    apply: Callable[[nn.Module], nn.Module | None] | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Finding:
    """A fault, or another fact, of a training.

    Attributes:
        code: kind of the finding, such as `"vanishing_gradient"`; `docs/diagnosis.md` lists them all.
        severity: `"critical"` certainly keeps the training from learning; `"warning"` probably does; `"info"` is a
            fact that matters only under a condition, which the text states.
        layer_key: the recurrence; None for the whole model.
        title: one line.
        explanation: the reasons, with their numbers.
        evidence: the numbers by name, with their `gate`, `steps` and `timesteps` if they have any.
        remedies: remedies, the most promising first.
    """

    code: str
    severity: Severity
    layer_key: LayerKey | None
    title: str
    explanation: str
    evidence: Mapping[str, Any]
    remedies: tuple[Remedy, ...] = ()

    def __repr__(self) -> str:
        """Write one line, for lists."""
        return f"<Finding {self._head}>"

    def __str__(self) -> str:
        """Write title, explanation and remedies."""
        lines = [self._head, *textwrap.wrap(self.explanation, 98, initial_indent="  ", subsequent_indent="  ")]
        for number, remedy in enumerate(self.remedies, 1):
            lines += [f"  {number}. {remedy.title}", *(f"       {line}" for line in remedy.code.splitlines())]
        return "\n".join(lines)

    @property
    def _head(self) -> str:
        return f"{self.code if self.code == 'healthy' else f'{self.severity}: {self.code}'}: {self.title}"

    def _repr_html_(self) -> str:
        """Render a card for notebooks."""
        colour = "#2e7d32" if self.code == "healthy" else COLOURS[self.severity]
        code = self.code if self.code == "healthy" else f"{self.severity} · {self.code}"
        place = "the whole model" if self.layer_key is None else in_words(self.layer_key)
        lines = [
            f'<p><b style="color: {colour}">{code}</b> <span style="opacity: 0.7">{escape(place)}</span></p>',
            f"<p><b>{escape(self.title)}</b></p>",
            f"<p>{escape(self.explanation)}</p>",
        ]
        for remedy in self.remedies:
            lines += [f"<p>{escape(remedy.title)}</p>", f"<pre><code>{escape(remedy.code)}</code></pre>"]
        return f'<div style="border-left: 4px solid {colour}; padding-left: 12px">{"".join(lines)}</div>'
