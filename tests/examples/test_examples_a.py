"""The examples about remedies run small, print tables, and what they claim holds in what they print."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
ROW = re.compile(r"^(?P<name>\S.*?) {2,}(?P<values>[-+\d.].*)$")


def rows(printed: str, columns: int) -> dict[str, list[str]]:
    found = (ROW.match(line) for line in printed.splitlines())
    split = {row["name"]: row["values"].split() for row in found if row}
    return {name: values for name, values in split.items() if len(values) == columns}


def horizon(said: str) -> int:
    return int(said.rstrip("+"))


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_linear_rnn(run: Callable[..., str], tmp_path: Path) -> None:
    printed = run("linear_rnn.py", "--size=4", "--steps=20", "--updates=120", f"--out={tmp_path}")
    first, rates, spectra = (block.splitlines() for block in printed.strip().split("\n\n"))
    scaled = [line.split()[2:] for line in first if line.startswith("lambda Q")]
    assert len(scaled) == 12
    for modulus, k, *values in scaled:
        assert [float(value) for value in values] == pytest.approx([float(modulus) ** int(k)] * 3, rel=1e-6)
    for line in rates[1:4]:
        expected, lyapunov, late = map(float, line.split()[3:6])
        assert (lyapunov, late) == pytest.approx((expected, expected), abs=2e-4)
    for line in rates[4:]:
        expected, _, late = map(float, line.split()[2:5])
        assert late == pytest.approx(expected, abs=0.02)
    distances = [float(line.split()[-1]) for line in spectra[1:-1]]
    assert len(distances) == 11
    assert distances[-1] < 0.05 < 0.5 < distances[0]
    assert is_picture(tmp_path / "linear_rnn.png")


def test_adding_problem(run: Callable[..., str], tmp_path: Path) -> None:
    printed = run("adding_problem.py", "--length=40", "--hidden=16", "--updates=9", f"--out={tmp_path}")
    found = rows(printed, 7)
    assert list(found) == ["RNN", "orthogonal RNN", "LSTM, f bias 1", "GRU"]
    assert horizon(found["orthogonal RNN"][0]) > horizon(found["RNN"][0])
    assert float(found["orthogonal RNN"][2]) > float(found["RNN"][2])
    for *_, loss, share, learnt in found.values():
        assert float(share) == pytest.approx(float(loss) * 6, abs=0.006)
        assert learnt == ("yes" if float(loss) * 6 < 0.25 else "no")
    assert is_picture(tmp_path / "adding_problem.png")


def test_copy_memory(run: Callable[..., str], tmp_path: Path) -> None:
    printed = run("copy_memory.py", "--lag=16", "--hidden=24", "--updates=120", f"--out={tmp_path}")
    found = rows(printed, 6)
    assert list(found) == ["RNN", "orthogonal RNN", "LSTM, f bias 1", "LSTM, chrono", "GRU"]
    for remedy in ("orthogonal RNN", "LSTM, chrono"):
        assert int(found[remedy][0]) > 16 > int(found["RNN"][0])
    assert float(found["orthogonal RNN"][3]) < 0.8 * float(found["RNN"][3])
    assert all(int(first) <= int(longest) >= int(last) for first, longest, last, *_ in found.values())
    assert sum(int(n) for n in re.findall(r"of (\d+) networks", printed)) == len(found)
    assert is_picture(tmp_path / "copy_memory.png")


def test_remedies(run: Callable[..., str], tmp_path: Path) -> None:
    found = rows(run("remedies.py", "--lag=24", "--size=16", "--updates=3", f"--out={tmp_path}"), 6)
    assert len(found) == 12
    first = {name: horizon(values[0]) for name, values in found.items()}
    plain = first["none: tanh RNN"]
    assert plain < 24
    assert first["clipping by norm"] == plain
    assert abs(first["residual layer"] - plain) <= 2
    assert abs(first["highway layer"] - plain) <= 2
    for remedy in ("orthogonal", "ReLU, identity", "residual in time", "LSTM, chrono", "GRU, chrono"):
        assert first[remedy] == 24
    for remedy in ("orthogonal", "LayerNorm"):
        assert float(found[remedy][2]) > float(found["none: tanh RNN"][2])
    assert is_picture(tmp_path / "remedies.png")


def test_every_example_is_short_and_listed() -> None:
    listed = set(re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text()))
    files = {path.name: path for path in EXAMPLES.glob("*.py")}
    assert listed == set(files)
    assert all(len(path.read_text().splitlines()) < 120 for path in files.values())
