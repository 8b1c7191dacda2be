"""The examples run, on little data, and print what was measured."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest


def numbers(text: str, label: str) -> list[float]:
    """What stands in the row of that label."""
    row = next(line for line in text.splitlines() if re.match(rf"\s*{label}\s+[-\d]", line))
    return [math.nan if x == "-" else float(x.rstrip("+%")) for x in row.replace(label, "", 1).split()]


def test_agreement(run) -> None:
    text = run("agreement.py", "--steps", 20, "--longest", 10, "--hidden", 8)
    for distance in ("1", "4", "7", "10"):
        rnn, lstm = numbers(text, distance)[-2:]
        assert 0 <= rnn <= 1 and 0 <= lstm <= 1
    rnn, lstm = numbers(text, "0")
    assert 1 < rnn <= 13 and 1 < lstm <= 13


def test_agreement_reads_a_table(run, tmp_path: Path) -> None:
    path = tmp_path / "sentences.tab"
    rows = ["class\tcorrect_number\tprefix\tlen_context"]
    for plural, number in (("s", "plur"), ("", "sing")):
        rows += [f"correct\t{number}\tthe key{plural} near the door\t3", f"wrong\t{number}\tthe key{plural}\t0"] * 10
    path.write_text("\n".join(rows), encoding="utf-8")
    text = run("agreement.py", "--data", path, "--steps", 60, "--hidden", 8)
    assert numbers(text, "4")[-2:] == [0, 0]  # the wrong ones are left out, and the rest is learnt


def test_attention(run) -> None:
    text = run("attention.py", "--steps", 3, "--length", 24, "--hidden", 8)
    attention, _, lstm, _ = numbers(text, "23")
    assert attention > 1e-3 > lstm
    assert numbers(text, "0") == [1, 1, 1, 1]
    assert re.search(r"Attention +before +23\+", text) and re.search(r"LSTM +after +\d+ ", text)


@pytest.mark.parametrize("own", [False, True])
def test_language_model(run, tmp_path: Path, own: bool) -> None:
    path = tmp_path / "text.txt"
    path.write_text("so it goes, and goes on. " * 60, encoding="utf-8")
    options = ["--steps", 8, "--hidden", 8, "--norm", 0.05, "--value", 0.003, *(["--data", path] if own else [])]
    text = run("language_model.py", *options)
    cosines = numbers(text, "cosine, smallest")
    assert cosines[:2] == [1, 1] and 0 < cosines[2] < 1
    assert numbers(text, "clipped steps") == [0, 100, 100]
    unclipped, by_norm, by_value = numbers(text, "norm after, largest")
    assert math.isnan(unclipped) and by_norm == 0.05 and by_value > 0


def test_tagger(run) -> None:
    text = run("tagger.py", "--steps", 4, "--hidden", 8)
    assert {"NAME", "OP", "SPACE", "STRING"} <= set(text.split())
    horizon, decay, timesteps, forget = numbers(text, "0    forward")
    assert 1 < horizon < timesteps and decay < 0 and 0.2 < forget < 0.8


def test_tagger_reads_a_treebank(run, tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    line = "{}\t{}\t_\t{}\t_\t_\t0\t_\t_\t_"
    tagged = [
        ("1-2", "can't", "_"),
        ("1", "ca", "AUX"),
        ("2", "n't", "PART"),
        ("2.1", "so", "X"),
        ("3", "stop", "VERB"),
    ]
    sentence = "\n".join(["# text = can't stop", *(line.format(*row) for row in tagged)])
    path.write_text("\n\n".join([sentence] * 20) + "\n\n", encoding="utf-8")
    text = run("tagger.py", "--data", path, "--steps", 30, "--hidden", 8)
    assert text.startswith("100% right of 6")
    assert numbers(text, "VERB") == [1, 2] and "X" not in text.split()
