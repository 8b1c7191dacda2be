"""A third part: the same kinds of trouble in other trainings, made after severities had been changed.

The held-out half has been looked at once. Rules that change afterwards are judged by these trainings, which no rule has
seen: other tasks, families, lengths and sizes for every fault, and healthy ones that come near to a fault.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.field.case import THIRD, Case, ailing, odd, sound
from benchmarks.field.cases_loop import SGD, STEEP
from benchmarks.field.cases_recurrence import ELMAN, LARGE, PLAIN, RELU

Changes = dict[str, Any]
FUSED: Changes = {"form": "fused"}
DEEP: Changes = {"form": "residual", "layers": 6, "hidden": 64}
FORGOTTEN, DECAYED, SINGLE = "unoptimized_parameters", "decayed_weights", "single_timestep"
DIVERGED = "diverged saturated_gate exploding_gradient missing_clipping"
MISSING = "missing_clipping exploding_gradient diverged"
ADAMW: Changes = {"optimizer": "adamw"}


def cases() -> list[Case]:
    return [replace(case, part=THIRD) for case in (*_recurrence(), *_inout(), *_loop(), *_unrelated(), *_sound())]


def _recurrence() -> list[Case]:
    return [
        ailing("keywords", "Elman network as torch begins it", "vanishing_gradient", {}, PLAIN),
        ailing("words", "six layers of LSTM", "vanishing_gradient", DEEP, FUSED),
        ailing("membrane", "Elman network as torch begins it", "vanishing_gradient", {}, PLAIN),
        ailing("prose", "all weights from N(0, 1)", LARGE, {}, {"init": (("normal", 1.0),)}),
        ailing("chorale", "all weights from N(0, 1)", LARGE, {}, {"init": (("normal", 1.0),)}),
        ailing("tokens", "orthogonal with gain 5", LARGE, {}, {"init": (("orthogonal", 5.0),)}),
        ailing("keywords", "ReLU, identity times 1.3", "exploding_gradient", RELU, {"init": (("identity", 1.3),)}),
        ailing("source", "output gates shut", "saturated_gate", {}, {"init": (("output", -12.0),)}),
        ailing("membrane", "update gates keep all", "saturated_gate", {"family": "gru"}, {"init": (("update", 12.0),)}),
        ailing("activity", "input gates shut", "saturated_gate", {}, {"init": (("input", -14.0),)}),
        ailing("keywords", "biases saturate the state", "saturated_gate", ELMAN, {"init": (("bias", 6.0),)}),
        ailing("pixels", "output gates shut", "saturated_gate", {}, {"init": (("output", -10.0),)}),
        ailing("tokens", "ReLU, biases of -3", "dead_units", {**RELU, "bidirectional": False},
               {"init": (("bias", -3.0),)}),
        ailing("tones", "ReLU, biases of -3", "dead_units", {**RELU, "bidirectional": False},
               {"init": (("bias", -3.0),)}),
        ailing("activity", "state detached every 10 samples", "detached_state", {}, {"detach": 10}),
        ailing("maze", "cells, state detached at every step", "detached_state", {"form": "cells"}, {"detach": 1}),
        ailing("pixels", "state detached every 8 pixels", "detached_state", {"init": (("chrono", 1.0),)},
               {"detach": 8}),
    ]  # fmt: skip


def _inout() -> list[Case]:
    return [
        ailing("tokens", "argmax before the loss", "no_gradient", {}, {"head": "argmax"}),
        ailing("dates", "the encoder's state is detached", "no_gradient", {}, {"handover": "detached"}),
        ailing("beats", "decoder without the encoder's state", "no_gradient", {}, {"handover": "none"}),
        ailing("activity", "softmax over one unit", "no_gradient", {}, {"head": "softmax"}),
        ailing("recall", "symbol by symbol, each from a zero state", SINGLE, {}, {"single": True}),
        ailing("tones", "frame by frame, each from a zero state", SINGLE, {}, {"single": True}),
        ailing("chorale", "chord by chord, each from a zero state", SINGLE, {}, {"single": True}),
        ailing("pixels", "pixels from 0 to 255", "unscaled_input", {}, {"inputs": 255.0}),
        ailing("permuted", "pixels from 0 to 255", "unscaled_input", {}, {"inputs": 255.0}),
        ailing("load", "LSTM, demand in kW", "unscaled_input", {"family": "lstm"}, {"inputs": 1e5, "offset": 5e5}),
        ailing("tones", "energies about 2,000", "unscaled_input", {}, {"inputs": 500.0, "offset": 2000.0}),
        ailing("activity", "Elman network, milli-g", "unscaled_input", ELMAN, {"inputs": 1000.0, "offset": 1000.0}),
        ailing("languages", "first position instead of the last", "misread_output", FUSED, {"read": "start"}),
        ailing("modules", "time and batch exchanged", "misread_output", FUSED, {"swapped": True}),
        ailing("permuted", "first position instead of the last", "misread_output", {}, {"read": "start"}),
        ailing("languages", "LSTM, last position of long padding", "misread_output", {**FUSED, "family": "lstm"},
               {"read": "end", "pad": 200}),
    ]  # fmt: skip


def _loop() -> list[Case]:
    return [
        ailing("activity", "Adam, clipped at 1e-9", "excessive_clipping", {}, {"clip": 1e-9}),
        ailing("load", "SGD, clipped at 0.0003", "excessive_clipping", SGD, {"clip": 3e-4}),
        ailing("words", "SGD without clipping", MISSING, STEEP, {"clip": 0.0}),
        ailing("docstrings", "SGD without clipping", MISSING, STEEP, {"clip": 0.0}),
        ailing("membrane", "a missing value in one window", "nonfinite_gradient", {},
               {"birth": "missing", "birth_at": 47}),
        ailing("keywords", "logarithm of 0", "nonfinite_gradient", {}, {"birth": "log", "birth_at": 66}),
        ailing("beats", "distance of equal states", "nonfinite_gradient", {}, {"birth": "root", "birth_at": 103}),
        ailing("keywords", "no zero_grad, Adam", "stale_gradient", {}, {"zero_grad": False}),
        ailing("beats", "no zero_grad, Adam", "stale_gradient", {}, {"zero_grad": False}),
        ailing("tones", "learning rate 1e-6", "small_updates", {}, {"lr": 1e-6}),
        ailing("keywords", "SGD at 1e-6, momentum", "small_updates", SGD, {"lr": 1e-6}),
        ailing("source", "learning rate 0.5", DIVERGED, {}, {"lr": 0.5}),
        ailing("tokens", "learning rate 0.7", DIVERGED, {}, {"lr": 0.7}),
        ailing("activity", "learning rate rises to 2", "diverged", {}, {"warmup": 140, "lr": 2.0}),
        ailing("source", "AdamW, decay of 20", DECAYED, {}, {**ADAMW, "weight_decay": 20.0}),
        ailing("tones", "AdamW, decay of 10", DECAYED, {}, {**ADAMW, "weight_decay": 10.0}),
        ailing("load", "Adam, decay of 0.3", DECAYED, {}, {"weight_decay": 0.3}),
        ailing("membrane", "read-out in a Python list", FORGOTTEN, {}, {"head": "list"}),
        ailing("tones", "read-out in a Python list", FORGOTTEN, {}, {"head": "list"}),
        ailing("source", "optimizer was made without the read-out", FORGOTTEN, {}, {"forgotten": "head"}),
    ]  # fmt: skip


def _unrelated() -> list[Case]:
    return [
        ailing("tones", "transcripts of other recordings", "", {}, {"labels": "random"}),
        ailing("vowels", "sounds of another text", "", {}, {"labels": "random"}),
        ailing("recall", "answers are noise", "", {}, {"labels": "random"}),
        ailing("pixels", "labels shuffled", "", {}, {"labels": "random"}),
        ailing("words", "dropout of 0.98", "", {}, {"dropout": 0.98}),
        ailing("activity", "a rare class that nothing tells of", "", {}, {"labels": "rare"}),
    ]


def _sound() -> list[Case]:
    return [
        *(
            sound(task, "another seed", seed=1)
            for task in ("prose", "modules", "line", "repeat", "amounts", "activity")
        ),
        sound("source", "GRU of 256, windows of 35", family="gru", hidden=256, length=35, steps=80, lr=0.003),
        sound("languages", "two layers of LSTM, packed, dropout", family="lstm", layers=2, dropout=0.3),
        sound("keywords", "GRU cells, AdamW", form="cells", optimizer="adamw", weight_decay=0.01),
        sound("tokens", "SGD, warm-up", optimizer="sgd", lr=0.5, warmup=20),
        sound("membrane", "two layers of LSTM, windows of 60", layers=2, length=60),
        sound("load", "accumulated over two", accumulate=2, batch=12),
        odd("tones", "features up to 10", inputs=3.0),
        odd("activity", "an offset of 2", offset=2.0),
        odd("load", "demand from 0 to 10", inputs=3.0, offset=5.0),
        odd("membrane", "in tenths of a standard deviation", inputs=10.0),
        odd("words", "states detached between windows of 10", length=10, batch=48, steps=180),
        odd("tokens", "forget gates wide open", init=(("forget", 5.0),)),
        odd("keywords", "slow update gates", init=(("update", 4.0),)),
        odd("permuted", "loss times 1e4", scale=1e4, clip=0.0),
        odd("dates", "clipped at every step, Adam makes it good", clip=0.01),
        odd("chorale", "biases of 1", init=(("bias", 1.0),)),
        odd("source", "large first weights", init=(("orthogonal", 1.5),)),
    ]
