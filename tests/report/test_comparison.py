"""Runs side by side: tables stacked, numbers beside each other, curves over each other."""

from __future__ import annotations

import json

import pytest
from made_runs import CLIPPING, ENCODER, HEALTHY, HOSTILE, VANISHING, made

from gradscope.compare import compare
from gradscope.errors import GradscopeError
from gradscope.record import MemoryStore
from gradscope.run import Run
from gradscope.types import LayerKey

pytest.importorskip("jinja2")
pytest.importorskip("seaborn")
from gradscope.report import comparison  # noqa: E402

DECODER = LayerKey("decoder", 0, "forward", 0)
FOUND = {"small": [VANISHING, CLIPPING], "large": [HEALTHY]}


@pytest.fixture
def runs() -> dict[str, Run]:
    return {"small": made(), "large": made([ENCODER, DECODER], length=9)}


def test_tables_are_stacked(runs: dict[str, Run]) -> None:
    frame = compare(runs).frame("reach", step=[0, 50])
    assert list(frame.columns[:3]) == ["run", "step", "module"]
    assert frame.groupby("run").size().to_dict() == {"small": 2 * 12, "large": 2 * 2 * 9}
    alone = runs["small"].frame("reach", step=[0, 50])
    assert frame[frame["run"] == "small"].drop(columns="run").to_dict("list") == alone.to_dict("list")


def test_a_table_that_nobody_has_keeps_its_columns() -> None:
    frame = compare({"a": Run(MemoryStore()), "b": Run(MemoryStore())}).frame("notes")
    assert frame.empty and list(frame.columns)[:2] == ["run", "step"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "takes runs by name"),
        ([], "takes runs by name"),
        ({"a": "runs/a"}, "'a' is a str, not a run; load it"),
        ({"a": None}, "NoneType"),
    ],
)
def test_only_runs_are_compared(given: object, said: str) -> None:
    with pytest.raises(GradscopeError, match=said):
        compare(given)  # type: ignore[arg-type]


def test_report(runs: dict[str, Run]) -> None:
    report = comparison(runs, FOUND)
    summary = json.loads(report.json())
    assert [(run["name"], run["worst"]) for run in summary["runs"]] == [("small", "critical"), ("large", "info")]
    first, second = summary["layers"]
    assert [run["name"] for run in first["runs"]] == ["small", "large"] and [run["name"] for run in second["runs"]] == [
        "large"
    ]
    (reach,) = [picture for picture in first["pictures"] if picture["id"] == "layer-0-reach"]
    assert len(reach["rows"]) == 12 + 9 and {row[0] for row in reach["rows"]} == {"small", "large"}
    html = report.html()
    assert html.count("<svg") == 2 + 1 + 4 + 4 + 1  # beside the pictures two losses in the table of runs
    for written in (html, report.text()):
        assert VANISHING.title in written
    assert "### small" in report.markdown()
    assert report.findings == (VANISHING, CLIPPING, HEALTHY)


def test_of_a_comparison(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "findings", lambda self: FOUND["small" if self is runs["small"] else "large"])
    both = compare(runs)
    assert both.findings() == FOUND
    assert both.report().summary["runs"][0]["findings"][0]["code"] == "vanishing_gradient"
    assert "small, large" in repr(both)


def test_runs_without_anything_and_with_hostile_names() -> None:
    runs = {HOSTILE: Run(MemoryStore()), "b": made([LayerKey(HOSTILE, 0, "reverse", 1)])}
    report = comparison(runs, {HOSTILE: [], "b": []})
    assert "<script>" not in report.html() and "<script>" not in report._repr_html_()
    assert "\x1b" not in report.text() + report.markdown()
