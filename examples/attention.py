"""Attention beside an LSTM: how far back the gradient reaches, by one definition for both.

The task is to name the first symbol of a sequence at its end, after random ones. gradscope observes both encoders by
their positions: the gradient that enters the output at the end, and its share at the input at each lag.

    python examples/attention.py
"""

from __future__ import annotations

import argparse

import pandas as pd
import torch
from torch import Tensor, nn

import gradscope

SYMBOLS = 4


class Attention(nn.Module):
    """A Transformer encoder with a causal mask."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(hidden, 4, 2 * hidden, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.layers(x, mask=mask, is_causal=True)


class LSTM(nn.Module):
    """The outputs of two LSTM layers."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.LSTM(hidden, hidden, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[0]


class Classifier(nn.Module):
    """Symbols and their positions, an encoder, and scores of the symbols from its last output."""

    def __init__(self, encoder: nn.Module, length: int, hidden: int) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(SYMBOLS, hidden), nn.Embedding(length, hidden)
        self.encoder, self.scores = encoder, nn.Linear(hidden, SYMBOLS)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.encoder(self.symbols(x) + self.places.weight)[:, -1])


def train(model: nn.Module, length: int, steps: int) -> gradscope.Run:
    optimizer = torch.optim.Adam(model.parameters(), 0.002)
    last = steps - 1
    with gradscope.attach(model, positions={"encoder": 1}, every=lambda step: step in (0, last)) as scope:
        for _ in range(steps):
            x = torch.randint(SYMBOLS, (64, length))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), x[:, 0]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return scope.run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--hidden", type=int, default=32)
    options = parser.parse_args()
    reach, known = {}, []
    for encoder in (Attention, LSTM):
        torch.manual_seed(0)
        model = Classifier(encoder(options.hidden), options.length, options.hidden)
        run = train(model, options.length, options.steps)
        with torch.no_grad():
            x = torch.randint(SYMBOLS, (512, options.length))
            accuracy = float((model(x).argmax(-1) == x[:, 0]).float().mean())
        rows, layers = run.frame("reach"), run.frame("layers").query("layer == -1")
        for step, when in ((0, "before"), (options.steps - 1, "after")):
            one = rows[(rows.layer == -1) & (rows.step == step)]
            reach[encoder.__name__, when] = one.set_index("lag").p50
        for row, when in zip(layers.itertuples(), ("before", "after"), strict=True):
            horizon = f"{row.horizon:.0f}" + "+" * row.horizon_censored
            known.append((encoder.__name__, when, horizon, "" if when == "before" else f"{accuracy:.2f}"))
    lags = sorted({0, 1, 2, 4, 8, 16, 32, options.length - 1} & set(range(options.length)))
    print("gradient left at the input, so many positions before the end, before and after training\n")
    print(pd.DataFrame(reach).loc[lags].map(lambda x: f"{x:.1e}").to_string())
    print("\nhorizon: positions back until a thousandth is left (+: more than there are)\n")
    print(pd.DataFrame(known, columns=["encoder", "training", "horizon", "accuracy"]).to_string(index=False))


if __name__ == "__main__":
    main()
