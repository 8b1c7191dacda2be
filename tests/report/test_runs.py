"""Several runs in one table: what differs between their settings, and what separates those that learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_runs import ENCODER, HEALTHY, VANISHING, layer, made

import gradscope
from gradscope.record import MemoryStore, ParquetStore
from gradscope.run import Run
from gradscope.types import Batch, Rows

pytest.importorskip("jinja2")
pytest.importorskip("seaborn")
from gradscope.report import comparison  # noqa: E402
from gradscope.report.runs import (  # noqa: E402
    differing,
    runs_table,  # noqa: E402
    separating,
    settings_of,
)
from gradscope.report.small import spark  # noqa: E402


def gru(size: int, **more: Any) -> dict[str, Any]:
    return {"layers": {"encoder": {"class": "GRU", "mode": "GRU", "hidden_size": size, "bias": True, **more}}}


def test_settings_are_of_the_layers_the_optimizer_and_the_name() -> None:
    adam = {"class": "Adam", "lr": 0.01, "betas": [0.9, 0.99]}
    found = settings_of(made(meta={**gru(8), "optimizers": [adam, {**adam, "lr": 1.0}]}), "sweep/seed=3/cell=x y")
    assert found == {
        **{"seed": 3, "cell": "GRU", "hidden_size": 8, "bias": True},
        **{"optimizer": "Adam", "lr": 0.01, "optimizer (1)": "Adam", "lr (1)": 1.0},
    }
    assert settings_of(Run(MemoryStore({}))) == {}


def test_only_what_differs_is_shown_and_once() -> None:
    settings = {"a": {"lr": 1, "rate": 1, "bias": True, "own": 2}, "b": {"lr": 2, "rate": 2, "bias": True}}
    assert differing(settings) == {"lr": {"a": 1, "b": 2}}


@pytest.mark.parametrize(
    ("values", "learn", "said"),
    [
        ([0.1, 0.1, 1.0, 1.0], "yynn", "The 2 runs that learn have it at most 0.1; the 2 that do not have at least 1."),
        ([3, 2, 1, 1], "yynn", "The 2 runs that learn have it at least 2; the 2 that do not have at most 1."),
        ([1, 2, 1, 3], "yynn", ""),
        ([0.1, 0.1, 0.01, 1.0], "yynn", "The 2 runs that learn have it 0.1; the 2 that do not have 0.01 or 1."),
        (["a", "a", "b", "c"], "yynn", "The 2 runs that learn have it a; the 2 that do not have b or c."),
        (["a", "b", "c", "d"], "yynn", ""),
        (["a", "b"], "yn", "The run that learns has it a; the run that does not has b."),
        ([1, 2, 3], "yyy", ""),
        ([1, 2, 3], "nn?", ""),
    ],
)
def test_what_separates(values: list[Any], learn: str, said: str) -> None:
    names = [str(place) for place in range(len(values))]
    verdicts = {name: {"y": True, "n": False, "?": None}[one] for name, one in zip(names, learn, strict=True)}
    found = separating({"it": dict(zip(names, values, strict=True))}, verdicts)
    assert found == ([said, "With so few runs this may be chance."] if said else [])


def test_many_runs_are_no_chance() -> None:
    values = {str(place): place for place in range(8)}
    assert len(separating({"lr": values}, {name: int(name) < 4 for name in values})) == 1


def stalled(size: int) -> Run:
    store = MemoryStore(gru(size))
    told = {"optimizer": "Adam", "grad_norm": 1.0, "nonfinite": 0, "recorded": True, "skipped": False}
    for step in range(60):
        row = Rows("steps", {**told, "loss": 1.0 + 0.01 * (step % 3), "overhead_s": 0.0, "step_s": 0.1})
        store.write(Batch(step, (*layer(ENCODER, 6, -0.5), row)))
    return Run(store)


def test_the_table_of_a_comparison() -> None:
    runs = {"small": made(meta=gru(8)), "large": stalled(64)}
    table = runs_table(runs, {"small": [HEALTHY], "large": [VANISHING]})
    assert table["settings"] == ["hidden_size"] and [row["settings"] for row in table["rows"]] == [["8"], ["64"]]
    assert [(row["learns"], row["finding"], row["horizon"]) for row in table["rows"]] == [
        ("yes", "healthy", "7 of 12"), ("no", "vanishing_gradient", "≥ 5 of 6"),
    ]  # fmt: skip
    assert table["separates"][0].startswith("The run that learns has hidden_size at most 8; the run that does not")
    report = comparison(runs, {"small": [HEALTHY], "large": [VANISHING]})
    screen, full = (report.text(120, full=full) for full in (False, True))
    assert screen.index("hidden_size") < screen.index("SETTINGS that separate") < screen.index("FINDINGS")
    assert "residual" in full and "residual" not in screen and "vanishing_gradient" in screen


def test_pages_and_markdown_begin_with_the_table(undrawn: None) -> None:
    runs = {"small": made(meta=gru(8)), "large": stalled(64)}
    report = comparison(runs, {"small": [HEALTHY], "large": [VANISHING]})
    html, markdown = report.html(), report.markdown()
    for written in (html, markdown):
        first = [written.index(what) for what in ("hidden", "Settings that separate runs that learn", "encoder")]
        assert first == sorted(first) and "The run that learns has hidden" in written
    assert '<span class="setting" style="--share: 25%">8</span>' in html and '"--share: 50%">64</span>' in html
    assert html.count('<svg class="spark"') == 2
    assert "| large | 64 | 1.01 → 1.01 | no | ≥ 5 of 6 | vanishing\\_gradient | 0% |" in markdown


def test_sparklines_share_one_scale() -> None:
    rows = [{"curve": [4.0, 2.0]}, {"curve": [2.0, float("inf"), 0.0]}]
    found = [str(spark(row["curve"], rows)) for row in rows]
    assert 'd="M2.0 2.0L94.0 12.0"' in found[0] and 'd="M2.0 12.0M94.0 22.0"' in found[1]
    assert spark([1.0], rows) == ""


def test_a_sweep_shows_itself(tmp_path: Path, undrawn: None) -> None:
    for size in (4, 8):
        ParquetStore(tmp_path / f"size={size}", gru(size)).close()
    shown = repr(gradscope.load(tmp_path))
    assert shown.startswith("<Fleet: 2 runs in ") and "size=8" in shown and len(shown.splitlines()) == 4
    page, written = gradscope.load(tmp_path).report().html(), gradscope.load(tmp_path).report().markdown()
    assert page.index("<h2>Runs</h2>") < page.index('<th scope="col">size</th>') < page.index("<h2>Findings</h2>")
    assert written.index("## Runs, worst first") < written.index("| size=8 | 8 |") < written.index("## Findings")
    assert "<pre>&lt;Fleet" in gradscope.load(tmp_path)._repr_html_()
