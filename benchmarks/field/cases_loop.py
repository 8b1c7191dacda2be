"""Trainings whose loop is at fault."""

from __future__ import annotations

from typing import Any

from benchmarks.field.case import Case, ailing

Changes = dict[str, Any]
SGD: Changes = {"optimizer": "sgd", "lr": 0.05}
STEEP: Changes = {"family": "rnn_tanh", "optimizer": "sgd", "lr": 1.0, "clip": 0.25}


def cases() -> list[Case]:
    return [*_clipping(), *_nonfinite(), *_stale(), *_rates(), *_diverged(), *_decayed(), *_forgotten()]


def _clipping() -> list[Case]:
    def tight(task: str, what: str, base: Changes, **ails: Any) -> Case:
        return ailing(task, what, "excessive_clipping", base, ails)

    def missing(task: str, what: str, base: Changes, **ails: Any) -> Case:
        return ailing(task, what, "missing_clipping exploding_gradient diverged", base, {"clip": 0.0, **ails})

    return [
        tight("keywords", "Adam, clipped at 1e-9", {}, clip=1e-9),
        tight("tokens", "SGD, clipped by value at 1e-6", {**SGD, "lr": 0.3}, clip=0.0, clip_value=1e-6),
        tight("membrane", "SGD, clipped at 0.0003", SGD, clip=3e-4),
        tight("tones", "Adam, clipped at 1e-9", {}, clip=1e-9),
        tight("amounts", "Adam, clipped by value at 1e-11", {}, clip=0.0, clip_value=1e-11),
        missing("prose", "SGD without clipping", STEEP),
        missing("source", "SGD without clipping", STEEP),
        missing("tokens", "Elman network, SGD without clipping", STEEP),
        missing("vowels", "SGD without clipping", STEEP),
        missing("recall", "ReLU without clipping", {"family": "rnn_relu", "init": (("identity", 1.0),), "lr": 0.03,
                                                    "optimizer": "sgd", "clip": 0.1}),
    ]  # fmt: skip


def _nonfinite() -> list[Case]:
    def one(task: str, what: str, **ails: Any) -> Case:
        mend = {"birth": "ctc masked"} if ails["birth"] == "ctc" else None
        return ailing(task, what, "nonfinite_gradient", {}, ails, mend)

    return [
        one("line", "a transcript that is too long", birth="ctc", birth_at=61),
        one("load", "a missing value in one window", birth="missing", birth_at=83),
        one("tokens", "a mean over an empty mask", birth="empty", birth_at=37),
        one("maze", "distance of equal states", birth="root", birth_at=91),
        one("tones", "a transcript that is too long", birth="ctc", birth_at=43),
        one("activity", "a missing value in one recording", birth="missing", birth_at=59),
        one("vowels", "logarithm of 0", birth="log", birth_at=71),
        one("recall", "a mean over an empty mask", birth="empty", birth_at=101),
    ]


def _stale() -> list[Case]:
    def one(task: str, what: str, base: Changes) -> Case:
        return ailing(task, what, "stale_gradient", base, {"zero_grad": False})

    return [
        one("load", "no zero_grad, Adam", {}),
        one("amounts", "no zero_grad, Adam", {}),
        one("tones", "no zero_grad, Adam", {}),
        one("membrane", "no zero_grad, SGD", SGD),
        one("adding", "no zero_grad, Adam", {}),
        one("line", "no zero_grad, Adam", {}),
    ]


def _rates() -> list[Case]:
    def one(task: str, what: str, base: Changes, **ails: Any) -> Case:
        return ailing(task, what, "small_updates", base, ails)

    return [
        one("prose", "learning rate 1e-6", {"family": "gru"}, lr=1e-6),
        one("languages", "learning rate 3e-6", {}, lr=3e-6),
        one("load", "learning rate 1e-6", {}, lr=1e-6),
        one("activity", "learning rate 3e-6", {}, lr=3e-6),
        one("amounts", "learning rate 1e-6", {}, lr=1e-6),
        one("membrane", "SGD at 1e-6, momentum", SGD, lr=1e-6),
    ]


def _diverged() -> list[Case]:
    def rising(task: str, what: str, **ails: Any) -> Case:
        return ailing(task, what, "diverged", {}, ails)

    def large(task: str, what: str, **ails: Any) -> Case:
        return ailing(task, what, "diverged saturated_gate exploding_gradient missing_clipping", {}, ails)

    return [
        rising("keywords", "learning rate rises to 1", warmup=160, lr=1.0),
        rising("load", "learning rate rises to 1", warmup=140, lr=1.0),
        rising("tones", "learning rate rises to 3", warmup=120, lr=3.0),
        rising("repeat", "learning rate rises to 1", warmup=200, lr=1.0),
        large("prose", "learning rate 0.3", lr=0.3),
        large("vowels", "learning rate 0.5", lr=0.5),
        large("amounts", "learning rate 0.3", lr=0.3),
    ]


def _decayed() -> list[Case]:
    def one(task: str, what: str, base: Changes, **ails: Any) -> Case:
        return ailing(task, what, "decayed_weights", base, ails)

    return [
        one("prose", "AdamW, decay of 20", {}, optimizer="adamw", weight_decay=20.0),
        one("adding", "AdamW, decay of 10", {}, optimizer="adamw", weight_decay=10.0),
        one("keywords", "Adam, decay of 0.3", {}, weight_decay=0.3),
        one("recall", "AdamW, decay of 10", {}, optimizer="adamw", weight_decay=10.0),
        one("source", "Adam, decay of 0.1", {}, weight_decay=0.1),
        one("activity", "AdamW, decay of 20", {}, optimizer="adamw", weight_decay=20.0),
    ]


def _forgotten() -> list[Case]:
    def one(task: str, what: str, base: Changes, **ails: Any) -> Case:
        return ailing(task, what, "unoptimized_parameters", base, ails)

    return [
        one("load", "read-out in a Python list", {}, head="list"),
        one("keywords", "read-out in a Python list", {}, head="list"),
        one("modules", "read-out in a Python list", {}, head="list"),
        one("dates", "optimizer was made without the encoder", {}, forgotten="encoder"),
        one("amounts", "optimizer was made without the encoder", {}, forgotten="encoder"),
        one("vowels", "optimizer was made without the read-out", {}, forgotten="head"),
    ]
