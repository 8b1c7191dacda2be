"""Train a little with one of torch's private names hidden, each in a process of its own: `python hidden.py NAME ...`.

Prints what was recorded, as JSON by name; under the empty name with nothing hidden, and a message where it failed.
"""

from __future__ import annotations

import json
import operator
import os
import sys
import traceback
import warnings
from typing import Any

import pandas as pd
import pyarrow.parquet  # noqa: F401  (so that no child has to import it)
import torch
from torch import nn


def train() -> dict[str, Any]:
    import gradscope

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.ModuleList([nn.LSTM(3, 4, 2), nn.GRUCell(4, 4)])
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu")
    with gradscope.attach(model, every=1, strict=True) as scope:
        for _ in range(2):
            h = torch.zeros(2, 4)
            for x in model[0](torch.randn(9, 2, 3))[0]:
                h = model[1](x * 1, h * 1)
            optimizer.zero_grad()
            scaler.scale(h.square().sum()).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
    frames: dict[str, pd.DataFrame] = {name: scope.run.frame(name) for name in ("steps", "layers", "clips", "notes")}
    return {
        "losses": frames["steps"]["loss"].tolist(),
        "layers": frames["layers"][["module", "layer", "decay"]].values.tolist(),
        "clips": frames["clips"][["kind", "how", "norm_before", "norm_after"]].values.tolist(),
        "notes": frames["notes"]["reason"].tolist(),
    }


def hide(name: str) -> None:
    """From `gradscope.private`, which looks names up by `attrgetter` as it is imported."""

    def attrgetter(path: str) -> Any:
        return original("gone" if name and path.startswith(name) else path)

    original, operator.attrgetter = operator.attrgetter, attrgetter  # type: ignore[assignment, misc]
    from gradscope import private  # noqa: F401

    operator.attrgetter = original  # type: ignore[misc]


def apart(name: str) -> Any:
    """What a child process records with a name hidden."""
    read, write = os.pipe()
    if not os.fork():
        try:
            hide(name)
            said: Any = train()
        except BaseException:
            said = traceback.format_exc()
        with open(write, "w", encoding="utf-8") as file:
            json.dump(said, file)
        os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as file:
        said = json.load(file)
    os.wait()
    return said


if __name__ == "__main__":
    torch.optim.SGD([torch.zeros(1)], 0.1)  # loads what the first optimizer loads, for all of them
    print(json.dumps({name: apart(name) for name in ("", *sys.argv[1:])}))
