"""Language models, taggers and classifiers of real text."""

from __future__ import annotations

import functools
import io
import re
import tokenize

import torch
from torch import Tensor

from benchmarks.field import corpora
from benchmarks.field.setup import Setup
from benchmarks.field.task import Batch, Generator, Task, accuracy, classes, full, nats

HELD_OUT = 0.1  # of a text, at its end
CHARACTERS = re.compile(r"[^a-z]")


def _part(text: Tensor, test: bool) -> Tensor:
    cut = int(len(text) * (1 - HELD_OUT))
    return text[cut:] if test else text[:cut]


def following(text: Tensor, setup: Setup, step: int, test: bool) -> Batch:
    """The next symbol at every step; every sequence goes on where it ended in the step before."""
    usual = _part(text, False).bincount(minlength=int(text.max()) + 1) + 0.5
    text, T, B = _part(text, test), setup.length, setup.batch
    rows = text[: len(text) // B * B].view(B, -1)
    at = step * T % (rows.shape[1] - T - 1)
    part = rows[:, at : at + T + 1]
    extra = {"usual": (usual / usual.sum()).log()}
    return Batch(part[:, :-1], part[:, 1:], full(B, T), torch.ones(B, T, dtype=torch.bool), extra)


def prose_letters(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    return following(corpora.letters("prose")[0], setup, step, test)


def source_letters(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    return following(corpora.letters("source")[0], setup, step, test)


def prose_words(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    return following(corpora.words("prose")[0], setup, step, test)


def docstring_words(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    return following(corpora.words("docstrings")[0], setup, step, test)


def _pieces(x: Tensor, y: Tensor, g: Generator, setup: Setup, test: bool) -> Batch:
    """Pieces from anywhere in a tagged text."""
    x, y, T, B = _part(x, test), _part(y, test), setup.length, setup.batch
    at = torch.randint(0, len(x) - T, (B, 1), generator=g) + torch.arange(T)
    return Batch(x[at], y[at], full(B, T), torch.ones(B, T, dtype=torch.bool))


KINDS = {tokenize.NAME: 1, tokenize.NUMBER: 2, tokenize.STRING: 3, tokenize.COMMENT: 4, tokenize.OP: 5}


@functools.cache
def _tokens() -> tuple[Tensor, Tensor]:
    """Python source by the letter, and what kind of token each letter belongs to; 0 for spaces."""
    texts: list[str] = []
    kinds: list[Tensor] = []
    for text in list(corpora.sources().values())[:25]:
        starts = [0, *(found.end() for found in re.finditer("\n", text))]
        tags = torch.zeros(len(text), dtype=torch.long)
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            (row, column), (last, end) = token.start, token.end
            if token.type in KINDS:
                tags[starts[row - 1] + column : starts[last - 1] + end] = KINDS[token.type]
        texts.append(text)
        kinds.append(tags)
    return torch.tensor([min(max(ord(c), 31), 127) - 31 for c in "".join(texts)]), torch.cat(kinds)


def tokens(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    return _pieces(*_tokens(), g, setup, test)


@functools.cache
def _vowels() -> tuple[Tensor, Tensor]:
    """Prose without its vowels, and which vowel, if any, stood before each letter."""
    symbols = {c: i + 1 for i, c in enumerate("bcdfghjklmnpqrstvwxyz .,'")}
    x, y, before = [], [], 0
    for c in corpora.prose():
        if c in "aeiou":
            before = "aeiou".index(c) + 1
        elif c in symbols:
            x.append(symbols[c])
            y.append(before)
            before = 0
    return torch.tensor(x), torch.tensor(y)


def vowels(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    return _pieces(*_vowels(), g, setup, test)


@functools.cache
def _names() -> tuple[Tensor, Tensor, Tensor]:
    names, labels = corpora.names()
    alphabet = {c: i + 1 for i, c in enumerate(sorted(set("".join(names))))}
    x = torch.zeros(len(names), 30, dtype=torch.long)
    for row, name in zip(x, names, strict=True):
        row[: len(name)] = torch.tensor([alphabet[c] for c in name])
    return x, torch.tensor([len(name) for name in names]), labels


def languages(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """Which language a name is in. Several names in a row make longer sequences: `length` // 15 of them."""
    x, lengths, labels = (_part(one, test) for one in _names())
    many = max(1, setup.length // 15)
    chosen = torch.randint(0, len(x), (setup.batch,), generator=g)
    rows = [torch.nonzero(labels == label)[:, 0] for label in range(len(corpora.LANGUAGES))]
    found: list[Tensor] = []
    for label in labels[chosen].tolist():
        some = rows[label][torch.randint(0, len(rows[label]), (many,), generator=g)]
        found.append(torch.cat([x[i, : lengths[i]] for i in some.tolist()]))
    padded = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
    return Batch(padded, labels[chosen], torch.tensor([len(one) for one in found]))


@functools.cache
def _modules() -> tuple[list[Tensor], list[Tensor]]:
    """Words to train on, and those of a piece from the middle of each module."""
    chosen = ("argparse", "tarfile", "inspect", "typing", "turtle", "imaplib", "pickle", "threading")
    known = [re.findall(r"[A-Za-z_]+|[^A-Za-z_ \n]", corpora.sources()[name]) for name in chosen]
    numbered = corpora.numbered([word for text in known for word in text])
    parts = [
        text.tensor_split((int(0.45 * len(text)), int(0.55 * len(text))))
        for text in numbered.split([len(text) for text in known])
    ]
    return [torch.cat([before, behind]) for before, _, behind in parts], [middle for _, middle, _ in parts]


def modules(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """Which module of the standard library a piece of code is from, by its words; lengths differ."""
    texts, T = _modules()[test], setup.length
    labels = torch.randint(0, len(texts), (setup.batch,), generator=g)
    lengths = torch.randint(T // 2, T + 1, (setup.batch,), generator=g)
    x = torch.zeros(setup.batch, T, dtype=torch.long)
    for row, label, length in zip(x, labels.tolist(), lengths.tolist(), strict=True):
        at = int(torch.randint(0, len(texts[label]) - length, (1,), generator=g))
        row[:length] = texts[label][at : at + length]
    return Batch(x, labels, lengths)


def _model(name: str, half: str, kind: str, symbols: int, length: int, draw: object, usual: Setup) -> Task:
    return Task(
        name, half, kind, symbols, symbols, length, draw, classes, nats, "all", tokens=True, stateful=True, usual=usual
    )  # type: ignore[arg-type]


def _tagger(name: str, half: str, symbols: int, tags: int, length: int, draw: object) -> Task:
    usual = Setup(family="lstm", bidirectional=True, hidden=64, batch=16, steps=120, lr=0.006)
    return Task(name, half, "tagger", symbols, tags, length, draw, classes, accuracy, "all", tokens=True, usual=usual)  # type: ignore[arg-type]


def tasks() -> list[Task]:
    letters, code = corpora.letters("prose")[1], corpora.letters("source")[1]
    lm, model = "language model, ", Setup(hidden=128, steps=130, lr=0.006, batch=24)
    words = Setup(hidden=128, embed=96, steps=120, batch=16, lr=0.005)
    return [
        _model("prose", "tuning", f"{lm}letters", letters, 64, prose_letters, model),
        _model("source", "held-out", f"{lm}letters", code, 60, source_letters, model),
        _model("words", "tuning", f"{lm}words", 1000, 35, prose_words, words),
        _model(
            "docstrings",
            "held-out",
            f"{lm}words",
            1000,
            35,
            docstring_words,
            words,
        ),
        _tagger("tokens", "tuning", 97, 6, 100, tokens),
        _tagger("vowels", "held-out", 26, 6, 80, vowels),
        Task(
            "languages", "tuning", "classification of text", 100, 12, 30, languages, classes, accuracy, tokens=True,
            usual=Setup(family="gru", form="packed", hidden=96, steps=200, lr=0.004),
        ),
        Task(
            "modules", "held-out", "classification of text", 1000, 8, 50, modules, classes, accuracy, tokens=True,
            usual=Setup(family="gru", form="packed", hidden=96, steps=150, lr=0.006, batch=32),
        ),
    ]  # fmt: skip
