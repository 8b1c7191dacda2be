"""The tab reacts, survives, and shows hostile names as what they are: text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from browsers import Tab, running, until, walked
from made_boards import HOSTILE, LAYERS, RECORDED, Named, train

import gradscope

VIEWS = {
    "overview": ["timeline", "reach", "horizon"],
    "flow": ["heatmap", "profile", "spectra"],
    "gates": ["saturation", "units"],
    "clipping": ["norms"],
    "compare": ["compare-steps"],
}
BOTH = ["first/gradscope", "second/gradscope"]
IMPATIENT = "const every = setInterval; window.setInterval = (act, ms) => every(act, ms / 5)"
"""The page asks for news every second."""


@contextmanager
def answering(tab: Tab, handler: Callable[[Any], None]) -> Iterator[None]:
    """The server's list of runs is another for a while; afterwards TensorBoard is loaded anew."""
    where = "**/plugin/gradscope/runs"
    tab.page.route(where, handler)
    try:
        yield
    finally:
        tab.page.unroute(where)
        tab.loaded = False


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_view_opens(tab: Tab, dark: bool) -> None:
    tab.page.emulate_media(color_scheme="dark" if dark else "light")
    tab.open(anew=dark, runs=BOTH)
    for view, figures in VIEWS.items():
        tab.get(f"tab-{view}").click()
        tab.ready(view)
        for figure in figures:
            for found in tab.get(f"figure-{figure}").all():
                assert found.get_attribute("data-state") == "ready", figure
                assert found.locator("h3").inner_text() and found.locator(".hint").inner_text()
    page = tab.frame.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
    plot = tab.get("figure-compare-steps").locator(".plot").evaluate("p => p.layout.paper_bgcolor")
    tab.page.emulate_media(color_scheme="light")
    tab.loaded = not dark
    assert (page, plot) == (("rgb(36, 39, 43)", "#24272b") if dark else ("rgb(255, 255, 255)", "#ffffff"))


@pytest.mark.parametrize("loader", ["rust"], indirect=True)
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_opens_with_the_fast_loader_too(tab: Tab, loader: str, view: str) -> None:
    tab.open(runs=["second/gradscope"], view=view)
    assert tab.get(f"view-{view}").count() == 1


def test_selectors_change_what_is_shown_and_a_reload_keeps_it(tab: Tab) -> None:
    tab.open(runs=["first/gradscope"], view="flow")
    before = tab.plotted("heatmap")[0]["z"]
    tab.choose("layer", json.dumps(["rnn", 1], separators=(",", ":")))
    tab.choose("direction", "reverse")
    other = tab.plotted("heatmap")[0]["z"]
    assert other != before
    tab.choose("curve", "gates/forget")
    tab.choose("row", "low")
    assert tab.plotted("heatmap")[0]["z"] != other
    tab.get("step").fill("3")  # the fourth of them
    tab.ready()
    shown, words = tab.plotted("profile"), tab.words()
    assert words["layer"] == "rnn%2F1%2Freverse" and words["curve"] == "gates%2Fforget"
    assert words["step"] == str(RECORDED[3])
    tab.page.reload()
    tab.ready("flow")
    assert tab.plotted("profile") == shown and tab.words() == words
    assert tab.get("direction").input_value() == "reverse" and tab.get("curve").input_value() == "gates/forget"


def test_runs_are_chosen_from_a_list(tab: Tab) -> None:
    tab.open(runs=["first/gradscope"], view="flow")
    assert tab.get("run-column").count() == 1
    tab.get("runs").click()
    tab.frame.locator(".choices label", has_text="second").click()
    tab.ready()
    assert tab.get("run-column").count() == 2 and tab.get("figure-heatmap").count() == 2
    assert tab.get("run-column").locator("h2").all_inner_texts() == ["first\nfinished", "second\nfinished"]


def test_the_keyboard_walks_through_views_steps_and_timesteps(tab: Tab) -> None:
    tab.open(runs=["first/gradscope"])
    tab.get("tab-overview").focus()
    tab.page.keyboard.press("ArrowRight")
    tab.ready("flow")
    assert tab.get("tab-flow").get_attribute("aria-selected") == "true"
    tab.get("figure-heatmap").locator(".plot").focus()
    for key in ("ArrowDown", "ArrowLeft", "ArrowLeft"):
        tab.page.keyboard.press(key)
        tab.ready()
    assert (tab.words()["step"], tab.words()["t"]) == (str(RECORDED[-2]), "10")


def test_arrow_keys_read_out_what_the_mouse_would_show(tab: Tab) -> None:
    tab.open(runs=["first/gradscope"], view="clipping")
    before, after = (next(t for t in tab.plotted("norms") if t["name"] == name) for name in ("before", "after"))
    steps = before["x"]

    def expected(place: int) -> list[str]:
        return [f"step {steps[place]}: {name} " for name in ("before", "after")]

    ways = {("ArrowRight",): 0, ("ArrowRight", "ArrowRight"): 2, ("End",): -1, ("ArrowLeft",): -2, ("Home",): 0}
    for keys, place in ways.items():
        parts = walked(tab, "norms", *keys).split("; ")
        assert [part[: len(start)] for part, start in zip(parts, expected(place), strict=True)] == expected(place)
        numbers = [float(part.rpartition(" ")[2]) for part in parts]
        assert numbers == pytest.approx([before["y"][place], after["y"][place]], rel=1e-3)
    assert tab.get("figure-norms").locator(".hovertext").count() == 2
    tab.page.keyboard.press("Escape")
    assert not tab.get("norms-walked").count() and not tab.get("figure-norms").locator(".hovertext").count()


def test_enter_chooses_what_a_click_would(tab: Tab) -> None:
    tab.open(runs=["first/gradscope"], view="gates")
    walked(tab, "saturation", "ArrowRight", "ArrowRight", "Enter")
    tab.ready()
    assert tab.words()["step"] == str(RECORDED[1])
    assert f"step {RECORDED[1]}" in tab.get("saturation-walked").inner_text()  # it was drawn anew


def test_every_picture_is_walked_through(tab: Tab) -> None:
    tab.open(runs=BOTH)
    for view, figures in VIEWS.items():
        tab.get(f"tab-{view}").click()
        tab.ready(view)
        for figure in figures:
            if figure != "heatmap":  # whose keys move the step and the timestep of the view
                first, second = walked(tab, figure, "Home"), walked(tab, figure, "Home", "ArrowRight")
                assert first and (first != second or figure == "horizon"), figure  # one bar, of the one layer there
                assert "%{" not in first + second and "<" not in first + second


def test_a_zoom_asks_for_what_is_between_and_goes_back(tab: Tab) -> None:
    tab.open(runs=["first/gradscope"], view="flow", zoom="2,8,10,40")
    drawn = tab.plotted("heatmap")[0]
    assert len(drawn["z"]) == len([step for step in RECORDED if 10 <= step <= 40])
    assert drawn["x"] == [2, 3, 4, 5, 6, 7, 8]
    tab.get("figure-heatmap").get_by_text("Reset zoom").click()
    tab.ready()
    assert len(tab.plotted("heatmap")[0]["z"]) == len(RECORDED) and "zoom" not in tab.words()
    box = tab.get("figure-heatmap").locator(".plot").bounding_box()
    tab.page.mouse.move(box["x"] + 200, box["y"] + 80)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 500, box["y"] + 220, steps=4)
    tab.page.mouse.up()
    tab.frame.locator("[data-testid=gradscope]").evaluate("() => new Promise(done => setTimeout(done, 300))")
    tab.ready()
    assert "zoom" in tab.words() and len(tab.plotted("heatmap")[0]["z"]) < len(RECORDED)


def test_findings_are_cards_whose_code_can_be_copied(tab: Tab) -> None:
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.open(runs=BOTH)
    cards = tab.get("finding")
    assert [card.get_attribute("data-code") for card in cards.all()] == ["vanishing_gradient", "excessive_clipping"]
    assert f"It vanishes {HOSTILE}" in cards.first.inner_text() and "Critical" in cards.first.inner_text()
    cards.first.locator("[data-testid=copy]").first.click()
    cards.first.get_by_text("Copied").wait_for()
    assert tab.page.evaluate("navigator.clipboard.readText()") == "model.rnn.reset_parameters()  # <script>"
    cards.first.get_by_text("See it in Gradient flow").click()
    tab.ready("flow")


def test_hostile_names_are_text(tab: Tab) -> None:
    tab.open(runs=['a<b>&"c/gradscope', "second/gradscope"])
    for view in VIEWS:
        tab.get(f"tab-{view}").click()
        tab.ready(view)
        assert tab.frame.locator("img[src=x], i:text-is('Why')").count() == 0
    assert tab.page.evaluate("window.hacked") is None
    assert 'a<b>&"c' in tab.get("runs").inner_text()
    assert HOSTILE in tab.get("layer").first.inner_text()


def test_the_step_of_the_scatter_is_chosen_in_the_picture_above(tab: Tab) -> None:
    tab.open(runs=["first/gradscope"], view="gates")
    box = tab.get("figure-saturation").locator(".nsewdrag").first.bounding_box()
    tab.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.ready()
    step = int(tab.words()["step"])
    assert RECORDED[0] < step < RECORDED[-1]
    assert f"at step {step}" in tab.get("figure-units").locator("h3").inner_text()


def test_only_what_matters_can_be_chosen(tab: Tab) -> None:
    for view, seen in {"flow": 1, "clipping": 0}.items():
        tab.open(runs=["first/gradscope"], view=view)
        assert tab.get("layer").count() == seen
    tab.open(runs=["first/gradscope"], view="compare", measure="steps/grad_norm")
    assert not tab.get("compare-row").count() and not tab.get("over").count()


def test_fifty_layers_stay_one_list(tab: Tab) -> None:
    tab.open(runs=['a<b>&"c/gradscope'])
    assert tab.get("layer").locator("option").count() == LAYERS
    assert not tab.get("direction").count() and not tab.get("call").count()
    assert tab.frame.locator(".chosen").bounding_box()["height"] < 80


def test_what_is_not_finite_is_said(tab: Tab) -> None:
    tab.open(runs=["second/gradscope"], view="flow")
    assert "NaN" in tab.get("figure-heatmap").locator(".notes").inner_text()
    tab.choose("curve", "grad_h_direct")
    assert "not finite" in tab.get("figure-heatmap").locator(".notes").inner_text()


def test_steps_that_are_left_out_are_said(tab: Tab) -> None:
    def dropped(route: Any) -> None:
        answer = route.fetch()
        body = answer.json()
        for run in body["runs"]:
            run["state"] |= {"steps": 12_000, "recorded": 12_000, "written": 1_000, "stride": 12}
        route.fulfill(response=answer, json=body)

    with answering(tab, dropped):
        tab.open(anew=True, runs=["first/gradscope"], view="flow")
    said = tab.get("coverage").inner_text()
    assert said == "12,000 recorded of 12,000 steps · the event file keeps 1,000 of them, now every 12th"
    said = tab.get("figure-heatmap").locator(".notes").inner_text()
    assert f"{len(RECORDED)} of 1,000 recorded steps are here" in said


def test_a_run_without_a_loss_has_its_horizon(tab: Tab) -> None:
    tab.open(runs=["lossless/gradscope"])
    assert tab.get("figure-timeline").locator("h3").inner_text() == "Horizon over training"
    assert tab.get("headline").inner_text() == "Whether the training learns is not known yet."
    tab.open(runs=["lossless/gradscope", "long/gradscope"])
    assert [trace["name"].partition(":")[0] for trace in tab.plotted("timeline")][:2] == ["long", "long"]


def test_one_record_is_told_in_words(tab: Tab) -> None:
    """A course over training needs two; what else there is, is drawn."""
    tab.open(runs=["once/gradscope"])
    assert tab.get("coverage").inner_text() == "1 recorded of 1 step"
    courses = {
        "overview": ["timeline"],
        "flow": [],
        "gates": ["saturation", "radius", "update"],
        "clipping": ["norms", "clip-rate"],
        "compare": ["compare-steps"],
    }
    for view, figures in courses.items():
        tab.get(f"tab-{view}").click()
        tab.ready(view)
        for figure in figures:
            assert tab.get(f"figure-{figure}").locator(".say").inner_text().startswith("One step so far, step 0"), (
                figure
            )
            assert not tab.get(f"figure-{figure}").locator(".plot:visible").count()
    tab.get("tab-flow").click()
    tab.ready("flow")
    assert tab.get("figure-heatmap").locator(".plot").evaluate("p => p.layout.yaxis.ticktext") == ["0"]


def test_pictures_are_saved(tab: Tab) -> None:
    tab.open(runs=["first/gradscope"], view="flow")
    saved = tab.saved("heatmap-png")
    assert saved.name == "heatmap-first.png"
    assert saved.read_bytes().startswith(b"\x89PNG") and saved.stat().st_size > 5000
    lines = tab.saved("profile-csv").read_text().splitlines()
    assert lines[0] == "step,t,p10,p50,p90,mean,nonfinite" and len(lines) == 13


def test_an_empty_folder_says_how_to_record(tab: Tab) -> None:
    with answering(tab, lambda route: route.fulfill(json={"version": 1, "runs": []})):
        tab.page.goto("about:blank")
        tab.page.goto(tab.base + "#gradscope")
        tab.frame.locator("[data-testid=gradscope][data-state=empty]").wait_for()
    said = tab.frame.locator(".message").inner_text()
    assert "Nothing has been recorded here yet" in said and 'gradscope.attach(model, logdir="runs/exp1")' in said


def test_a_dark_host_makes_the_page_dark_at_once(tab: Tab) -> None:
    tab.open(runs=["first/gradscope"], view="flow")
    tab.page.evaluate("document.body.classList.add('dark-mode')")
    tab.frame.locator("html.dark").wait_for()
    tab.ready()
    assert tab.get("figure-heatmap").locator(".plot").evaluate("p => p.layout.paper_bgcolor") == "#24272b"
    tab.page.evaluate("document.body.classList.remove('dark-mode')")
    tab.ready()
    assert tab.get("figure-heatmap").locator(".plot").evaluate("p => p.layout.paper_bgcolor") == "#ffffff"


def test_it_grows_while_training_runs_behind_a_prefix(context: Any, tmp_path: Path) -> None:
    with running(tmp_path, "python", "--path_prefix", "/deep/board") as base:
        assert "/deep/board" in base
        tab = Tab(context, base, tmp_path)
        tab.page.add_init_script(IMPATIENT)
        with gradscope.attach(model := Named("rnn", torch.nn.RNN(2, 4)), tmp_path / "now", every=1):
            steps(model, 3)
            tab.open(view="compare")
            until(lambda: drawn(tab) == [3])
            assert "live" in tab.get("coverage").inner_text()
            steps(model, 2)
            until(lambda: drawn(tab) == [5])
        train(Named("rnn", torch.nn.RNN(2, 4, batch_first=True)), tmp_path / "later", 4)
        until(lambda: drawn(tab) == [4, 5])
        until(lambda: "live" not in tab.get("coverage").inner_text())
        tab.page.close()
    fonts = "/font-roboto/"  # TensorBoard asks for its own without the prefix
    assert [problem for problem in tab.problems if fonts not in problem] == []


def steps(model: Named, count: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(count):
        model(torch.randn(5, 2, 2)).sum().backward()
        optimizer.step()


def drawn(tab: Tab) -> list[int]:
    """How many steps each line has."""
    return [len(trace["x"]) for trace in tab.plotted("compare-steps")]
