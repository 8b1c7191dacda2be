"""Reports say what the run and its findings say, in every format, and nothing in a run can break out of them."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from made_runs import CLIPPING, ENCODER, HEALTHY, HOSTILE, VANISHING, layer, made, of

import gradscope
from gradscope.record import Joined, MemoryStore
from gradscope.run import Run
from gradscope.types import Batch, Finding, LayerKey, Remedy, Rows

pytest.importorskip("jinja2")
pytest.importorskip("seaborn")
from gradscope.report import Report, render, report, short, summary, words  # noqa: E402
from gradscope.report.excerpt import excerpt  # noqa: E402

FINDINGS = [VANISHING, CLIPPING]
GOLDEN = Path(__file__).with_name("golden")
VOID = {"meta", "br", "img", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks nesting while it reads, and keeps tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data

    def every(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


Progress = list[tuple[int, int]]


@pytest.fixture(scope="module")
def drawn() -> tuple[str, Progress]:
    """A page, and what was told while it was drawn."""
    told: Progress = []
    return report(made(), FINDINGS, "runs/exp1").html(lambda done, total: told.append((done, total))), told


@pytest.fixture(scope="module")
def html(drawn: tuple[str, Progress]) -> str:
    return drawn[0]


@pytest.fixture(scope="module")
def parsed(html: str) -> Page:
    return Page(html)


@pytest.mark.parametrize("suffix", ["txt", "md"])
def test_golden(suffix: str, tmp_path: Path) -> None:
    made_now = report(made(), FINDINGS, "runs/exp1").save(tmp_path / f"it.{suffix}").read_text(encoding="utf-8")
    assert made_now == (GOLDEN / f"run.{suffix}").read_text(encoding="utf-8")


def test_text_fits_a_page() -> None:
    lines = report(made(), FINDINGS, "runs/exp1").text().splitlines()
    assert max(map(len, lines)) <= 120


def test_html_is_well_formed_and_needs_nothing_else(parsed: Page) -> None:
    assert not parsed.every("script") and not parsed.every("link") and not parsed.every("img")
    addresses = [a[k] or "" for _, a in parsed.tags for k in ("href", "src", "xlink:href") if k in a]
    assert addresses and all(address.startswith(("#", "data:")) for address in addresses)


def test_html_names_no_network(html: str) -> None:
    assert "http:" not in html and "https:" not in html and "@import" not in html
    assert set(re.findall(r"url\((.)", html)) == {"#"}


def test_html_begins_with_a_sentence_and_ends_with_numbers_and_settings(parsed: Page) -> None:
    order = ["The training learns: loss 2.06 → 0.978, 60 steps, 6 recorded.", "Loss, horizon and findings", "Findings"]
    order += [VANISHING.title, CLIPPING.title, "Worst first", "of them recorded", "Settings"]
    places = [parsed.text.index(what) for what in order]
    assert places == sorted(places)
    assert "nn.init.orthogonal_(model.encoder.weight_hh_l0)" in parsed.text
    assert "2.13.0" in parsed.text


def test_every_picture_has_words_numbers_and_a_csv(parsed: Page) -> None:
    pictures = [a for a in parsed.every("svg")]
    assert len(pictures) == len(parsed.every("figure")) == len(parsed.every("figcaption")) == 14
    assert all(a["role"] == "img" and a["aria-label"] for a in pictures)
    tables = {a["download"]: a["href"] or "" for a in parsed.every("a") if "download" in a}
    assert len(tables) == 14
    head, _, body = tables["layer-0-timesteps.csv"].partition(",")
    rows = list(csv.DictReader(io.StringIO(unquote(body))))
    assert head == "data:text/csv;charset=utf-8"
    np.testing.assert_allclose(
        [float(row["p50"]) for row in rows], [0.01 * 10 ** (-0.5 * (11 - t)) for t in range(12)], rtol=1e-5
    )


def test_pictures_take_the_colours_of_the_page(html: str) -> None:
    assert "currentColor" in html and "var(--line)" in html and "var(--c0, #0173b2)" in html
    assert not re.search(r"#010203|#040506", html)
    assert "prefers-color-scheme: dark" in html and "@media print" in html


def test_names_inside_pictures_do_not_clash(parsed: Page, html: str) -> None:
    names = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(names) == len(set(names))
    used = set(re.findall(r"url\(#([^)]*)\)", html))
    assert used <= set(names)


def test_reports_are_the_same_each_time(html: str) -> None:
    assert report(made(), FINDINGS, "runs/exp1").html() == html


def test_hostile_names_stay_text() -> None:
    key = LayerKey(HOSTILE, 0, "forward", 0)
    finding = Finding("dead_units", "warning", key, HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, (Remedy(HOSTILE, HOSTILE),))
    found = report(made([key], meta={HOSTILE: HOSTILE}), [finding], HOSTILE)
    page = Page(found.html())
    assert not page.every("script")
    assert "<script>" in page.text
    assert "<script>" not in found._repr_html_()
    for written in (found.text(), found.markdown()):
        assert "\x1b" not in written
    assert not re.search(r"(?<!\\)<script>", re.sub(r"^ {4,}.*$", "", found.markdown(), flags=re.M))
    assert json.loads(found.json())["layers"][0]["key"]["module"] == HOSTILE


def test_csv_cells_are_no_formulas() -> None:
    address = render.csv({"columns": ["gate"], "rows": [["=1+1"], ["+x"], [math.nan], [1e-12]]})
    assert unquote(address.partition(",")[2]).splitlines() == ["gate", "'=1+1", "'+x", '""', "1e-12"]


def test_json_is_strict_and_complete() -> None:
    odd = Finding(
        "nonfinite_gradient", "critical", None, "t", "e", {"inf": math.inf, "nan": math.nan, "n": np.int64(3)}
    )
    found = json.loads(report(made(), [odd], "it").json())
    evidence = {item["name"]: item["value"] for item in found["findings"][0]["evidence"]}
    assert evidence == {"inf": "inf", "nan": None, "n": 3}
    (first,) = [p for p in found["layers"][0]["pictures"] if p["id"] == "layer-0-reach"]
    assert first["columns"] == ["lag", "p10", "p50", "p90", "nonfinite"] and len(first["rows"]) == 12
    assert found["facts"]["clipped"] == pytest.approx(22 / 60) == found["clipping"]["calls"][0]["clipped"]


def test_worst_layers_come_first_and_many_are_folded(undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "PICTURED", 2)
    keys = [LayerKey(f"blocks.{index}.rnn", 0, "forward", 0) for index in range(20)]
    worst = Finding("exploding_gradient", "critical", keys[15], "It explodes", "", {})
    found = report(made(keys, recorded=[0, 10, 20]), [worst], "deep")
    assert [entry["name"] for entry in found.summary["layers"]][0] == "blocks.15.rnn, layer 0"
    page = Page(found.html())
    assert len(page.every("svg")) == 1 + 2 * 11 + 2
    assert "8 more layers" in page.text and "The other 18 layers have no figures here" in page.text
    assert len([a for a in page.every("details") if "layer" in (a.get("class") or "").split() and "open" in a]) == 2
    targets = {a["id"] for _, a in page.tags if a.get("id")}
    assert {(a["href"] or "")[1:] for a in page.every("a") if (a["href"] or "").startswith("#")} <= targets


def _broken(key: LayerKey) -> list[Rows]:
    """A layer's tables at a step at which nothing of it is finite."""
    ill = {"p10": math.nan, "p50": math.nan, "p90": math.nan, "mean": math.nan, "nonfinite": 8}
    lost = {"horizon": math.nan, "horizon_censored": False, "decay": math.nan}
    changes = {"timesteps": ill, "reach": ill, "layers": lost, "gates": {"low": 0.0, "high": 0.0}}
    return [Rows(rows.table, {**rows.columns, **changes.get(rows.table, {})}) for rows in layer(key, 12, -0.5)]


def test_a_training_that_ends_in_nan_is_shown_as_it_was_before() -> None:
    """The last finite records are what tells of the cause."""
    store = MemoryStore({})
    told = {"optimizer": "SGD", "recorded": True, "skipped": False, "overhead_s": 0.0, "step_s": 0.1}
    for step in range(20):
        head = Rows("steps", {**told, "loss": 1.0, "grad_norm": 1.0, "nonfinite": 3 * (step >= 8)})
        store.write(Batch(step, (head, *(_broken(ENCODER) if step >= 8 else layer(ENCODER, 12, -0.5)))))
    found, sound = report(Run(store), []), report(made(), [])
    assert found.summary["finite_until"] == 7 and sound.summary["finite_until"] is None
    (shown,), (as_it_was,) = (each.summary["layers"] for each in (found, sound))
    assert shown["cells"] == as_it_was["cells"]
    pictures = {picture["id"]: picture["text"] for picture in shown["pictures"]}
    assert pictures["layer-0-reach"] == as_it_was["pictures"][2]["text"]
    assert "limit; update 10% at its lower" in pictures["layer-0-gates-training"]
    html = found.html()
    for written in (html, found.text(), found.markdown()):
        assert "Later gradients are not finite" in written and "up to step 7." in written
    assert html.count("step 0") and "steps 4 to 7" in html


def test_text_takes_the_width_of_a_terminal() -> None:
    whole = report(made(), FINDINGS, "runs/exp1")
    for width in (60, 80, 100):
        lines = whole.text(width).splitlines()
        code = {line for found in FINDINGS for remedy in found.remedies for line in remedy.code.splitlines()}
        assert max(len(line) for line in lines if line.strip() not in {piece.strip() for piece in code}) <= width
    assert "  (no room for: gradient, jacobian, residual)" in whole.text(80) and "no room" not in whole.text(120)
    assert whole.text(120) == whole.text()


def test_the_first_screen_is_one_screen() -> None:
    whole = report(made(steps=300, recorded=range(0, 300, 10)), FINDINGS, "runs/exp1")
    for width in (80, 120):
        screen = whole.text(width, full=False)
        assert max(map(len, screen.splitlines())) <= width and len(screen.splitlines()) <= 40
        assert "The training learns: loss 2.00 → " in screen and "300 steps, 30 recorded." in screen
        assert "\n  loss  █" in screen and "REACH" in screen and "To try first: " in screen
        assert "SETTINGS" not in screen and "CLIPPING" not in screen and "\x1b" not in screen
    assert all(found.title in screen for found in FINDINGS)
    assert screen.count(FINDINGS[0].explanation[:20]) == 1


def test_the_first_screen_of_many_layers_and_findings() -> None:
    keys = [LayerKey(f"block.{index}", 0, "forward", 0) for index in range(20)]
    screen = report(made(keys, recorded=[0, 10, 20]), FINDINGS * 3, "deep").text(80, full=False)
    assert "And 8 more layers." in screen and f"And {len(FINDINGS) * 3 - 4} more findings." in screen
    assert len(screen.splitlines()) <= 70


def test_settings_are_short_and_sessions_say_what_differs() -> None:
    layers = {f"layer.{number}": {"class": "LSTM", "hidden_size": 8} for number in range(50)}
    meta = {"versions": {"torch": "2.13.0"}, "layers": layers, "arguments": {"every": 2}}
    sessions = [{**meta, "started": "then", "arguments": {"every": 1}}, {**meta, "started": "now"}]
    told = summary.settings(made(meta={**meta, "sessions": sessions}))
    assert told["sessions"] == [{"started": "then", "arguments": {"every": 1}}, {"started": "now"}]
    written = render.pretty(told)
    assert json.loads(written) == told and len(written.splitlines()) < 70


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {"a": []},
        "x",
        [[1, 2], {"b": "x" * 200, "c": 1.5}],
        {"a": {"b": ["y" * 60] * 4}, "c": [{}] * 40, "d": 1},
    ],
)
def test_settings_are_json_in_lines_that_fit(value: Any) -> None:
    written = render.pretty(value)
    assert json.loads(written) == value
    assert all(len(line) <= 100 or "x" * 200 in line for line in written.splitlines())


def test_empty_and_unclipped_runs_have_reports() -> None:
    one = {"recorded": [0], "steps": 1}
    for run in (Run(MemoryStore()), made(clip=False, **one), made(length=1, **one), of(*layer(ENCODER, 3, -1))):
        found = report(run, [HEALTHY])
        Page(found.html())
        assert found.text() and found.markdown() and json.loads(found.json())


def _clips(step: int, clipped: bool, threshold: float = 0.5) -> Rows:
    head = {"index": 0, "kind": "norm", "how": "clip_grad_norm_", "threshold": threshold, "norm_type": 2.0}
    norms = {"norm_before": 1.0, "norm_after": 0.5 if clipped else 1.0, "coefficient": 0.5 if clipped else 1.0}
    return Rows("clips", {**head, **norms, "parameters": 4, "clipped": clipped, "nonfinite": 0})


def _steps(rank: int, clipped: int, threshold: float = 0.5, count: int = 10) -> MemoryStore:
    """A process that clips at so many of its steps, and measures the norm at each."""
    store = MemoryStore({}, rank=rank)
    told = {"optimizer": "SGD", "nonfinite": 0, "recorded": False, "skipped": False, "overhead_s": 0.0, "step_s": 0.1}
    for step in range(count):
        calls = (_clips(step, step < clipped, threshold), _clips(step, False, math.inf))
        store.write(Batch(step, (Rows("steps", {**told, "loss": 1.0, "grad_norm": 3.0}), *calls)))
    return store


@pytest.mark.parametrize(("clipped", "share"), [((10, 0), 0.5), ((4, 8), 0.6), ((0, 0), 0.0), ((10, 10), 1.0)])
def test_every_process_has_its_part_in_the_share_of_clipped_steps(clipped: tuple[int, int], share: float) -> None:
    run = Run(Joined(_steps(0, clipped[0]), _steps(1, clipped[1])))
    assert summary.facts(run)["clipped"] == pytest.approx(share) and summary.facts(run)["steps"] == 10
    assert summary.facts(run.of_rank(1))["clipped"] == pytest.approx(clipped[1] / 10)


def test_calls_that_only_measure_are_shown_as_such_and_counted_nowhere(undrawn: None) -> None:
    made = report(Run(_steps(0, 6)), [])
    assert "10 measured clipping calls changed the gradients in 60%. The norm before: median 1" in made.text()
    assert "norm, clip_grad_norm_, which measures only" in made.html()
    only = report(Run(_steps(0, 0, threshold=math.inf)), [])
    assert "Nothing clips. The norm of the recurrent gradients: median 3" in only.text()


def test_save_goes_by_the_suffix(tmp_path: Path) -> None:
    found = report(Run(MemoryStore()), FINDINGS)
    for suffix, start in {
        "html": "<!DOCTYPE html>",
        "md": "# gradscope",
        "txt": "gradscope report",
        "json": "{",
    }.items():
        path = found.save(tmp_path / "new" / f"report.{suffix}")
        assert path.read_text(encoding="utf-8").startswith(start)
    with pytest.raises(gradscope.GradscopeError, match=r"one of the suffixes \.html"):
        found.save(tmp_path / "report.pdf")
    with pytest.raises(gradscope.GradscopeError, match="cannot write the report"):
        found.save(tmp_path / "new" / "report.md" / "below.md")


def test_progress_counts_pictures(drawn: tuple[str, Progress]) -> None:
    assert drawn[1] == [(n, 14) for n in range(1, 15)]


def test_run_report_and_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    run = made()
    monkeypatch.setattr("gradscope.diagnose.diagnose_ranks", lambda run: FINDINGS)
    monkeypatch.setattr("gradscope.report.make.diagnose_ranks", lambda run: FINDINGS)
    found = run.report()
    assert isinstance(found, Report) and found.findings == tuple(FINDINGS)
    for html in (run._repr_html_(), found._repr_html_(), short(run)):
        assert "critical: vanishing_gradient" in Page(html).text and "<svg" not in html


def test_notebook_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gradscope.report", None)
    assert made()._repr_html_().startswith("<p>&lt;Run: 60 steps")


def test_a_page_without_the_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    found = made().report()
    with pytest.raises(gradscope.GradscopeError, match=r"matplotlib is not .* pip install 'gradscope-rnn\[report\]'"):
        found.save(tmp_path / "report.html")
    assert found.save(tmp_path / "report.txt").exists()


def test_an_excerpt_is_read_like_the_run() -> None:
    run = made([ENCODER, LayerKey("decoder", 0, "reverse", 0)])
    part = excerpt(run)
    assert excerpt(part) is part and repr(Run(part.source)) == repr(run) and part.layers == run.layers
    for table in ("layers", "clips", "steps", "notes", "weights"):
        assert len(part.frame(table)) <= len(run.frame(table))
    wanted: dict[str, Any] = {**ENCODER._asdict(), "quantity": "grad_h", "t": slice(3, 5), "step": [0, 50]}
    got, true = part.frame("timesteps", **wanted), run.frame("timesteps", **wanted)
    assert got.to_dict("list") == true.to_dict("list") and len(got) == 6
    assert part.frame("timesteps", module="nobody").empty


def test_an_excerpt_is_bounded() -> None:
    run = made(recorded=range(60))
    part = excerpt(run, max_rows=48 * 10)
    steps = part.frame("gates")["step"].unique()
    assert {0, 56, 57, 58, 59} <= set(steps) and len(steps) <= 15
    assert len(part.frame("layers")) == 60


@pytest.mark.parametrize(
    ("value", "text"),
    [(math.nan, "–"), (None, "–"), (True, "yes"), (3.0, "3"), (1e-7, "1e-07"), (0.12345, "0.123"), ("x", "x"),
     ([1.0, 2.0], "1, 2"), (list(range(9)), "0, 1, 2, 3, 4, 5, … (9 in all)"), ({"a": 0.5}, "a: 0.5")],
)  # fmt: skip
def test_told(value: Any, text: str) -> None:
    assert words.as_text(value) == text
