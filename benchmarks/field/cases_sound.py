"""Trainings that learn: as people set them up, and some that look strange and are not."""

from __future__ import annotations

from benchmarks.field.case import Case, odd, sound

SLOW = (("chrono", 1.0),)
ORTHOGONAL = (("orthogonal", 1.0),)
IDENTITY = (("identity", 1.0),)
SGD = {"optimizer": "sgd", "lr": 1.0, "clip": 0.25}


def cases() -> list[Case]:
    return [*_models(), *_text(), *_signals(), *_pairs(), *_memory(), *_odd()]


def _models() -> list[Case]:
    return [
        sound("prose"),
        sound("prose", "two layers, SGD, warm-up", layers=2, hidden=128, warmup=20, **{**SGD, "lr": 0.7}),
        sound("prose", "windows of 5", family="gru", length=5, batch=48, steps=250),
        sound("prose", "own cells with peepholes", form="own", length=35, hidden=96),
        sound("prose", "six residual layers", form="residual", layers=6, hidden=64),
        sound("prose", "GRU of 512, windows of 30", family="gru", hidden=512, length=30, steps=80, lr=0.002, batch=16),
        sound("source"),
        sound("source", "six residual layers", family="gru", form="residual", layers=6, hidden=64, steps=80),
        sound("source", "projections, AdamW", hidden=256, proj=96, optimizer="adamw", weight_decay=0.01),
        sound("source", "Elman network, windows of 20", family="rnn_tanh", length=20, hidden=192, lr=0.002),
        sound("source", "accumulated over two", accumulate=2, steps=60, batch=24),
        sound("words"),
        sound("words", "two layers, SGD, dropout", layers=2, **SGD, dropout=0.2),
        sound("words", "AdamW, windows of 10", optimizer="adamw", weight_decay=0.05, warmup=30, length=10, batch=40),
        sound("docstrings"),
        sound("docstrings", "GRU, autocast", family="gru", autocast=True),
    ]  # fmt: skip


def _text() -> list[Case]:
    return [
        sound("tokens"),
        sound("tokens", "GRU in one direction", family="gru", bidirectional=False),
        sound("tokens", "ReLU from the identity", family="rnn_relu", bidirectional=False, init=IDENTITY, lr=0.001),
        sound("vowels"),
        sound("vowels", "cells in a loop, one direction", form="cells", bidirectional=False, length=60, batch=48),
        sound("vowels", "two layers of GRU, dropout", family="gru", layers=2, hidden=64, dropout=0.2),
        sound("languages"),
        sound("languages", "LSTM cells in a loop, autocast", family="lstm", form="cells", autocast=True, lr=0.005),
        sound("modules"),
        sound("modules", "two directions of GRU, packed", family="gru", bidirectional=True, hidden=64, lr=0.005),
    ]


def _signals() -> list[Case]:
    return [
        sound("pixels", "LSTM with slow gates", init=SLOW),
        sound("permuted"),
        sound("load"),
        sound("load", "two layers of LSTM, 336 hours", family="lstm", layers=2, length=336, steps=120),
        sound("membrane"),
        sound("membrane", "GRU, 500 samples", family="gru", length=500, batch=16, steps=100),
        sound("membrane", "own minimal cells", form="own", family="gru", length=60, lr=0.01),
        sound("keywords"),
        sound("keywords", "LSTM, mean over time", family="lstm", read="mean"),
        sound("keywords", "Elman network, mean over time", family="rnn_tanh", init=ORTHOGONAL, lr=0.003, read="mean"),
        sound("activity"),
        sound("activity", "GRU, 1,000 samples", family="gru", length=1000, batch=12, steps=70, lr=0.01),
        sound("chorale"),
    ]


def _pairs() -> list[Case]:
    return [
        sound("dates"),
        sound("dates", "LSTM, clipped by value", family="lstm", clip=0.0, clip_value=0.5),
        sound("amounts"),
        sound("amounts", "LSTM, packed, autocast", family="lstm", form="packed", autocast=True, lr=0.008),
        sound("beats"),
        sound("beats", "GRU cells", family="gru", form="cells"),
        sound("line"),
        sound("tones"),
        sound("tones", "Elman network in two directions", family="rnn_tanh", init=ORTHOGONAL, lr=0.003),
        sound("tones", "two layers, weight decay", layers=2, optimizer="adamw", weight_decay=0.01, steps=180),
    ]


def _memory() -> list[Case]:
    return [
        sound("adding"),
        sound("adding", "ReLU from the identity", family="rnn_relu", init=IDENTITY, lr=0.001, length=60, hidden=100),
        sound("recall"),
        sound("maze"),
        sound("maze", "accumulated over two, no clipping", accumulate=2, batch=16, clip=0.0),
        sound("repeat"),
        sound("repeat", "Elman network, orthogonal", family="rnn_tanh", init=ORTHOGONAL, lr=0.004),
    ]


def _odd() -> list[Case]:
    return [
        odd("prose", "forget gates wide open", init=(("forget", 5.0),)),
        odd("load", "loss times 10,000", scale=1e4, clip=0.0),
        odd("amounts", "loss times 1e-4", scale=1e-4),
        odd("keywords", "clipped at every step, Adam makes it good", clip=0.01),
        odd("vowels", "clipped at every step, Adam makes it good", clip=0.005),
        odd("chorale", "ReLU, most units dead at first", family="rnn_relu", init=(("bias", -0.3),)),
        odd("source", "states detached between windows of 10", family="gru", length=10, batch=64, steps=200),
        odd("membrane", "slow update gates", family="gru", init=(("update", 3.0),)),
    ]
