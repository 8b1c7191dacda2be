"""A bidirectional tagger: every character of Python source gets the type of its token.

The source is the standard library, the tags come from its `tokenize`; sequences differ in length and are packed.
gradscope measures how far back the gradient reaches in each direction, and the state of the gates.

    python examples/tagger.py
    python examples/tagger.py --data en_ewt-ud-train.conllu

`--data` takes a treebank in the format CoNLL-U (universaldependencies.org): words, and their tags UPOS.
"""

from __future__ import annotations

import argparse
import io
import random
import tokenize
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import gradscope

MODULES = ["argparse", "ast", "bisect", "calendar", "csv", "fractions", "heapq", "random", "statistics", "textwrap"]
LINES = 3  # in a sequence
Tagged = tuple[list[str], list[str]]


def characters() -> list[Tagged]:
    """Sequences of a few lines of source, and the token type of each character."""
    sequences: list[Tagged] = []
    for name in MODULES:
        text = Path(tokenize.__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        tags = [["SPACE"] * len(line) for line in lines]
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            (row, begin), (last_row, end) = token.start, token.end
            for r in range(row, min(last_row, len(lines)) + 1):
                left, right = begin if r == row else 0, end if r == last_row else len(lines[r - 1])
                tags[r - 1][left:right] = [tokenize.tok_name[token.type]] * len(tags[r - 1][left:right])
        for i in range(0, len(lines), LINES):
            sequences.append((list("".join(lines[i : i + LINES])), sum(tags[i : i + LINES], [])))
    return sequences


def conllu(path: Path) -> list[Tagged]:
    sequences: list[Tagged] = []
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        rows = [line.split("\t") for line in block.splitlines() if not line.startswith("#")]
        rows = [row for row in rows if row[0].isdecimal()]  # not 3-4 or 5.1: several words in one, or an empty one
        sequences.append(([row[1] for row in rows], [row[3] for row in rows]))
    return sequences


class Tagger(nn.Module):
    """Scores of the tags of every symbol, packed like the symbols."""

    def __init__(self, symbols: int, tags: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, 32)
        self.rnn, self.scores = nn.LSTM(32, hidden, bidirectional=True), nn.Linear(2 * hidden, tags)

    def forward(self, x: PackedSequence) -> Tensor:
        output, _ = self.rnn(x._replace(data=self.embedding(x.data)))
        return self.scores(output.data)


def packed(rows: list[list[str]], numbers: dict[str, int]) -> PackedSequence:
    tensors = [torch.tensor([numbers.get(x, 0) for x in row]) for row in rows]
    return pack_sequence(tensors, enforce_sorted=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="treebank in the format CoNLL-U")
    parser.add_argument("--steps", type=int, default=91)
    parser.add_argument("--hidden", type=int, default=48)
    options = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    sentences = conllu(options.data) if options.data else characters()
    random.shuffle(sentences)
    test, train = sentences[: len(sentences) // 10], sentences[len(sentences) // 10 :]
    symbols = {x: i for i, x in enumerate(sorted({x for words, _ in train for x in words}), 1)}
    tags = {tag: i for i, tag in enumerate(sorted({tag for _, row in sentences for tag in row}))}
    model = Tagger(len(symbols) + 1, len(tags), options.hidden)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with gradscope.attach(model, every=max(1, (options.steps - 1) // 3)) as scope:
        for _ in range(options.steps):
            words, wanted = zip(*random.choices(train, k=16), strict=True)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(packed(words, symbols)), packed(wanted, tags).data).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    with torch.no_grad():
        words, wanted = zip(*test, strict=True)
        truth = packed(wanted, tags).data
        right = pd.Series((model(packed(words, symbols)).argmax(1) == truth).float().numpy())
    by_tag = right.groupby(pd.Series([list(tags)[i] for i in truth]))
    print(f"{right.mean():.0%} right of {len(right)} held-out characters or words; by tag:\n")
    print(pd.DataFrame({"right": by_tag.mean().round(2), "count": by_tag.size()}).rename_axis("tag").to_string())
    layers = scope.run.frame("layers").set_index(["step", "direction"])
    gates = scope.run.frame("gates").groupby(["step", "direction", "gate"])["mean"].mean().unstack()
    print("\nhorizon (steps until a thousandth of the gradient is left), decay in decades a step, mean forget gate\n")
    print(layers[["horizon", "decay", "timesteps"]].join(gates["forget"]).round(3).to_string())


if __name__ == "__main__":
    main()
