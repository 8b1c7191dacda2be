"""A language model of characters by truncated backpropagation, clipped by norm, by value, and not at all.

Clipping by norm makes a gradient shorter and keeps its direction; clipping by value bends it. The table has
gradscope's norms of every step, and the cosine between the gradient before and after, measured here. The recurrent part
is the norm of the recurrent layer's gradient at the optimizer.

    python examples/language_model.py
    python examples/language_model.py --data text.txt
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pandas as pd
import torch
from torch import Tensor, nn

import gradscope

CHUNK, STREAMS = 40, 16
Parameters = list[nn.Parameter]


class LanguageModel(nn.Module):
    """Scores of the next character at every step, and the state for the next chunk."""

    def __init__(self, characters: int, hidden: int) -> None:
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(characters, 32), nn.RNN(32, hidden, batch_first=True)
        self.scores = nn.Linear(hidden, characters)

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        output, state = self.rnn(self.embedding(x), state)
        return self.scores(output), state


def vector(parameters: Parameters) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def train(text: Tensor, characters: int, steps: int, hidden: int, clip: Callable[[Parameters], object]) -> pd.Series:
    """Train along parallel streams of the text, carrying on the state without its gradient."""
    torch.manual_seed(0)
    model = LanguageModel(characters, hidden)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, 4.0)
    streams = text[: len(text) // STREAMS * STREAMS].view(STREAMS, -1)
    losses: list[float] = []
    cosines: list[float] = []
    state: Tensor | None = None
    with gradscope.attach(model) as scope:
        for step in range(steps):
            begin = step * CHUNK % (streams.shape[1] - CHUNK - 1)
            x, y = streams[:, begin : begin + CHUNK], streams[:, begin + 1 : begin + CHUNK + 1]
            scores, state = model(x, None if state is None else state.detach())
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten())
            loss.backward()
            before = vector(parameters)
            clip(parameters)
            cosines.append(float(nn.functional.cosine_similarity(before, vector(parameters), 0)))
            optimizer.step()
            losses.append(loss.item())
    last = losses[-max(1, steps // 10) :]
    return summary(scope.run, cosines, sum(last) / len(last))


def summary(run: gradscope.Run, cosines: list[float], loss: float) -> pd.Series:
    clips, steps, layers = run.frame("clips"), run.frame("steps"), run.frame("layers")
    return pd.Series(
        {
            "clipped steps": f"{clips.clipped.sum() / len(steps):.0%}",
            "norm before, median": clips.norm_before.median(),
            "norm before, largest": clips.norm_before.max(),
            "norm after, median": clips.norm_after.median(),
            "norm after, largest": clips.norm_after.max(),
            "recurrent part, largest": steps.grad_norm.max(),
            "cosine, median": pd.Series(cosines).median(),
            "cosine, smallest": min(cosines),
            "horizon, median": layers.horizon.median(),
            "bits per character": loss / math.log(2),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="text file; by default the texts of Python's help()")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--norm", type=float, default=0.5, help="largest norm of all gradients together")
    parser.add_argument("--value", type=float, default=0.02, help="largest size of one element")
    options = parser.parse_args()
    text = options.data.read_text(encoding="utf-8") if options.data else "\n".join(topics.values())
    numbers = {character: i for i, character in enumerate(sorted(set(text)))}
    encoded = torch.tensor([numbers[character] for character in text])
    ways: dict[str, Callable[[Parameters], object]] = {
        "no": lambda parameters: None,
        "by norm": lambda parameters: nn.utils.clip_grad_norm_(parameters, options.norm),
        "by value": lambda parameters: nn.utils.clip_grad_value_(parameters, options.value),
    }
    columns = {name: train(encoded, len(numbers), options.steps, options.hidden, clip) for name, clip in ways.items()}
    print(f"{options.steps} steps over {len(text)} characters, {CHUNK} at a time; clipping:\n")
    print(pd.DataFrame(columns).to_string(na_rep="-", float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
