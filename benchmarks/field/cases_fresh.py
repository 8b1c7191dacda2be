"""A fourth part: written without knowledge of the rules, after what people ask and report in public.

Kinds of trouble, strengths and forms are those of questions and issues: a scheduler that steps at every batch, clipping
after the step, one of two optimizers that is cleared, a column that nobody scaled, states without their past, softmax
before a loss that has its own. Tasks, families and sizes for a fault are others than in the parts before.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.field.case import FOURTH, Case, ailing, odd, sound
from benchmarks.field.cases_again import DECAYED, DIVERGED, FORGOTTEN, FUSED, MISSING, SINGLE
from benchmarks.field.cases_loop import SGD
from benchmarks.field.cases_recurrence import DETACHED, ELMAN, LARGE, PLAIN, RELU

Changes = dict[str, Any]
ORTHOGONAL = (("orthogonal", 1.0),)
OWN: Changes = {"form": "own", "family": "rnn_tanh", "init": ORTHOGONAL, "lr": 0.003}
GRU: Changes = {"family": "gru"}
LSTM: Changes = {"family": "lstm"}
UNCLEARED: Changes = {"zero_grad": False}
VANISHING, NONE, CLIPPING = "vanishing_gradient", "no_gradient", "excessive_clipping"
GATE, DEAD, UNSCALED, MISREAD = "saturated_gate", "dead_units", "unscaled_input", "misread_output"
NAN, STALE, SMALL = "nonfinite_gradient", "stale_gradient", "small_updates"


def cases() -> list[Case]:
    return [replace(case, part=FOURTH) for case in (*_recurrence(), *_inout(), *_loop(), *_unrelated(), *_sound())]


def _recurrence() -> list[Case]:
    return [
        ailing("chorale", "own cells with a sigmoid", VANISHING, OWN, {"family": "rnn_sigmoid", "init": ()}),
        ailing("repeat", "own cells with a sigmoid", VANISHING, OWN, {"family": "rnn_sigmoid", "init": ()}),
        ailing("load", "six layers of LSTM", VANISHING, LSTM, {"layers": 6}),
        ailing("permuted", "Elman network of 128 as torch begins it", VANISHING, {}, {**PLAIN, "hidden": 128}),
        ailing("recall", "GRU as torch begins it, 120 steps", VANISHING, {**GRU, "length": 120}, {"init": ()}),
        ailing("membrane", "ReLU cells, identity times 1.2", "exploding_gradient",
               {**RELU, "form": "cells", "length": 80}, {"init": (("identity", 1.2),)}),
        ailing("vowels", "GRU, orthogonal with gain 4", LARGE, GRU, {"init": (("orthogonal", 4.0),)}),
        ailing("vowels", "Elman network, weights from N(0, 0.4)", LARGE, ELMAN, {"init": (("normal", 0.4),)}),
        ailing("maze", "update gates keep all", GATE, {}, {"init": (("update", 8.0),)}),
        ailing("languages", "LSTM, forget gates shut", GATE, LSTM, {"init": (("forget", -8.0),)}),
        ailing("docstrings", "output gates shut", GATE, {}, {"init": (("output", -7.0),)}),
        ailing("vowels", "ReLU, biases of -2", DEAD, {**RELU, "bidirectional": False, "lr": 0.004},
               {"init": (("bias", -2.0),)}),
        ailing("load", "ReLU, biases of -2", DEAD, {**RELU, "lr": 0.003}, {"init": (("bias", -2.0),)}),
        ailing("adding", "state detached every 10 steps", DETACHED, {}, {"detach": 10}),
        ailing("repeat", "own cells with peepholes, state detached every 2 cards", DETACHED,
               {"form": "own", **LSTM}, {"detach": 2}),
        ailing("languages", "LSTM, state detached at every letter", DETACHED, {**FUSED, **LSTM}, {"detach": 1}),
    ]  # fmt: skip


def _inout() -> list[Case]:
    return [
        ailing("keywords", "states without their past go to the read-out", NONE, {}, {"head": "detached"}),
        ailing("load", "answers are rounded", NONE, {}, {"head": "round"}),
        ailing("beats", "GRU cells, the encoder's state is detached", NONE, {**GRU, "form": "cells"},
               {"handover": "detached"}),
        ailing("source", "letter by letter, each from a zero state", SINGLE, {}, {"single": True}),
        ailing("recall", "GRU, each symbol from a zero state", SINGLE, GRU, {"single": True}),
        ailing("keywords", "a column of time stamps", UNSCALED, {}, {"column": 500.0}),
        ailing("tones", "one feature about a thousand", UNSCALED, {}, {"column": 1000.0}),
        ailing("load", "temperatures in kelvin", UNSCALED, {}, {"inputs": 10.0, "offset": 285.0}),
        ailing("load", "time and batch exchanged", MISREAD, {}, {"swapped": True}),
        ailing("keywords", "last position behind 150 frames of silence", MISREAD, {}, {"read": "end", "pad": 150}),
        ailing("languages", "time and batch exchanged", MISREAD, FUSED, {"swapped": True}),
    ]  # fmt: skip


def _loop() -> list[Case]:
    return [
        ailing("languages", "SGD, clipped at 0.003", CLIPPING, {**SGD, "lr": 0.3}, {"clip": 0.003}),
        ailing("chorale", "SGD without momentum, clipped by value at 1e-5", CLIPPING,
               {"optimizer": "plain", "lr": 5.0, "clip": 5.0}, {"clip": 0.0, "clip_value": 1e-5}),
        ailing("docstrings", "GRU, SGD, clipped after the step", MISSING,
               {**GRU, "optimizer": "sgd", "lr": 1.5, "clip": 0.25}, {"clip_late": True}),
        ailing("line", "Adam, clipped after the step", MISSING, {}, {"clip_late": True}),
        ailing("chorale", "exponential of a log-variance", NAN, {}, {"birth": "exp", "birth_at": 52}),
        ailing("dates", "attention over padding alone", NAN, {}, {"birth": "masked", "birth_at": 88}),
        ailing("keywords", "a window that stands still, divided by its deviation", NAN, {},
               {"birth": "constant", "birth_at": 35}),
        ailing("beats", "only the encoder's gradients are cleared", STALE, {}, {**UNCLEARED, "cleared": "encoder"}),
        ailing("source", "no zero_grad, SGD", STALE, {**SGD, "lr": 0.5}, UNCLEARED),
        ailing("repeat", "no zero_grad, Adam", STALE, {}, UNCLEARED),
        ailing("vowels", "learning rate times 0.95 at every batch", SMALL, {}, {"decay": 0.95}),
        ailing("keywords", "warm-up of 100,000 steps", SMALL, {}, {"warmup": 100_000}),
        ailing("dates", "learning rate 1e-5", SMALL, {}, {"lr": 1e-5}),
        ailing("tokens", "SGD without momentum at 0.0001", SMALL, {"optimizer": "plain", "lr": 1.0}, {"lr": 1e-4}),
        ailing("modules", "learning rate times 1.04 at every batch", "diverged", {}, {"decay": 1.04}),
        ailing("languages", "RMSprop at 0.2", DIVERGED, {"optimizer": "rmsprop", "lr": 0.002}, {"lr": 0.2}),
        ailing("vowels", "Adam, decay of 0.03", DECAYED, {}, {"weight_decay": 0.03}),
        ailing("prose", "SGD, decay of 0.01", DECAYED, {**SGD, "lr": 1.0}, {"weight_decay": 0.01}),
        ailing("dates", "AdamW, decay of 8", DECAYED, {"optimizer": "adamw"}, {"weight_decay": 8.0}),
        ailing("languages", "optimizer was made with the read-out alone", FORGOTTEN, {}, {"forgotten": "rnn"}),
        ailing("beats", "optimizer was made without the decoder", FORGOTTEN, {}, {"forgotten": "decoder"}),
        ailing("permuted", "read-out in a Python list", FORGOTTEN, {}, {"head": "list"}),
    ]  # fmt: skip


def _unrelated() -> list[Case]:
    return [
        ailing("modules", "softmax before cross-entropy", "", {}, {"head": "probabilities"}),
        ailing("keywords", "view instead of transpose", "", {}, {"viewed": True}),
        ailing("load", "view instead of transpose", "", {}, {"viewed": True}),
        ailing("load", "targets in thousands", "", {}, {"targets": 100.0, "target_offset": 5000.0}),
        ailing("vowels", "softmax before cross-entropy", "", {}, {"head": "probabilities"}),
        ailing("chorale", "notes of another piece", "", {}, {"labels": "random"}),
        ailing("dates", "answers to other questions", "", {}, {"labels": "random"}),
        ailing("source", "dropout of 0.95", "", {}, {"dropout": 0.95}),
        ailing("languages", "a rare class that nothing tells of", "", {}, {"labels": "rare"}),
    ]


def _sound() -> list[Case]:
    return [
        *(sound(task, "a third seed", seed=2) for task in ("docstrings", "tones", "beats", "maze", "languages")),
        sound("prose", "GRU cells, AdamW, windows of 40", family="gru", form="cells", length=40, optimizer="adamw"),
        sound("words", "two layers of GRU, RAdam, dropout", family="gru", layers=2, optimizer="radam", dropout=0.3),
        sound("vowels", "Elman network in two directions", family="rnn_tanh", init=ORTHOGONAL, lr=0.003),
        sound("tokens", "own cells with peepholes", form="own", bidirectional=False, length=50),
        sound("languages", "two directions of LSTM, RMSprop", family="lstm", bidirectional=True, optimizer="rmsprop"),
        sound("modules", "LSTM, NAdam, mean over time", family="lstm", optimizer="nadam", read="mean"),
        sound("load", "LSTM, learning rate falls by and by", family="lstm", decay=0.985),
        sound("membrane", "three layers of GRU", family="gru", layers=3, length=80),
        sound("dates", "two layers of GRU, dropout", layers=2, dropout=0.2),
        sound("chorale", "LSTM, Adagrad", family="lstm", optimizer="adagrad", lr=0.03),
        sound("activity", "GRU, AdamW, warm-up", family="gru", optimizer="adamw", warmup=20),
        sound("amounts", "five layers of GRU", layers=5),
        sound("repeat", "LSTM cells", family="lstm", form="cells"),
        sound("line", "GRU", family="gru"),
        sound("adding", "a third seed", seed=2),
        odd("keywords", "states carried from one batch to the next", carry=True),
        odd("load", "states carried from one batch to the next", carry=True),
        odd("languages", "last position of a padded batch", **FUSED, read="end"),
        odd("keywords", "two directions, both read at the last position", bidirectional=True, read="end"),
        odd("beats", "heights up to 10", inputs=4.0, offset=1.0),
        odd("keywords", "features up to 10", inputs=4.0, offset=1.0),
        odd("line", "pixels from 0 to 16", inputs=16.0),
        odd("prose", "weights from N(0, 0.2)", init=(("normal", 0.2),)),
        odd("tokens", "weights from N(0, 0.02)", init=(("normal", 0.02),)),
        odd("vowels", "loss times 1,000, clipped at every step", scale=1e3, clip=0.25),
        odd("source", "clipped at every step, Adam makes it good", clip=0.02),
        odd("tokens", "state detached every 25 letters", bidirectional=False, detach=25),
        odd("docstrings", "AdamW, decay of 1", optimizer="adamw", weight_decay=1.0),
        odd("tokens", "clipped after the step, which it does not need", clip_late=True),
        odd("chorale", "dropout of 0.5", dropout=0.5),
    ]
