"""Makes the pictures of docs/tensorboard.md: two networks learn handwritten digits, a browser looks at the tab.

    python docs/make_images.py [--logdir DIR] [--all DIR]

Needs Chromium, and what `pip install -e '.[dev]'` gives. Takes about three minutes.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from playwright.sync_api import sync_playwright
from torch import Tensor, nn
from torch.nn import functional as F

import gradscope
from gradscope.demo.tasks import digits
from gradscope.observe.quantities import CORE

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
from browsers import CHROMIUM, FLAGS, Tab, running  # noqa: E402

EPOCHS, BATCH, HIDDEN, EVERY = 12, 32, 64, 8
SIZE = {"width": 1360, "height": 600}
CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM}
BOTH = [f"{name}/gradscope" for name in CELLS]
LAYER = "rnn/0/forward"
SHOTS: dict[str, dict[str, Any]] = {
    "overview": {"runs": BOTH},
    "flow": {"runs": BOTH, "view": "flow", "step": 300, "t": 20},
    "jacobian": {"runs": BOTH, "view": "flow", "curve": "jacobian", "step": 300},
    "gates": {"runs": BOTH, "view": "gates"},
    "clipping": {"runs": BOTH, "view": "clipping"},
    "compare": {"runs": BOTH, "view": "compare", "measure": "curve/grad_h", "over": "first"},
}
KEPT = ("overview-light", "flow-light", "flow-dark", "gates-light", "clipping-light", "compare-dark")


class Reader(nn.Module):
    """Two recurrent layers read a digit pixel by pixel; a linear one names it after the last."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.rnn = CELLS[cell](1, HIDDEN, num_layers=2, batch_first=True)
        self.classify = nn.Linear(HIDDEN, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the ten digits."""
        return self.classify(self.rnn(x)[0][:, -1])


def train(cell: str, logdir: Path) -> None:
    """An ordinary training with a scope attached."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    task = digits(0)
    model = Reader(cell)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with gradscope.attach(model, logdir, every=EVERY, quantities=(*CORE, "spectra")):
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(task.train_x)).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(task.train_x[batch]), task.train_y[batch]).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()


def shoot(tab: Tab, state: dict[str, Any], dark: bool) -> bytes:
    """A picture of a whole view."""
    tab.page.set_viewport_size(SIZE)
    tab.open(**state)
    page = tab.frame.locator("html")
    tab.page.set_viewport_size({**SIZE, "height": 70 + int(page.evaluate("page => page.scrollHeight"))})
    tab.page.evaluate("dark => document.body.classList.toggle('dark-mode', dark)", dark)
    tab.ready()
    tab.page.wait_for_timeout(400)
    return tab.page.screenshot()


def save(picture: bytes, path: Path) -> None:
    """With 256 colours, which is all these pictures need, and a third of the size."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(256, method=Image.Quantize.FASTOCTREE, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    """Train where there is no run yet, then look."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--logdir", type=Path, default=Path(tempfile.gettempdir()) / "gradscope-images")
    options.add_argument("--all", type=Path, help="also save every picture, light and dark, to this folder")
    asked = options.parse_args()
    for cell in CELLS:
        if not (asked.logdir / cell).exists():
            train(cell, asked.logdir / cell)
    with running(asked.logdir) as base, sync_playwright() as control:
        browser = control.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for dark in (False, True):
            context = browser.new_context(viewport=SIZE)
            tab = Tab(context, base, asked.logdir)
            for view, state in SHOTS.items():
                name = f"{view}-{'dark' if dark else 'light'}"
                picture = shoot(tab, state, dark)
                if name in KEPT:
                    save(picture, HERE / "images" / f"tensorboard-{name}.png")
                if asked.all:
                    save(picture, asked.all / f"{name}.png")
            context.close()
            assert not tab.problems, tab.problems
        browser.close()


if __name__ == "__main__":
    main()
