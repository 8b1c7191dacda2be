"""A fifth and a sixth part: written by an examiner who knew neither the rules nor what they say of any training.

Kinds of trouble and of oddity are those of public questions and issues; an address beside a case is where it was met.
The tasks of the tuning half make the fifth part. Those of the held-out half make the sixth, looked at once, at the end.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.field.case import FIFTH, SIXTH, Case, ailing, odd, sound
from benchmarks.field.cases_again import DECAYED, DIVERGED, FORGOTTEN, FUSED, MISSING, SINGLE
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
from benchmarks.field.cases_recurrence import DETACHED, ELMAN, LARGE, PLAIN, RELU

PARTS = {"tuning": FIFTH, "held-out": SIXTH}
EXPLODING = "exploding_gradient"
STEEP: Changes = {"optimizer": "sgd", "lr": 1.0, "clip": 0.25}
STEEP_ELMAN: Changes = {**STEEP, "family": "rnn_tanh"}
MIXED: Changes = {"optimizer": "sgd", "lr": 1.0, "scaler": 65536.0}
ONE_WAY: Changes = {"bidirectional": False}


def cases() -> list[Case]:
    rooms = (_recurrence(), _inout(), _clipping(), _loop(), _unrelated(), _sound(), _odd())
    return [replace(case, part=PARTS[case.work.half]) for room in rooms for case in room]


def _recurrence() -> list[Case]:
    return [
        # https://github.com/pytorch/pytorch/issues/6126
        ailing("vowels", "own cells whose state is a softmax", VANISHING, {**OWN, **ONE_WAY},
               {"family": "rnn_softmax"}),
        ailing("tokens", "own cells whose state is a softmax", VANISHING, {**OWN, **ONE_WAY},
               {"family": "rnn_softmax"}),
        # https://www.whosebug.com/question/4230002/Output-from-LSTM-not-changing-for-different-inputs
        ailing("modules", "eight layers of LSTM", VANISHING, {**FUSED, **LSTM}, {"layers": 8}),
        ailing("recall", "weights from N(0, 0.01)", VANISHING, {}, {"init": (("normal", 0.01),)}),
        ailing("adding", "weights from N(0, 0.01)", VANISHING, {}, {"init": (("normal", 0.01),)}),
        ailing("words", "seven layers of GRU", VANISHING, GRU, {"layers": 7}),
        ailing("modules", "Elman network as torch begins it, 120 words", VANISHING, {"length": 120}, PLAIN),
        # https://github.com/pytorch/tutorials/issues/847
        ailing("vowels", "own cells without a curve, orthogonal with gain 1.3", EXPLODING, {**OWN, **ONE_WAY},
               {"family": "rnn_linear", "init": (("orthogonal", 1.3),)}),
        # https://exchangetuts.com/index.php/relu-function-in-a-recurrent-neural-network-weights-become-infinity-or-zero-1756866613155991  # noqa: E501
        ailing("tokens", "ReLU, identity times 1.4", EXPLODING, {**RELU, **ONE_WAY}, {"init": (("identity", 1.4),)}),
        # https://github.com/jihunchoi/recurrent-batch-normalization-pytorch/issues/5
        ailing("docstrings", "all weights from N(0, 1)", LARGE, {}, {"init": (("normal", 1.0),)}),
        ailing("modules", "weights and biases between -2 and 2", LARGE, {}, {"init": (("uniform", 2.0),)}),
        ailing("adding", "update gates keep all", GATE, {}, {"init": (("update", 12.0),)}),
        ailing("permuted", "update gates keep all", GATE, {}, {"init": (("update", 10.0),)}),
        ailing("amounts", "update gates keep all", GATE, {}, {"init": (("update", 14.0),)}),
        ailing("chorale", "biases saturate the state", GATE, {}, {"init": (("bias", 8.0),)}),
        ailing("languages", "ReLU cells, biases of -3", DEAD, {**RELU, "form": "cells", "steps": 300},
               {"init": (("bias", -3.0),)}),
        ailing("activity", "ReLU, biases of -2", DEAD, RELU, {"init": (("bias", -2.0),)}),
        ailing("chorale", "ReLU, weights about -0.3", DEAD, RELU, {"init": (("identity", 1.0), ("shift", -0.3))}),
        ailing("beats", "encoder's state detached every 4 samples", DETACHED, {}, {"detach": 4}),
        ailing("amounts", "encoder's state detached at every letter", DETACHED, {}, {"detach": 1}),
        ailing("load", "LSTM, state detached every 3 hours", DETACHED, LSTM, {"detach": 3}),
        # https://github.com/oxwhirl/pymarl/issues/161
        ailing("modules", "GRU, state detached at every word", DETACHED, FUSED, {"detach": 1}),
    ]  # fmt: skip


def _inout() -> list[Case]:
    return [
        ailing("permuted", "recurrence within no_grad", NONE, {}, {"head": "no_grad"}),
        ailing("chorale", "answers become zeros and ones before the loss", NONE, {}, {"head": "threshold"}),
        ailing("docstrings", "answers made into a tensor that requires a gradient", NONE, {}, {"head": "rewrapped"}),
        ailing("amounts", "LSTM, the encoder's state is detached", NONE, {**LSTM, "lr": 0.01, "steps": 260},
               {"handover": "detached"}),
        # https://github.com/notadamking/RLTrader/issues/49
        ailing("recall", "called at every step without its state", SINGLE, {}, {"form": "dropped"}),
        ailing("prose", "GRU, called at every letter without its state", SINGLE, GRU, {"form": "dropped"}),
        ailing("tokens", "GRU, called at every letter without its state", SINGLE, {**GRU, **ONE_WAY},
               {"form": "dropped"}),
        ailing("tokens", "letters' vectors that nobody scaled", UNSCALED, {}, {"embed_scale": 200.0}),
        ailing("maze", "a column in thousands", UNSCALED, {}, {"column": 1000.0}),
        ailing("adding", "numbers up to 1,000", UNSCALED, {}, {"column": 1000.0}),
        ailing("modules", "word vectors that nobody scaled", UNSCALED, {}, {"embed_scale": 100.0}),
        ailing("beats", "GRU, heights about a thousand", UNSCALED, GRU, {"inputs": 100.0, "offset": 1000.0}),
        # https://github.com/facebookresearch/fairseq/pull/851
        ailing("languages", "packed, with its padding in front", MISREAD, {}, {"front": 40}),
        # https://discuss.pytorch.org/t/bilstm-output-hidden-state-mismatch/49825
        ailing("modules", "two directions, last position of long padding", MISREAD, {**FUSED, "bidirectional": True},
               {"read": "end", "pad": 150}),
        # https://discuss.pytorch.org/t/lstm-change-batch-first-true-loss-does-not-decrease/62364
        ailing("permuted", "time and batch exchanged", MISREAD, {}, {"swapped": True}),
        ailing("adding", "first position instead of the last", MISREAD, {}, {"read": "start"}),
    ]  # fmt: skip


def _clipping() -> list[Case]:
    return [
        # https://github.com/victorchall/EveryDream2trainer/pull/175
        ailing("prose", "SGD, clipped before gradients are unscaled", CLIPPING, {**MIXED, "unscaled": True},
               {"unscaled": False}),
        ailing("tokens", "GRU, SGD, clipped before gradients are unscaled", CLIPPING,
               {**MIXED, **GRU, "lr": 0.3, "unscaled": True}, {"unscaled": False}),
        ailing("vowels", "SGD, every number kept within 1e-6 by hand", f"{CLIPPING} {SMALL}",
               {"optimizer": "sgd", "lr": 0.3, "clip": 0.0, "clamp": 1.0}, {"clamp": 1e-6}),
        ailing("words", "SGD, clipped at 0.003", CLIPPING, STEEP, {"clip": 0.003}),
        # https://github.com/Cranial-XIX/FAMO/issues/4
        ailing("prose", "Elman network, SGD, clipped before backward", MISSING, {**STEEP_ELMAN, "layers": 2},
               {"clip_early": True}),
        # https://github.com/VGraphRNN/VGRNN/issues/4
        ailing("words", "Elman network, SGD, clipped after the step", MISSING, STEEP_ELMAN, {"clip_late": True}),
        ailing("docstrings", "Elman network, SGD, clipped before backward", MISSING, STEEP_ELMAN, {"clip_early": True}),
        ailing("source", "Elman network of three layers, SGD, clipped before backward", MISSING,
               {**STEEP_ELMAN, "layers": 3}, {"clip_early": True}),
    ]  # fmt: skip


def _loop() -> list[Case]:
    return [
        # https://github.com/unit8co/darts/issues/881
        ailing("beats", "missing values from the first batch on", NAN, {}, {"birth": "missing"}),
        ailing("load", "LSTM, relative change of what was 0", NAN, LSTM, {"birth": "change", "birth_at": 49}),
        ailing("prose", "square root below 0, kept out by where", NAN, {}, {"birth": "where", "birth_at": 68}),
        ailing("adding", "deviation of the only one in a batch", NAN, {}, {"birth": "alone", "birth_at": 77}),
        ailing("modules", "a vector of zeros, divided by its length", NAN, {}, {"birth": "norm", "birth_at": 95}),
        # https://jishuzhan.net/article/1776848605504606209
        ailing("words", "SGD, zero_grad once an epoch", STALE, STEEP, {"zero_every": 60}),
        ailing("vowels", "SGD, zero_grad once an epoch", STALE, {"optimizer": "sgd", "lr": 0.3}, {"zero_every": 60}),
        ailing("maze", "no zero_grad, Adam", STALE, {}, {"zero_grad": False}),
        ailing("dates", "no zero_grad, SGD", STALE, {"optimizer": "sgd", "lr": 0.3}, {"zero_grad": False}),
        ailing("chorale", "zero_grad once an epoch", STALE, {}, {"zero_every": 75}),
        # https://github.com/Canjie-Luo/MORAN_v2/issues/46
        ailing("prose", "Adadelta at 0.001", SMALL, {"optimizer": "adadelta", "lr": 1.0}, {"lr": 0.001}),
        # https://github.com/pytorch/pytorch/issues/6126
        ailing("modules", "zero_grad between backward and step", f"{SMALL} {FORGOTTEN}", {}, {"zero_late": True}),
        ailing("source", "SGD at 0.001", SMALL, STEEP, {"lr": 0.001}),
        ailing("words", "SGD, mean loss divided by the number of words once more", SMALL, STEEP, {"scale": 1 / 560}),
        ailing("repeat", "learning rate times 0.9 at every step", SMALL, {}, {"decay": 0.9}),
        # https://www.yunthe.com/news/619314.html
        ailing("dates", "learning rate 0.2", DIVERGED, {}, {"lr": 0.2}),
        ailing("vowels", "learning rate times 1.05 at every batch", "diverged", {}, {"decay": 1.05}),
        ailing("prose", "GRU, learning rate rises to 0.7", "diverged", GRU, {"warmup": 130, "lr": 0.7}),
        ailing("vowels", "SGD, sum instead of mean, no clipping", DIVERGED, {"optimizer": "sgd", "lr": 0.3},
               {"scale": 16 * 80.0, "clip": 0.0}),
        ailing("tokens", "Adam, decay of 0.05", DECAYED, {}, {"weight_decay": 0.05}),
        ailing("languages", "Adam, decay of 0.03", DECAYED, {}, {"weight_decay": 0.03}),
        ailing("beats", "AdamW, decay of 5", DECAYED, {"optimizer": "adamw"}, {"weight_decay": 5.0}),
        # https://github.com/spro/practical-pytorch/issues/9
        ailing("languages", "recurrence made twice, the optimizer has the first", FORGOTTEN, {}, {"replaced": "rnn"}),
        # https://github.com/pytorch/pytorch/issues/14467
        ailing("docstrings", "read-out made twice, the optimizer has the first", FORGOTTEN, {}, {"replaced": "head"}),
        # https://discuss.pytorch.org/t/loss-not-decreasing-in-lstm-network/159152
        ailing("amounts", "decoder's read-out in a Python list", FORGOTTEN, {}, {"head": "list"}),
        ailing("recall", "optimizer was made with the read-out alone", FORGOTTEN, {}, {"forgotten": "rnn"}),
    ]  # fmt: skip


def _unrelated() -> list[Case]:
    both = {**FUSED, **LSTM, "bidirectional": True}
    return [
        # https://github.com/timbmg/Sentence-VAE/issues/15
        ailing("languages", "last states of two directions, reshaped", "", {**both, "read": "state"}, {"read": "view"}),
        ailing("keywords", "last states of two directions, reshaped", "", {**both, "read": "state"}, {"read": "view"}),
        ailing("modules", "softmax over the batch before cross-entropy", "", {}, {"head": "over batch"}),
        ailing("permuted", "softmax before cross-entropy", "", {}, {"head": "probabilities"}),
        ailing("amounts", "figures of other numbers", "", {}, {"labels": "random"}),
        ailing("words", "words of another text", "", {}, {"labels": "random"}),
        ailing("beats", "targets in thousands", "", {}, {"targets": 100.0, "target_offset": 3000.0}),
        ailing("modules", "dropout of 0.98", "", {}, {"dropout": 0.98}),
        ailing("membrane", "view instead of transpose", "", GRU, {"viewed": True}),
        ailing("tones", "one unit a direction", "", {}, {"hidden": 1}),
    ]


def _sound() -> list[Case]:
    return [
        *(sound(task, "a fourth seed", seed=3) for task in ("words", "vowels", "load", "recall", "dates", "permuted")),
        sound("prose", "LSTM, Adadelta, windows of 50", optimizer="adadelta", lr=1.0, length=50),
        sound("source", "two layers of GRU, Adamax", family="gru", layers=2, optimizer="adamax", lr=0.01, steps=100),
        sound("prose", "two layers of LSTM with projections", layers=2, proj=64, hidden=160, lr=0.01),
        sound("tokens", "two layers of LSTM, dropout, RAdam", layers=2, dropout=0.3, optimizer="radam"),
        sound("vowels", "GRU, learning rate in cycles", family="gru", cycle=30),
        sound("languages", "LSTM, packed, the module's last state", family="lstm", read="state"),
        sound("modules", "two directions of LSTM, greatest over time", family="lstm", bidirectional=True, read="max"),
        sound("load", "GRU cells, learning rate in cycles", form="cells", cycle=70),
        sound("activity", "two layers of GRU, AdamW", family="gru", layers=2, optimizer="adamw", weight_decay=0.05),
        sound("permuted", "two layers of GRU, RMSprop", layers=2, optimizer="rmsprop", lr=0.003),
        sound("membrane", "Elman network, windows of 50", family="rnn_tanh", init=ELMAN["init"], length=50, lr=0.003),
        sound("load", "LSTM, a week, AdamW", family="lstm", length=168, optimizer="adamw"),
        sound("beats", "two layers of GRU, Adamax", family="gru", layers=2, optimizer="adamax", lr=0.015),
        sound("dates", "own cells with peepholes", family="lstm", form="own"),
        sound("tones", "GRU of 48, Adagrad", family="gru", hidden=48, optimizer="adagrad", lr=0.05),
        sound("maze", "GRU of 96, AdamW", hidden=96, optimizer="adamw"),
        sound("beats", "Elman network as torch begins it", **PLAIN),
    ]


def _odd() -> list[Case]:
    return [
        # https://github.com/jongwook/onsets-and-frames/issues/24
        odd("load", "clipped after the step, which it does not need", clip_late=True),
        odd("keywords", "clipped before backward, which it does not need", clip_early=True),
        # https://github.com/gabrielloye/RNN-walkthrough/issues/3
        odd("activity", "states carried from one batch to the next", carry=True),
        odd("languages", "begins with random states", **FUSED, state=1.0),
        odd("languages", "padding in front of LSTM", **FUSED, **LSTM, front=20),
        odd("modules", "log-softmax before cross-entropy", head="log_softmax"),
        odd("prose", "a layer that is never called", spare=True),
        odd("source", "texts are continued between the steps", between="sampling"),
        odd("tones", "validation between the steps", between="validation"),
        odd("amounts", "two terms go backward one by one", twice=True),
        odd("words", "embeddings are frozen", frozen="embed"),
        odd("vowels", "Adam, every number kept within 1e-4 by hand", clip=0.0, clamp=1e-4),
        odd("docstrings", "SGD, gradients unscaled before clipping", **MIXED, unscaled=True),
        odd("chorale", "Adam, clipped before gradients are unscaled", scaler=65536.0),
        odd("load", "recurrent weights begin at zero", init=(("recurrence", 0.0),)),
        odd("dates", "sum instead of mean, Adam", scale=256.0, clip=0.0),
        odd("permuted", "every weight from N(0, 0.05)", init=(("normal", 0.05),)),
        odd("dates", "update gates that keep nearly all at first", init=(("update", 10.0),)),
        odd("chorale", "velocities from 0 to 127", inputs=127.0),
        odd("line", "pixels from 0 to 255", inputs=255.0),
    ]
