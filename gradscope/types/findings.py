"""Findings: what a run says about its training."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from gradscope.types.calls import LayerKey

if TYPE_CHECKING:
    from torch import nn

Severity = Literal["info", "warning", "critical"]
COLOURS: Mapping[Severity, str] = {"critical": "#c62828", "warning": "#b26a00", "info": "#1565c0"}


@dataclass(frozen=True, slots=True)
class Remedy:
    """Something to try against a finding.

    Attributes:
        title: what it does, in a few words.
        code: what to type, in the names of the user's own model.
        apply: does it to the module that the finding is about, in place, or gives what to put in its place; None where
            code cannot do it.
    """

    title: str
    code: str
    apply: Callable[[nn.Module], nn.Module | None] | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Finding:
    """Something that a run says about its training.

    Attributes:
        code: what it is, such as `"vanishing_gradient"`; `docs/diagnosis.md` lists them all.
        severity: `"critical"`, it certainly keeps the training from learning; `"warning"`, it probably does; `"info"`,
            a fact that matters only under a condition, which the text states.
        layer_key: which recurrence; None where it is about the whole model.
        title: one line.
        explanation: why it is probable, with the numbers that it rests on.
        evidence: these numbers by name, and where they are from: `gate`, `steps`, `timesteps` where they apply.
        remedies: the most promising first.
    """

    code: str
    severity: Severity
    layer_key: LayerKey | None
    title: str
    explanation: str
    evidence: Mapping[str, Any]
    remedies: tuple[Remedy, ...] = ()

    def __repr__(self) -> str:
        """One line, for lists."""
        return f"<Finding {self._head}>"

    def __str__(self) -> str:
        """As a person reads it: the title, why, and what to type."""
        lines = [self._head, *textwrap.wrap(self.explanation, 98, initial_indent="  ", subsequent_indent="  ")]
        for number, remedy in enumerate(self.remedies, 1):
            lines += [f"  {number}. {remedy.title}", *(f"       {line}" for line in remedy.code.splitlines())]
        return "\n".join(lines)

    @property
    def _head(self) -> str:
        return f"{self.code if self.code == 'healthy' else f'{self.severity}: {self.code}'}: {self.title}"

    def _repr_html_(self) -> str:
        """A card for notebooks."""
        colour = "#2e7d32" if self.code == "healthy" else COLOURS[self.severity]
        code = self.code if self.code == "healthy" else f"{self.severity} · {self.code}"
        place = "the whole model" if self.layer_key is None else where(self.layer_key)
        lines = [
            f'<p><b style="color: {colour}">{code}</b> <span style="opacity: 0.7">{escape(place)}</span></p>',
            f"<p><b>{escape(self.title)}</b></p>",
            f"<p>{escape(self.explanation)}</p>",
        ]
        for remedy in self.remedies:
            lines += [f"<p>{escape(remedy.title)}</p>", f"<pre><code>{escape(remedy.code)}</code></pre>"]
        return f'<div style="border-left: 4px solid {colour}; padding-left: 12px">{"".join(lines)}</div>'


def where(key: LayerKey) -> str:
    """A layer in words."""
    chain = f", chain {key.chain}" if key.chain else ""
    return f"{key.module or 'the model'}, layer {key.layer}{', reverse' if key.direction == 'reverse' else ''}{chain}"
