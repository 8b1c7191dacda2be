"""Trainings that fail by what goes into the recurrence, or by what is read from it."""

from __future__ import annotations

from typing import Any

from benchmarks.field.case import Case, ailing

Changes = dict[str, Any]


def cases() -> list[Case]:
    return [*_none(), *_single(), *_unscaled(), *_misread()]


def _none() -> list[Case]:
    def one(task: str, what: str, base: Changes | None = None, **ails: Any) -> Case:
        return ailing(task, what, "no_gradient", base or {}, ails)

    return [
        one("keywords", "softmax over one unit", head="softmax"),
        one("languages", "argmax before the loss", head="argmax"),
        one("dates", "decoder without the encoder's state", handover="none"),
        one("load", "ReLU on answers that are all negative", {"targets": 0.3, "target_offset": -1.5}, head="relu"),
        one("modules", "softmax over one unit", head="softmax"),
        one("activity", "argmax before the loss", head="argmax"),
        one("amounts", "decoder without the encoder's state", handover="none"),
        one("membrane", "ReLU on answers that are all negative", {"target_offset": -3.0}, head="relu"),
    ]


def _single() -> list[Case]:
    def one(task: str, what: str, base: Changes | None = None) -> Case:
        return ailing(task, what, "single_timestep", base or {}, {"single": True})

    return [
        one("maze", "replay of single transitions"),
        one("line", "column by column, each from a zero state"),
        one("tokens", "letter by letter, each from a zero state"),
        one("repeat", "replay of single transitions", {"family": "lstm"}),
        one("vowels", "letter by letter, each from a zero state"),
    ]


def _unscaled() -> list[Case]:
    def one(task: str, what: str, base: Changes | None = None, **ails: Any) -> Case:
        return ailing(task, what, "unscaled_input", base or {}, ails)

    return [
        one("load", "demand in MW, about 5,000", inputs=1500.0, offset=5000.0),
        one("keywords", "features in the hundreds", inputs=300.0),
        one("activity", "raw counts of the sensor", inputs=1000.0, offset=2000.0),
        one("membrane", "millivolts times 100", inputs=2000.0, offset=-6500.0),
        one("tones", "features in the thousands", inputs=3000.0),
        one("beats", "raw counts of the converter", inputs=500.0, offset=1000.0),
    ]


def _misread() -> list[Case]:
    def one(task: str, what: str, base: Changes, **ails: Any) -> Case:
        return ailing(task, what, "misread_output", base, ails)

    plain = {"form": "fused"}
    return [
        one("languages", "last position of a batch with long padding", plain, read="end", pad=150),
        one("keywords", "first position instead of the last", {}, read="start"),
        one("load", "first position instead of the last", {}, read="start"),
        one("modules", "last position of a batch with long padding", plain, read="end", pad=250),
        one("activity", "first position instead of the last", {}, read="start"),
        one("keywords", "time and batch exchanged", {}, swapped=True),
        one("activity", "time and batch exchanged", {}, swapped=True),
        one("modules", "first position instead of the last", plain, read="start"),
    ]
