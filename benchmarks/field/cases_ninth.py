"""A ninth part, by a fourth examiner who knew neither the rules nor what they say of any training.

As in the eighth: no new task and no new kind of trouble, in trainings that no other part has. Most are small, with
fewer units or shorter sequences than a task's usual training.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.field.case import NINTH, Case, ailing, odd, sound
from benchmarks.field.cases_again import ADAMW, DECAYED, DIVERGED, FORGOTTEN, MISSING, SINGLE
from benchmarks.field.cases_eighth import FUSED, PACKED, SLOW, TWO
from benchmarks.field.cases_fifth import EXPLODING, STEEP, STEEP_ELMAN
from benchmarks.field.cases_fresh import (
    CLIPPING,
    DEAD,
    GATE,
    GRU,
    LSTM,
    MISREAD,
    NAN,
    NONE,
    OWN,
    SMALL,
    STALE,
    UNCLEARED,
    UNSCALED,
    VANISHING,
    Changes,
)
from benchmarks.field.cases_recurrence import DETACHED, ELMAN, LARGE, PLAIN, RELU
from benchmarks.field.cases_seventh import CELLS, SGD

BRACKETS: Changes = {**GRU, "hidden": 48}
SINE: Changes = {**LSTM, "hidden": 48, "length": 60}
WAITS: Changes = {**LSTM, "hidden": 48}
SENSORS: Changes = {**GRU, "length": 60}
SORTING: Changes = {"hidden": 64}
BANDIT: Changes = {**LSTM, **ADAMW, "hidden": 32, "warmup": 15}
PERMUTED: Changes = {"hidden": 48}
ACTIVITY: Changes = {**GRU, "length": 80, "hidden": 48}
RECALL: Changes = {**GRU, "length": 40}
ADDING: Changes = {"length": 50}
NAMES: Changes = {**LSTM, "hidden": 64}
CHORALE: Changes = {**LSTM, "lr": 0.006}
MEMBRANE: Changes = {**GRU, **TWO, **ADAMW, "hidden": 48, "length": 60}
VOWELS: Changes = {**GRU, **ADAMW, "hidden": 48, "batch": 24}
PIXELS: Changes = {**GRU, "length": 100, "init": SLOW}


def cases() -> list[Case]:
    rooms = (_recurrence(), _exploding(), _units(), _state(), _inout(), _reading(), _clipping(), _loop(), _rates())
    others = (_weights(), _unrelated(), _sound(), _odd())
    return [replace(case, part=NINTH) for room in (*rooms, *others) for case in room]


def _recurrence() -> list[Case]:
    return [
        ailing("sensors", "Elman network as torch begins it, 60 samples", VANISHING, SENSORS, PLAIN),
        ailing("sorting", "Elman networks as torch begins them", VANISHING, SORTING, PLAIN),
        ailing("adding", "Elman cells as torch begins them", VANISHING, {**ADDING, **CELLS}, PLAIN),
        ailing("docstrings", "seven layers of GRU", VANISHING, {**GRU, "hidden": 64}, {"layers": 7}),
        ailing("maze", "weights from N(0, 0.01)", VANISHING, {}, {"init": (("normal", 0.01),)}),
        ailing("sine", "LSTM, weights from N(0, 0.001)", VANISHING, SINE, {"init": (("normal", 0.001),)}),
    ]  # fmt: skip


def _exploding() -> list[Case]:
    return [
        ailing("sensors", "GRU, all weights from N(0, 1)", LARGE, SENSORS, {"init": (("normal", 1.0),)}),
        ailing("beats", "GRU, weights and biases between -2 and 2", LARGE, GRU, {"init": (("uniform", 2.0),)}),
        ailing("sine", "ReLU, packed, identity times 1.2", EXPLODING, {**RELU, **PACKED},
               {"init": (("identity", 1.2),)}),
        ailing("source", "own cells without a curve, orthogonal with gain 1.3", EXPLODING,
               {**OWN, "hidden": 64, "length": 40}, {"family": "rnn_linear", "init": (("orthogonal", 1.3),)}),
    ]  # fmt: skip


def _units() -> list[Case]:
    return [
        ailing("vowels", "GRU, update gates keep all", GATE, VOWELS, {"init": (("update", 12.0),)}),
        ailing("sine", "LSTM, output gates shut", GATE, SINE, {"init": (("output", -12.0),)}),
        ailing("brackets", "two layers of Elman network, biases saturate the state", GATE, {**ELMAN, **TWO},
               {"init": (("bias", 10.0),)}),
        ailing("sine", "ReLU, packed, biases of -3", DEAD, {**RELU, **PACKED}, {"init": (("bias", -3.0),)}),
        ailing("words", "ReLU, biases of -3", DEAD, {**RELU, "lr": 0.003}, {"init": (("bias", -3.0),)}),
        ailing("modules", "ReLU, packed, biases of -2", DEAD, {**RELU, "lr": 0.002}, {"init": (("bias", -2.0),)}),
    ]  # fmt: skip


def _state() -> list[Case]:
    return [
        ailing("recall", "GRU, state detached every 2 symbols", DETACHED, RECALL, {"detach": 2}),
        ailing("waits", "LSTM, state detached at every event", DETACHED, WAITS, {"detach": 1}),
        ailing("modules", "LSTM, state detached at every word", DETACHED, {**LSTM, **FUSED}, {"detach": 1}),
        ailing("waits", "LSTM, event by event, each from a zero state", SINGLE, WAITS, {"single": True}),
        ailing("sensors", "GRU, sample by sample, each from a zero state", SINGLE, SENSORS, {"single": True}),
        ailing("brackets", "GRU cells that nobody gives their state", SINGLE, {**BRACKETS, **CELLS},
               {"form": "forgetful"}),
    ]  # fmt: skip


def _inout() -> list[Case]:
    return [
        ailing("brackets", "GRU within no_grad", NONE, BRACKETS, {"head": "no_grad"}),
        ailing("recall", "GRU that requires no gradient", NONE, RECALL, {"frozen": "rnn"}),
        ailing("pixels", "GRU, argmax before the loss", NONE, PIXELS, {"head": "argmax"}),
        ailing("waits", "LSTM, a column in thousands", UNSCALED, WAITS, {"column": 1000.0}),
        ailing("sensors", "GRU, raw counts of the converter", UNSCALED, SENSORS,
               {"inputs": 500.0, "offset": 2048.0}),
        ailing("permuted", "GRU of 48, -9999 for what is missing", UNSCALED, PERMUTED, {"sentinel": 0.03}),
    ]  # fmt: skip


def _reading() -> list[Case]:
    return [
        ailing("sine", "two layers of GRU, first position instead of the last", MISREAD, {**TWO, "length": 60},
               {"read": "start"}),
        ailing("languages", "LSTM, packed, last position of the padded batch", MISREAD, NAMES, {"read": "end"}),
        ailing("load", "two layers of LSTM, time and batch exchanged", MISREAD,
               {**LSTM, **TWO, "hidden": 48, "length": 72}, {"swapped": True}),
    ]  # fmt: skip


def _clipping() -> list[Case]:
    return [
        ailing("sensors", "GRU, Adam, clipped at 1e-9", CLIPPING, SENSORS, {"clip": 1e-9}),
        ailing("sine", "LSTM, SGD, clipped at 0.0003", CLIPPING, {**SINE, **SGD, "lr": 0.1}, {"clip": 3e-4}),
        ailing("docstrings", "SGD, clipped by value at 1e-6", CLIPPING, STEEP, {"clip": 0.0, "clip_value": 1e-6}),
        ailing("words", "two layers of Elman network, SGD, the embedding alone is clipped", MISSING,
               {**STEEP_ELMAN, **TWO}, {"clip_part": "embed"}),
        ailing("prose", "two layers of Elman cells, SGD, clipped after the step", MISSING,
               {**STEEP_ELMAN, **CELLS, **TWO, "lr": 2.0, "length": 40, "hidden": 96}, {"clip_late": True}),
        ailing("source", "two layers of Elman network, SGD without clipping", MISSING, {**STEEP_ELMAN, **TWO},
               {"clip": 0.0}),
    ]  # fmt: skip


def _loop() -> list[Case]:
    return [
        ailing("recall", "GRU, exponential of a log-variance", NAN, RECALL, {"birth": "exp", "birth_at": 101}),
        ailing("brackets", "GRU, square root below 0, kept out by where", NAN, BRACKETS,
               {"birth": "where", "birth_at": 45}),
        ailing("activity", "GRU, logarithm of a count of 0", NAN, ACTIVITY, {"birth": "count", "birth_at": 58}),
        ailing("beats", "GRU, only the decoder's gradients are cleared", STALE, GRU,
               {**UNCLEARED, "cleared": "decoder"}),
        ailing("languages", "LSTM, SGD, no zero_grad", STALE, {**NAMES, **SGD}, UNCLEARED),
        ailing("source", "SGD, zero_grad every 65 batches", STALE, STEEP, {"zero_every": 65}),
    ]  # fmt: skip


def _rates() -> list[Case]:
    return [
        ailing("beats", "GRU, learning rate 1e-6", SMALL, GRU, {"lr": 1e-6}),
        ailing("sorting", "learning rate times 0.9 at every step", SMALL, SORTING, {"decay": 0.9}),
        ailing("chorale", "LSTM, milestones in epochs, steps in batches", SMALL, CHORALE,
               {"milestone": 10, "gamma": 0.1}),
        ailing("words", "GRU, learning rate 0.5", DIVERGED, GRU, {"lr": 0.5}),
        ailing("waits", "LSTM, learning rate rises to 1", "diverged", WAITS, {"warmup": 180, "lr": 1.0}),
        ailing("amounts", "learning rate times 1.03 at every batch", "diverged", {}, {"decay": 1.03}),
    ]  # fmt: skip


def _weights() -> list[Case]:
    return [
        ailing("vowels", "GRU, AdamW, decay of 10", DECAYED, VOWELS, {"weight_decay": 10.0}),
        ailing("recall", "GRU, penalty of all squares in the loss", DECAYED, RECALL, {"l2": 0.05}),
        ailing("chorale", "LSTM, Adam, decay of 0.1", DECAYED, CHORALE, {"weight_decay": 0.1}),
        ailing("vowels", "GRU, read-out in a Python list", FORGOTTEN, VOWELS, {"head": "list"}),
        ailing("adding", "50 steps, optimizer was made with the read-out alone", FORGOTTEN, ADDING,
               {"forgotten": "rnn"}),
        ailing("line", "GRU made twice, the optimizer has the first", FORGOTTEN, GRU, {"replaced": "rnn"}),
    ]  # fmt: skip


def _unrelated() -> list[Case]:
    return [
        ailing("brackets", "brackets of another text", "", BRACKETS, {"labels": "random"}),
        ailing("sine", "LSTM, the file holds zeros alone", "", SINE, {"inputs": 0.0}),
        ailing("beats", "GRU, answers (N, 1), targets (N,)", "", {**GRU, "batch": 12}, {"labels": "broadcast"}),
        ailing("permuted", "view instead of transpose", "", PERMUTED, {"viewed": True}),
        ailing("languages", "LSTM, softmax over the batch before cross-entropy", "", NAMES, {"head": "over batch"}),
        ailing("tokens", "GRU, a vocabulary that knows one letter in fifty", "", GRU, {"unknown": 0.98}),
        ailing("activity", "GRU, noise of ten times the signal", "", ACTIVITY, {"noise": 10.0}),
        ailing("adding", "targets in thousands", "", ADDING, {"targets": 100.0, "target_offset": 3000.0}),
    ]


def _sound() -> list[Case]:
    return [
        sound("brackets", "GRU of 48", **BRACKETS),
        sound("sine", "LSTM of 48, windows of 60", **SINE),
        sound("sensors", "GRU, windows of 60", **SENSORS),
        sound("languages", "LSTM of 64, packed", **NAMES),
        sound("keywords", "GRU of 48, NAdam, greatest over time", hidden=48, optimizer="nadam", read="max"),
        sound("membrane", "two layers of GRU, AdamW, windows of 60", **MEMBRANE),
        sound("amounts", "GRU of 96, NAdam", hidden=96, optimizer="nadam"),
        sound("chorale", "LSTM of 96, Adamax", **LSTM, hidden=96, optimizer="adamax", lr=0.015),
        sound("load", "LSTM in two directions, three days", **LSTM, bidirectional=True, hidden=48, length=72),
        sound("dates", "GRU of 96, NAdam", hidden=96, optimizer="nadam"),
        sound("repeat", "GRU of 48, RAdam", hidden=48, optimizer="radam"),
        sound("vowels", "GRU of 48, AdamW, batch of 24", **VOWELS),
    ]


def _odd() -> list[Case]:
    return [
        odd("waits", "LSTM, clipped at every step, Adam makes it good", **WAITS, clip=0.005),
        odd("sine", "loss times 10,000, no clipping", **PACKED, scale=1e4, clip=0.0),
        odd("brackets", "GRU, state detached every 20 symbols", **BRACKETS, detach=20),
        odd("sorting", "two terms go backward one by one", **SORTING, twice=True),
        odd("bandit", "LSTM of 32, AdamW, a layer that is never called", **BANDIT, spare=True),
        odd("pixels", "GRU, pixels from 0 to 16", **PIXELS, inputs=16.0),
        odd("languages", "LSTM, embeddings are frozen", **NAMES, frozen="embed"),
        odd("tones", "a layer that is never called", spare=True),
        odd("activity", "GRU, an offset of 2", **ACTIVITY, offset=2.0),
        odd("adding", "loss times 0.001", **ADDING, scale=1e-3),
    ]
