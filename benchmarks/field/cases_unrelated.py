"""Trainings that learn nothing, for reasons that are neither the recurrence's nor to be seen in what is recorded."""

from __future__ import annotations

from typing import Any

from benchmarks.field.case import Case, ailing


def _plain(task: str, what: str, base: dict[str, Any] | None = None, **ails: Any) -> Case:
    return ailing(task, what, "", base or {}, ails)


def cases() -> list[Case]:
    return [*_labels(), *_heads()]


def _labels() -> list[Case]:
    return [
        _plain("keywords", "labels of other recordings", labels="random"),
        _plain("languages", "labels shuffled", labels="random"),
        _plain("tokens", "tags of another text", labels="random"),
        _plain("load", "returns: nothing to predict", labels="random"),
        _plain("adding", "targets are noise", labels="random"),
        _plain("activity", "labels of other people", labels="random"),
        _plain("modules", "labels shuffled", labels="random"),
        _plain("permuted", "labels shuffled", labels="random"),
        _plain("membrane", "nothing to predict", labels="random"),
        _plain("keywords", "a rare class that nothing tells of", labels="rare"),
        _plain("permuted", "a rare class that nothing tells of", labels="rare"),
    ]


def _heads() -> list[Case]:
    return [
        _plain("load", "answers (N, 1), targets (N,)", labels="broadcast"),
        _plain("adding", "answers (N, 1), targets (N,)", labels="broadcast"),
        _plain("membrane", "answers (N, 1), targets (N,)", {"batch": 4}, labels="broadcast"),
        _plain("load", "sigmoid for targets from 0 to 100", head="sigmoid", targets=30.0, target_offset=50.0),
        _plain("membrane", "sigmoid for targets from 0 to 100", head="sigmoid", targets=30.0, target_offset=50.0),
        _plain("load", "read-out frozen, targets far away", head="frozen", target_offset=8.0),
        _plain("membrane", "read-out frozen, targets far away", head="frozen", target_offset=8.0),
        _plain("prose", "dropout of 0.97", dropout=0.97),
        _plain("vowels", "dropout of 0.99", dropout=0.99),
    ]
