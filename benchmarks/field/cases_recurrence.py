"""Trainings whose recurrence is at fault: mild faults, as they happen."""

from __future__ import annotations

from typing import Any

from benchmarks.field.case import Case, ailing

Changes = dict[str, Any]
ELMAN: Changes = {"family": "rnn_tanh", "init": (("orthogonal", 1.0),), "lr": 0.003}
RELU: Changes = {"family": "rnn_relu", "init": (("identity", 1.0),), "lr": 0.001}
PLAIN: Changes = {"family": "rnn_tanh", "init": (), "lr": 0.003}
LARGE = "exploding_gradient saturated_gate"  # weights so large do both
DETACHED = "detached_state"


def cases() -> list[Case]:
    return [*_vanishing(), *_exploding(), *_saturated(), *_dead(), *_detached()]


def _vanishing() -> list[Case]:
    def one(task: str, what: str, base: Changes, **ails: Any) -> Case:
        return ailing(task, what, "vanishing_gradient", base, ails)

    deep = {"form": "residual", "layers": 6, "hidden": 64}
    return [
        one("adding", "Elman network as torch begins it, 100 steps", {}, **PLAIN),
        one("pixels", "Elman network as torch begins it", {"init": (("chrono", 1.0),)}, **PLAIN),
        one("prose", "six layers of LSTM", deep, form="fused"),
        one("maze", "Elman network as torch begins it", {}, **PLAIN),
        one("tokens", "eight layers of LSTM", {}, layers=8, bidirectional=False),
        one("recall", "Elman network as torch begins it", {}, **PLAIN),
        one("recall", "LSTM as torch begins it, 200 steps", {"length": 200, "steps": 300}, init=()),
        one("source", "six layers of GRU", {**deep, "family": "gru"}, form="fused"),
        one("vowels", "eight layers of LSTM", {}, layers=8, bidirectional=False, hidden=64),
        one("activity", "Elman network as torch begins it, 400 samples", {"length": 400}, **PLAIN),
    ]  # fmt: skip


def _exploding() -> list[Case]:
    def one(task: str, what: str, base: Changes, codes: str = LARGE, **ails: Any) -> Case:
        return ailing(task, what, codes, base, ails)

    return [
        one("chorale", "orthogonal with gain 4", {}, init=(("orthogonal", 4.0),)),
        one("tokens", "all weights from N(0, 1)", {}, init=(("normal", 1.0),)),
        one("adding", "ReLU, identity times 1.3", {**RELU, "length": 60, "hidden": 100}, "exploding_gradient",
            init=(("identity", 1.3),)),
        one("repeat", "ReLU, identity times 1.5", {**RELU, "lr": 0.003}, "exploding_gradient",
            init=(("identity", 1.5),)),
        one("repeat", "orthogonal with gain 4", ELMAN, init=(("orthogonal", 4.0),)),
        one("source", "all weights from N(0, 1)", {}, init=(("normal", 1.0),)),
    ]  # fmt: skip


def _saturated() -> list[Case]:
    def one(task: str, what: str, base: Changes, **ails: Any) -> Case:
        return ailing(task, what, "saturated_gate", base, ails)

    return [
        one("load", "update gates keep all", {}, init=(("update", 12.0),)),
        one("tokens", "update gates keep all", {"family": "gru", "bidirectional": False}, init=(("update", 10.0),)),
        one("prose", "output gates shut", {}, init=(("output", -12.0),)),
        one("load", "input gates shut", {"family": "lstm"}, init=(("input", -14.0),)),
        one("recall", "forget gates shut", {}, init=(("forget", -5.0),)),
        one("vowels", "output gates shut", {}, init=(("output", -12.0),)),
        one("repeat", "biases saturate the state", ELMAN, init=(("bias", 5.0),)),
        one("beats", "input gates shut", {}, init=(("input", -12.0),)),
    ]


def _dead() -> list[Case]:
    def one(task: str, what: str, base: Changes, **ails: Any) -> Case:
        return ailing(task, what, "dead_units", {**RELU, **base}, ails)

    return [
        one("chorale", "ReLU, biases of -2", {}, init=(("bias", -2.0),)),
        one("keywords", "ReLU, biases of -3", {"init": (("identity", 0.95),)}, init=(("bias", -3.0),)),
        one("adding", "ReLU, biases of -1.5", {"length": 60, "hidden": 100}, init=(("bias", -1.5),)),
        one("repeat", "ReLU, biases of -1.5", {"lr": 0.003}, init=(("bias", -1.5),)),
        one("membrane", "ReLU cells, biases of -4", {"form": "cells", "length": 60}, init=(("bias", -4.0),)),
    ]


def _detached() -> list[Case]:
    def one(task: str, what: str, base: Changes, **ails: Any) -> Case:
        return ailing(task, what, DETACHED, base, ails)

    return [
        one("adding", "cells, state detached at every step", {"form": "cells", "length": 60}, detach=1),
        one("keywords", "state detached every 10 frames", {}, detach=10),
        one("maze", "state detached every 5 steps", {}, detach=5),
        one("recall", "cells, state detached at every step", {"form": "cells", "length": 50}, detach=1),
        one("permuted", "state detached every 5 pixels", {}, detach=5),
        one("repeat", "cells, state detached at every step", {"form": "cells"}, detach=1),
    ]
