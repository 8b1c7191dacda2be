"""What is released: a wheel and an sdist that hold the library, and nothing that is only for building it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import gradscope

pytest.importorskip("build", reason="build is not installed")
pytest.importorskip("hatchling", reason="hatchling is not installed")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def test_the_wheel_holds_the_library_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("gradscope_rnn-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    ours = {name for name in names if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", "gradscope", "integrations"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert ours == {name.removeprefix("integrations/") for name in tracked}
    assert {"gradscope/py.typed", "gradscope/report/templates/page.html"} <= ours
    assert "gradscope_integrations/tensorboard/static/index.js" in ours


def test_the_wheel_says_what_it_is(built: Path) -> None:
    (wheel,) = built.glob("gradscope_rnn-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (place,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        said = archive.read(place).decode()
        entries = archive.read(place.replace("METADATA", "entry_points.txt")).decode()
    assert f"Version: {gradscope.__version__}\n" in said
    assert "License-Expression: MIT" in said and "Requires-Python: >=3.10" in said
    assert "gradscope = gradscope.cli:main" in entries and "[tensorboard_plugins]" in entries
    version = f"## [{gradscope.__version__}]"
    assert version in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), f"CHANGELOG.md has no {version}"


def test_the_sdist_can_build_and_test(built: Path) -> None:
    (sdist,) = built.glob("gradscope_rnn-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "gradscope/__init__.py",
        "tests/oracles/__init__.py",
    } <= names
    assert not {name for name in names if name.startswith((".venv", "runs/", "build/"))}
