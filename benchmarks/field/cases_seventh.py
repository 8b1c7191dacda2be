"""A seventh part, by another examiner who knew neither the rules nor what they say: half of it in `tasks_other`.

Faults are those of people's own code: one part alone clipped, milestones in epochs and steps in batches, -9999 for what
is missing, the wrong norm, a group of parameters that hardly moves, cells that nobody gives their state.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.field.case import SEVENTH, Case, ailing, odd, sound
from benchmarks.field.cases_again import DECAYED, DIVERGED, FORGOTTEN, MISSING, SINGLE
from benchmarks.field.cases_fifth import EXPLODING, ONE_WAY, STEEP, STEEP_ELMAN
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
    UNSCALED,
    VANISHING,
    Changes,
)
from benchmarks.field.cases_recurrence import DETACHED, ELMAN, LARGE, RELU

CELLS: Changes = {"form": "cells"}
LEAKY: Changes = {"form": "own", "family": "rnn_tanh", "init": (), "lr": 0.003}
SGD: Changes = {"optimizer": "sgd", "lr": 0.3}


def cases() -> list[Case]:
    rooms = (_recurrence(), _gates(), _inout(), _clipping(), _loop(), _rates(), _unrelated(), _sound(), _odd())
    return [replace(case, part=SEVENTH) for room in rooms for case in room]


def _recurrence() -> list[Case]:
    return [
        ailing("maze", "own leaky cells, the leak is 0.95 and not 0.05", VANISHING, {**LEAKY, "leak": 0.05},
               {"leak": 0.95}),
        ailing("sorting", "six layers of GRU", VANISHING, {}, {"layers": 6}),
        ailing("brackets", "seven layers of LSTM", VANISHING, {}, {"layers": 7}),
        ailing("repeat", "own cells that are added to their state", EXPLODING, OWN, {"family": "rnn_skip"}),
        ailing("load", "GRU cells, half of the state is dropped at every timestep", VANISHING, CELLS, {"mask": 0.5}),
        ailing("brackets", "ReLU, identity times 1.3", EXPLODING, RELU, {"init": (("identity", 1.3),)}),
        ailing("bandit", "Elman network, weights from torch.rand", LARGE, ELMAN, {"init": (("positive", 1.0),)}),
        ailing("vowels", "LSTM cells, weights from torch.rand", LARGE, {**CELLS, **ONE_WAY},
               {"init": (("positive", 1.0),)}),
        ailing("waits", "GRU cells, state detached at every event", DETACHED, CELLS, {"detach": 1}),
        ailing("sensors", "state detached every 4 samples", DETACHED, {}, {"detach": 4}),
        ailing("keywords", "read without gradients but for the last 5 frames", DETACHED, {}, {"burn": 75}),
        ailing("recall", "the cell is detached at every step, the state is not", DETACHED, {},
               {"detach": 1, "half": "c"}),
    ]  # fmt: skip


def _gates() -> list[Case]:
    return [
        ailing("recall", "biases for a long memory, with the wrong sign", f"{GATE} {VANISHING}", {},
               {"init": (("turned", 1.0),)}),
        ailing("waits", "update gates keep all", GATE, {}, {"init": (("update", 10.0),)}),
        ailing("sensors", "forget gates shut", GATE, {}, {"init": (("forget", -12.0),)}),
        ailing("modules", "LSTM, output gates shut", GATE, LSTM, {"init": (("output", -12.0),)}),
        ailing("tokens", "own ReLU cells, biases of -3", DEAD, {**RELU, **ONE_WAY, "form": "own", "lr": 0.003},
               {"init": (("bias", -3.0),)}),
        ailing("sensors", "own ReLU cells, biases of -3", DEAD, {**RELU, "form": "own", "lr": 0.003},
               {"init": (("bias", -3.0),)}),
        ailing("waits", "ReLU, biases of -3", DEAD, {**RELU, "lr": 0.003}, {"init": (("bias", -3.0),)}),
    ]  # fmt: skip


def _inout() -> list[Case]:
    return [
        ailing("sine", "the recurrence requires no gradient", NONE, {}, {"frozen": "rnn"}),
        ailing("keywords", "the loss has a weight that stays 0", NONE, {}, {"scale": 0.0}),
        ailing("sorting", "decoder without the encoder's state", NONE, {}, {"handover": "none"}),
        ailing("waits", "GRU cells that nobody gives their state", SINGLE, CELLS, {"form": "forgetful"}),
        ailing("repeat", "GRU cells that nobody gives their state", SINGLE, CELLS, {"form": "forgetful"}),
        ailing("permuted", "GRU cells that nobody gives their state", SINGLE, CELLS, {"form": "forgetful"}),
        ailing("load", "LSTM, hours are counted and added", UNSCALED, LSTM, {"ramp": 30.0}),
        ailing("bandit", "learns from single transitions", SINGLE, {}, {"single": True}),
        ailing("sensors", "-9999 for what is missing", UNSCALED, {}, {"sentinel": 0.03}),
        ailing("keywords", "GRU, -9999 for what is missing", UNSCALED, {}, {"sentinel": 0.03}),
        ailing("sine", "raw counts of the converter", UNSCALED, {}, {"inputs": 500.0, "offset": 2048.0}),
        ailing("sine", "last position of long padding", MISREAD, {}, {"read": "end", "pad": 250}),
        ailing("sine", "time and batch exchanged", MISREAD, {}, {"swapped": True}),
        ailing("pixels", "first position instead of the last", MISREAD, {"init": (("chrono", 1.0),)},
               {"read": "start"}),
    ]  # fmt: skip


def _clipping() -> list[Case]:
    return [
        ailing("brackets", "SGD, the sum of sizes clipped, not the root of squares", CLIPPING,
               {**SGD, "lr": 0.5, "clip": 0.1}, {"norm": 1.0}),
        ailing("dates", "SGD, the sum of sizes clipped, not the root of squares", CLIPPING,
               {**SGD, "clip": 0.3}, {"norm": 1.0}),
        ailing("vowels", "SGD, every parameter clipped by itself at 0.002", CLIPPING,
               {**SGD, "clip_each": True}, {"clip": 0.002}),
        ailing("brackets", "Elman network, SGD without clipping", MISSING, {**STEEP_ELMAN, "lr": 2.0}, {"clip": 0.0}),
        ailing("source", "Elman network, SGD, the embedding alone is clipped", MISSING, STEEP_ELMAN,
               {"clip_part": "embed"}),
        ailing("sorting", "SGD, the learning rate of Adam as the norm", CLIPPING, {**SGD, "lr": 1.0}, {"clip": 0.003}),
        ailing("sorting", "Elman network, SGD without clipping", MISSING, STEEP_ELMAN, {"clip": 0.0}),
    ]  # fmt: skip


def _loop() -> list[Case]:
    return [
        ailing("sensors", "shares of squares in half precision", NAN, {}, {"birth": "half", "birth_at": 41}),
        ailing("waits", "logarithm of a count of 0", NAN, {}, {"birth": "count", "birth_at": 64}),
        ailing("chorale", "p log p of a probability of 0", NAN, {}, {"birth": "entropy", "birth_at": 33}),
        ailing("modules", "angle between a vector and itself", NAN, {}, {"birth": "angle", "birth_at": 57}),
        ailing("sensors", "no zero_grad, Adam", STALE, {}, {"zero_grad": False}),
        ailing("keywords", "two optimizers, the read-out's gradients alone are cleared", STALE, {},
               {"zero_grad": False, "cleared": "head"}),
        ailing("waits", "no zero_grad, SGD", STALE, {**SGD, "lr": 0.1}, {"zero_grad": False}),
        ailing("prose", "penalty of all sizes in the loss", DECAYED, {}, {"l1": 0.001}),
        ailing("brackets", "penalty of all squares in the loss", DECAYED, {}, {"l2": 0.05}),
        ailing("sensors", "Adam, decay of 0.05", DECAYED, {}, {"weight_decay": 0.05}),
        ailing("waits", "three more layers in a Python list", FORGOTTEN, {"layers": 4}, {"layers": 1, "stacked": 3}),
        ailing("sorting", "optimizer was made without the encoder", FORGOTTEN, {}, {"forgotten": "encoder"}),
        ailing("source", "optimizer was made with the recurrence alone", FORGOTTEN, {}, {"forgotten": "d"}),
    ]  # fmt: skip


def _rates() -> list[Case]:
    return [
        ailing("brackets", "Adam, epsilon of 1", SMALL, {}, {"eps": 1.0}),
        ailing("tones", "the recurrence has a group of its own at 1e-5 of the rate", SMALL, {}, {"slow": "rnn"}),
        ailing("brackets", "a gamma of 10 at every milestone", DIVERGED, {}, {"milestone": 60, "gamma": 10.0}),
        ailing("dates", "milestones in epochs, steps in batches", SMALL, {}, {"milestone": 15, "gamma": 0.1}),
        ailing("words", "learning rate falls on every plateau of batches", SMALL, {}, {"plateau": 1}),
        ailing("load", "a gamma of 10 at every milestone", DIVERGED, {}, {"milestone": 50, "gamma": 10.0}),
        ailing("sorting", "Adam at 0.3", DIVERGED, {}, {"lr": 0.3}),
    ]  # fmt: skip


def _unrelated() -> list[Case]:
    return [
        ailing("languages", "sequences sorted by length, labels not", "", {}, {"labels": "sorted"}),
        ailing("pixels", "pixels in any order", "", {"init": (("chrono", 1.0),)}, {"shuffled": True}),
        ailing("keywords", "noise of ten times the signal", "", {}, {"noise": 10.0}),
        ailing("brackets", "a vocabulary that knows one symbol in fifty", "", {}, {"unknown": 0.98}),
        ailing("bandit", "the loss has the wrong sign", "", {}, {"scale": -1.0}),
        ailing("sensors", "the file holds zeros alone", "", {}, {"inputs": 0.0}),
        ailing("load", "the file holds zeros alone", "", LSTM, {"inputs": 0.0}),
        ailing("permuted", "two units", "", {}, {"hidden": 2}),
        ailing("waits", "one unit", "", {}, {"hidden": 1}),
        ailing("sorting", "digits of other lines", "", {}, {"labels": "random"}),
        ailing("sine", "answers (N, 1), targets (N,)", "", {}, {"labels": "broadcast"}),
    ]


def _sound() -> list[Case]:
    return [
        *(sound(task) for task in ("brackets", "sine", "waits", "sorting", "sensors", "bandit")),
        sound("brackets", "GRU cells, label smoothing", **CELLS, **GRU, smoothing=0.1),
        sound("brackets", "LSTM of 48, two layers, batch of 6", hidden=48, layers=2, batch=6, steps=300),
        sound("sine", "two directions of GRU, layer norm behind", bidirectional=True, norms="out", hidden=48),
        sound("waits", "LSTM, batch of 256, learning rate falls at milestones", family="lstm", batch=256, steps=100,
              lr=0.02, milestone=40, gamma=0.5),
        sound("sorting", "LSTM, learning rate falls on plateaus", family="lstm", plateau=25),
        sound("waits", "own leaky cells", **{**OWN, "leak": 0.5, "lr": 0.005}),
        sound("words", "two layers of GRU, layer norm before", family="gru", layers=2, norms="in"),
        sound("load", "LSTM cells, learning rate falls at milestones", **CELLS, **LSTM, milestone=50, gamma=0.3),
        sound("permuted", "two layers of GRU, layer norm behind", layers=2, norms="out"),
        sound("dates", "GRU of 160, label smoothing", hidden=160, smoothing=0.05),
        sound("line", "two layers of LSTM, layer norm behind", layers=2, hidden=48, norms="out"),
        sound("chorale", "GRU, batch of 6", family="gru", batch=6, lr=0.006),
        sound("prose", "GRU, ASGD", family="gru", optimizer="asgd", lr=2.0, clip=0.5),
        sound("prose", "tied weights, GRU of 96", family="gru", hidden=96, embed=96, tied=True, embed_scale=0.1),
        sound("words", "tied weights, dropout, AdamW", hidden=96, embed=96, tied=True, embed_scale=0.1, dropout=0.2,
              optimizer="adamw", weight_decay=0.01),
        sound("tokens", "GRU, batch of 2 accumulated over eight", family="gru", batch=2, accumulate=8),
        sound("brackets", "SGD, momentum of 0.95", optimizer="sgd", lr=0.3, momentum=0.95),
        sound("activity", "LSTM cells, layer norm behind, windows of 80", **CELLS, norms="out", length=80),
    ]  # fmt: skip


def _odd() -> list[Case]:
    return [
        odd("brackets", "the state is detached at every symbol, the cell is not", detach=1, half="h"),
        odd("sorting", "GRU, what opens an LSTM's forget gates", init=(("quarter", 3.0),)),
        odd("waits", "gradients set to zeros, not to None", zeroed=True),
        odd("sensors", "noise on what goes in, validation between the steps", noise=0.3, between="validation"),
        odd("sensors", "-9999 for what is missing, which is rare", sentinel=0.001),
        odd("prose", "SGD, the greatest number clipped, not the root of squares", **STEEP, norm=float("inf")),
        odd("tokens", "embeddings are frozen and small", frozen="embed", embed_scale=0.3),
        odd("source", "LSTM, the state is detached every 5 letters, the cell is not", detach=5, half="h"),
        odd("modules", "every parameter clipped by itself at 0.02, Adam makes it good", clip=0.02, clip_each=True),
        odd("tones", "Adam, epsilon of 0.001", eps=1e-3),
        odd("keywords", "first 20 frames are read without gradients", burn=20),
        odd("bandit", "clipped after the step, which it does not need", clip_late=True),
        odd("vowels", "penalty of all squares in the loss, small", l2=1e-5),
        odd("load", "GRU cells, a twentieth of the state is dropped at every timestep", **CELLS, mask=0.05),
    ]
