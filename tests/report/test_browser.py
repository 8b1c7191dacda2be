"""The page in a real browser: it draws, complains of nothing, and turns dark."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from browsers import CHROMIUM, FLAGS
from made_runs import CLIPPING, VANISHING, made

pytest.importorskip("jinja2")
pytest.importorskip("seaborn")
image = pytest.importorskip("PIL.Image")
from gradscope.report import report  # noqa: E402

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
LOOK = """<script>addEventListener("load", () => {
  const boxes = [...document.querySelectorAll("svg")].map(one => one.getBoundingClientRect());
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.title = JSON.stringify({drawn: boxes.filter(box => box.width > 100 && box.height > 60).length, wide});
})</script>"""


def browse(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    profile = f"--user-data-dir={path.parent / 'profile'}"
    command = [str(CHROMIUM), *FLAGS, "--hide-scrollbars", "--enable-logging=stderr", profile, *options, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(made(), [VANISHING, CLIPPING], "it").save(tmp_path_factory.mktemp("page") / "report.html")


@pytest.mark.parametrize("width", [1240, 420])
def test_all_figures_are_drawn_within_the_page(saved: Path, width: int) -> None:
    probe = saved.with_name(f"probe-{width}.html")
    probe.write_text(saved.read_text(encoding="utf-8").replace("</head>", f"{LOOK}</head>"), encoding="utf-8")
    seen = browse(probe, "--dump-dom", f"--window-size={width},2000")
    assert '<title>{"drawn":14,"wide":0}</title>' in seen.stdout
    assert "CONSOLE" not in seen.stderr


def test_light_and_dark(saved: Path) -> None:
    corners = []
    for name, options in (("light", ()), ("dark", ("--blink-settings=preferredColorScheme=0",))):
        shot = saved.with_name(f"{name}.png")
        browse(saved, f"--screenshot={shot}", "--window-size=1000,800", *options)
        corners.append(image.open(shot).convert("L").getpixel((3, 3)))
    assert corners[0] > 240 and corners[1] < 40


def test_prints(saved: Path) -> None:
    paper = saved.with_name("report.pdf")
    browse(saved, f"--print-to-pdf={paper}")
    assert paper.read_bytes().startswith(b"%PDF") and paper.stat().st_size > 20_000
