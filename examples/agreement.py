"""The verb must agree with a subject k words back, with other nouns in between: error by k against the horizon.

Sentences begin like "near the door the keys behind the cabinet below the ships"; the next word is "is" or "are", and
only the noun without a preposition decides. An RNN and an LSTM learn it, and gradscope measures how far back their
gradients reach: reaching the subject is necessary for learning from it, and not sufficient.

    python examples/agreement.py
    python examples/agreement.py --data english.tab.gz

`--data` takes a table of the form of Gulordava et al. (2018), "Colorless green recurrent networks dream
hierarchically": tab-separated, with the columns class, correct_number, prefix and len_context.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import random
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import gradscope

NOUNS = ["key", "door", "cabinet", "author", "teacher", "window", "letter", "garden", "friend", "ship"]
MANY = [noun + "s" for noun in NOUNS]
PLACES = ["near", "behind", "above", "below", "beside"]


class Sentence(NamedTuple):
    """The words before the verb, the number of the verb, and the distance of its subject in words."""

    words: list[str]
    plural: bool
    distance: int


def places(count: int) -> list[str]:
    return [w for _ in range(count) for w in (random.choice(PLACES), "the", random.choice(NOUNS + MANY))]


def generate(count: int, longest: int) -> list[Sentence]:
    """Generate sentences with nouns of either number between subject and verb, 3 words each, and before the subject."""
    sentences: list[Sentence] = []
    for _ in range(count):
        plural, between = random.random() < 0.5, random.randrange((longest - 1) // 3 + 1)
        words = [*places(random.randrange(2)), "the", random.choice(MANY if plural else NOUNS), *places(between)]
        sentences.append(Sentence(words, plural, 3 * between + 1))
    return sentences


def read(path: str) -> list[Sentence]:
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["class"] == "correct"]
    random.shuffle(rows)
    return [Sentence(r["prefix"].split(), r["correct_number"] == "plur", int(r["len_context"]) + 1) for r in rows]


class Chooser(nn.Module):
    """Reads the words and scores the plural."""

    def __init__(self, rnn: type[nn.RNNBase], words: int, hidden: int) -> None:
        super().__init__()
        self.embedding, self.rnn, self.score = nn.Embedding(words, 16), rnn(16, hidden), nn.Linear(hidden, 1)

    def forward(self, x: PackedSequence) -> Tensor:
        _, state = self.rnn(x._replace(data=self.embedding(x.data)))
        last = state[0] if isinstance(state, tuple) else state
        return self.score(last[-1]).squeeze(-1)


def batch(sentences: list[Sentence], numbers: dict[str, int]) -> tuple[PackedSequence, Tensor]:
    words = [torch.tensor([numbers.get(word, 0) for word in s.words]) for s in sentences]
    return pack_sequence(words, enforce_sorted=False), torch.tensor([float(s.plural) for s in sentences])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", help="table of sentences instead of generated ones")
    parser.add_argument("--longest", type=int, default=40, help="distance between subject and verb, at most")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--hidden", type=int, default=32)
    options = parser.parse_args()
    random.seed(0)
    sentences = read(options.data) if options.data else generate(4000, options.longest)
    train, test = sentences[len(sentences) // 5 :], sentences[: len(sentences) // 5]
    numbers = {word: i for i, word in enumerate(sorted({w for s in train for w in s.words}), 1)}
    distances = pd.Series([s.distance for s in test], name="distance")
    errors, horizons = pd.DataFrame(index=pd.Index(sorted(set(distances)), name="distance")), {}
    for rnn in (nn.RNN, nn.LSTM):
        torch.manual_seed(0)
        model = Chooser(rnn, len(numbers) + 1, options.hidden)
        optimizer = torch.optim.Adam(model.parameters(), 0.003)
        with gradscope.attach(model, every=max(1, options.steps // 20)) as scope:
            for _ in range(options.steps):
                x, plural = batch(random.choices(train, k=64), numbers)
                optimizer.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(model(x), plural).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
        with torch.no_grad():
            x, plural = batch(test, numbers)
            wrong = pd.Series(((model(x) > 0) != plural.bool()).float().numpy())
        errors[rnn.__name__] = wrong.groupby(distances).mean()
        layers = scope.run.frame("layers").set_index("step").iloc[::4]
        more = layers.horizon_censored.map({True: "+", False: ""})
        horizons[rnn.__name__] = layers.horizon.astype(int).astype(str) + more
    print("share of wrong verbs, by how many words back the subject is\n")
    print(errors.round(2).to_string())
    print("\nhorizon: steps back until a thousandth of the loss gradient is left (+: more than the sentences have)\n")
    print(pd.DataFrame(horizons).to_string())


if __name__ == "__main__":
    main()
