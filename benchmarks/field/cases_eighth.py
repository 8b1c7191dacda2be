"""An eighth part, by a third examiner who knew neither the rules nor what they say of any training.

No new task and no new kind of trouble: what practitioners meet most often, in the strengths in which the other parts
have it, in trainings that none of them has. Does the diagnosis hold for the usual trouble elsewhere?
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.field.case import EIGHTH, Case, ailing, odd, sound
from benchmarks.field.cases_again import DECAYED, DIVERGED, FORGOTTEN, MISSING, SINGLE
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
from benchmarks.field.cases_recurrence import DETACHED, ELMAN, LARGE, RELU
from benchmarks.field.cases_seventh import CELLS, SGD

SLOW = (("chrono", 1.0),)
TWO: Changes = {"layers": 2}
PACKED: Changes = {"form": "packed"}
FUSED: Changes = {"form": "fused"}


def cases() -> list[Case]:
    rooms = (_recurrence(), _units(), _inout(), _reading(), _clipping(), _loop(), _rates(), _weights())
    others = (_unrelated(), _sound(), _odd())
    return [replace(case, part=EIGHTH) for room in (*rooms, *others) for case in room]


def _recurrence() -> list[Case]:
    return [
        ailing("sine", "own cells with a sigmoid", VANISHING, OWN, {"family": "rnn_sigmoid", "init": ()}),
        ailing("recall", "own cells with a sigmoid", VANISHING, {},
               {"form": "own", "family": "rnn_sigmoid", "init": (), "lr": 0.003}),
        ailing("sensors", "own cells whose state is a softmax", VANISHING, {},
               {"form": "own", "family": "rnn_softmax", "init": (), "lr": 0.003}),
        ailing("waits", "Elman network, weights from N(0, 0.5)", LARGE, ELMAN, {"init": (("normal", 0.5),)}),
        ailing("activity", "ReLU, identity times 1.2", EXPLODING, RELU, {"init": (("identity", 1.2),)}),
        ailing("amounts", "weights and biases between -1 and 1", LARGE, {}, {"init": (("uniform", 1.0),)}),
        ailing("line", "GRU, all weights from N(0, 1)", LARGE, GRU, {"init": (("normal", 1.0),)}),
        ailing("recall", "own cells with peepholes, state detached at every step", DETACHED, {"form": "own"},
               {"detach": 1}),
        ailing("beats", "GRU, the encoder's state is detached every 2 samples", DETACHED, GRU, {"detach": 2}),
        ailing("repeat", "LSTM, state detached at every card", DETACHED, LSTM, {"detach": 1}),
    ]  # fmt: skip


def _units() -> list[Case]:
    return [
        ailing("tones", "Elman network in two directions, biases saturate the state", GATE, ELMAN,
               {"init": (("bias", 7.0),)}),
        ailing("activity", "GRU, update gates keep all", GATE, GRU, {"init": (("update", 14.0),)}),
        ailing("languages", "two directions of LSTM, output gates shut", GATE,
               {**LSTM, "bidirectional": True, "hidden": 64}, {"init": (("output", -12.0),)}),
        ailing("brackets", "two layers of ReLU, biases of -3", DEAD, {**RELU, **TWO, "lr": 0.003},
               {"init": (("bias", -3.0),)}),
        ailing("bandit", "ReLU cells, biases of -2", DEAD, {**RELU, **CELLS, "lr": 0.005},
               {"init": (("bias", -2.0),)}),
        ailing("source", "ReLU, biases of -3", DEAD, {"family": "rnn_relu", "lr": 0.003},
               {"init": (("bias", -3.0),)}),
    ]  # fmt: skip


def _inout() -> list[Case]:
    return [
        ailing("sorting", "LSTM, the encoder's state is detached", NONE, LSTM, {"handover": "detached"}),
        ailing("bandit", "LSTM cells, argmax before the loss", NONE, {**CELLS, **LSTM}, {"head": "argmax"}),
        ailing("maze", "GRU cells, argmax before the loss", NONE, CELLS, {"head": "argmax"}),
        ailing("brackets", "symbol by symbol, each from a zero state", SINGLE, {}, {"single": True}),
        ailing("sensors", "LSTM cells that nobody gives their state", SINGLE, CELLS, {"form": "forgetful"}),
        ailing("keywords", "GRU cells that nobody gives their state", SINGLE, CELLS, {"form": "forgetful"}),
        ailing("membrane", "GRU, samples are counted and added", UNSCALED, GRU, {"ramp": 5.0}),
        ailing("vowels", "GRU, letters' vectors that nobody scaled", UNSCALED, GRU, {"embed_scale": 200.0}),
    ]  # fmt: skip


def _reading() -> list[Case]:
    return [
        ailing("sine", "LSTM, packed, last position of the padded batch", MISREAD, {**LSTM, **PACKED},
               {"read": "end"}),
        ailing("modules", "two layers, packed, last position of the padded batch", MISREAD, TWO, {"read": "end"}),
        ailing("pixels", "time and batch exchanged", MISREAD, {"init": SLOW}, {"swapped": True}),
        ailing("adding", "GRU cells, time and batch exchanged", MISREAD, {**CELLS, "length": 60}, {"swapped": True}),
    ]  # fmt: skip


def _clipping() -> list[Case]:
    return [
        ailing("waits", "SGD, every number kept within 1e-5 by hand", f"{CLIPPING} {SMALL}",
               {**SGD, "lr": 0.1, "clip": 0.0, "clamp": 1.0}, {"clamp": 1e-5}),
        ailing("source", "GRU, SGD, every parameter clipped by itself at 0.0005", CLIPPING,
               {**STEEP, **GRU, "clip_each": True}, {"clip": 5e-4}),
        ailing("load", "LSTM, SGD, clipped by value at 1e-5", CLIPPING, {**LSTM, **SGD, "lr": 0.1},
               {"clip": 0.0, "clip_value": 1e-5}),
        ailing("waits", "Elman network, SGD without clipping", MISSING, {**STEEP_ELMAN, "lr": 0.5}, {"clip": 0.0}),
        ailing("docstrings", "two layers of Elman cells, SGD, clipped after the step", MISSING,
               {**STEEP_ELMAN, **CELLS, **TWO}, {"clip_late": True}),
        ailing("brackets", "two layers of Elman network, SGD, the read-out alone is clipped", MISSING,
               {**STEEP_ELMAN, **TWO, "lr": 2.0}, {"clip_part": "head"}),
    ]  # fmt: skip


def _loop() -> list[Case]:
    return [
        ailing("sorting", "attention over padding alone", NAN, {}, {"birth": "masked", "birth_at": 82}),
        ailing("sine", "packed, a signal that stands still, divided by its deviation", NAN, PACKED,
               {"birth": "constant", "birth_at": 73}),
        ailing("chorale", "GRU cells, deviation of the only one in a batch", NAN, {**CELLS, **GRU},
               {"birth": "alone", "birth_at": 55}),
        ailing("chorale", "GRU, no zero_grad, Adam", STALE, GRU, UNCLEARED),
        ailing("sine", "no zero_grad, SGD", STALE, {**SGD, "lr": 0.1}, UNCLEARED),
    ]  # fmt: skip


def _rates() -> list[Case]:
    return [
        ailing("vowels", "GRU, Adagrad at 1e-5", SMALL, {**GRU, "optimizer": "adagrad", "lr": 0.03}, {"lr": 1e-5}),
        ailing("words", "two layers of GRU, AdamW at 1e-6", SMALL, {**GRU, **TWO, "optimizer": "adamw"}, {"lr": 1e-6}),
        ailing("bandit", "warm-up of 100,000 steps", SMALL, {}, {"warmup": 100_000}),
        ailing("sensors", "learning rate times 1.02 at every batch", "diverged", {"length": 60}, {"decay": 1.02}),
        ailing("beats", "GRU, learning rate 0.3", DIVERGED, GRU, {"lr": 0.3}),
        ailing("prose", "two layers of GRU, learning rate times 1.05 at every batch", "diverged", {**GRU, **TWO},
               {"decay": 1.05}),
    ]  # fmt: skip


def _weights() -> list[Case]:
    return [
        ailing("sorting", "Adam, decay of 0.03", DECAYED, {}, {"weight_decay": 0.03}),
        ailing("docstrings", "GRU, Adam, decay of 0.03", DECAYED, GRU, {"weight_decay": 0.03}),
        ailing("tokens", "GRU, penalty of all squares in the loss", DECAYED, GRU, {"l2": 0.02}),
        ailing("brackets", "two layers of GRU, optimizer was made without them", FORGOTTEN, {**GRU, **TWO},
               {"forgotten": "rnn"}),
        ailing("activity", "GRU, recurrence made twice, the optimizer has the first", FORGOTTEN, GRU,
               {"replaced": "rnn"}),
        ailing("repeat", "LSTM, optimizer was made with the read-out alone", FORGOTTEN, LSTM, {"forgotten": "rnn"}),
    ]  # fmt: skip


def _unrelated() -> list[Case]:
    return [
        ailing("waits", "waits of other events", "", LSTM, {"labels": "random"}),
        ailing("sensors", "a rare fault that nothing tells of", "", {}, {"labels": "rare"}),
        ailing("repeat", "the loss has the wrong sign", "", {}, {"scale": -1.0}),
        ailing("activity", "view instead of transpose", "", GRU, {"viewed": True}),
        ailing("docstrings", "dropout of 0.98", "", {}, {"dropout": 0.98}),
        ailing("vowels", "a vocabulary that knows one letter in fifty", "", {}, {"unknown": 0.98}),
    ]


def _sound() -> list[Case]:
    return [
        sound("brackets", "two layers of GRU, AdamW", **GRU, **TWO, optimizer="adamw", weight_decay=0.01),
        sound("sine", "LSTM, packed, RMSprop, mean over time", **LSTM, **PACKED, optimizer="rmsprop", read="mean"),
        sound("waits", "two layers of LSTM, learning rate in cycles", **LSTM, **TWO, cycle=60),
        sound("sorting", "LSTM cells, NAdam", **CELLS, **LSTM, optimizer="nadam"),
        sound("bandit", "LSTM of 32, AdamW, warm-up", **LSTM, hidden=32, optimizer="adamw", warmup=15),
        sound("source", "two layers of LSTM, dropout, windows of 30", **TWO, dropout=0.1, length=30, steps=180),
        sound("docstrings", "GRU, tied weights", **GRU, hidden=96, embed=96, tied=True, embed_scale=0.1),
        sound("modules", "two directions of GRU, mean over time", **FUSED, bidirectional=True, read="mean", hidden=64),
        sound("permuted", "GRU cells, label smoothing", **CELLS, smoothing=0.1),
        sound("membrane", "LSTM of 96 with projections, windows of 90", hidden=96, proj=32, length=90),
        sound("activity", "three layers of GRU, learning rate falls at milestones", **GRU, layers=3, hidden=48,
              milestone=60, gamma=0.5),
        sound("amounts", "LSTM, AdamW, decay of 0.01", **LSTM, optimizer="adamw", weight_decay=0.01, lr=0.01,
              steps=260),
        sound("recall", "LSTM of 96, AdamW, batch of 48", hidden=96, optimizer="adamw", batch=48),
        sound("repeat", "two layers of GRU", **TWO),
        sound("languages", "two directions of GRU, packed, greatest over time", bidirectional=True, read="max",
              hidden=64),
        sound("prose", "own minimal cells, windows of 30", **GRU, form="own", length=30, lr=0.01, steps=160),
        sound("load", "two layers of GRU, RAdam, batch of 48", **TWO, optimizer="radam", batch=48),
    ]  # fmt: skip


def _odd() -> list[Case]:
    return [
        odd("sorting", "clipped at every step, Adam makes it good", clip=0.01),
        odd("sensors", "loss times 1,000, no clipping", scale=1e3, clip=0.0),
        odd("bandit", "every number kept within 1e-4 by hand, Adam makes it good", clip=0.0, clamp=1e-4),
        odd("docstrings", "texts are continued between the steps", between="sampling"),
        odd("vowels", "forget gates wide open", init=(("forget", 5.0),)),
        odd("membrane", "GRU, states carried from one batch to the next", **GRU, carry=True),
        odd("recall", "a layer that is never called", spare=True),
        odd("repeat", "clipped before backward, which it does not need", clip_early=True),
    ]
