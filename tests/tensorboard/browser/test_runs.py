"""Several runs: each shows a layer of its own; more than three are a table, from which a few are opened."""

from __future__ import annotations

from browsers import Tab
from made_boards import Made

from gradscope.types.clips import share
from gradscope.types.loss import change

BOTH = ["first/gradscope", "second/gradscope"]


def heard(tab: Tab) -> list[str]:
    """The title of every column, without its run."""
    return [text.partition("\n")[2] for text in tab.get("run-column").locator("h2").all_inner_texts()]


def test_every_run_keeps_its_own_layer(tab: Tab) -> None:
    tab.open(runs=["second/gradscope", "stacked/gradscope"], view="flow")
    assert heard(tab) == ["rnn · layer 0 · forward · finished", "core.gru · layer 0 · finished"]  # at the same place
    first, stacked = (tab.get("layer").nth(place) for place in (0, 1))
    first.select_option(label="rnn · layer 1")
    tab.ready()
    assert heard(tab) == ["rnn · layer 1 · forward · finished", "core.gru · layer 1 · finished"]
    stacked.select_option(label="core.gru · layer 0")
    tab.ready()
    first.select_option(label="rnn · layer 0")
    first.select_option(label="rnn · layer 1")
    tab.ready()
    assert heard(tab) == ["rnn · layer 1 · forward · finished", "core.gru · layer 0 · finished"]
    assert tab.words()["layer"] == "rnn%2F1%2Fforward%2Ccore.gru%2F0%2Fforward"
    shown = [tab.plotted("heatmap", place) for place in (0, 1)]
    assert all(shown) and {figure.get_attribute("data-state") for figure in tab.get("figure-heatmap").all()} == {
        "ready"
    }
    tab.page.reload()
    tab.ready("flow")
    assert [tab.plotted("heatmap", place) for place in (0, 1)] == shown


def test_two_runs_of_one_name_of_layer_share_the_list(tab: Tab) -> None:
    tab.open(runs=[*BOTH, "stacked/gradscope"], view="gates")
    labels = [label for label in tab.frame.locator("label:visible").all_inner_texts() if label.startswith("Layer")]
    assert labels == ["Layer of first, second", "Layer of stacked"]
    tab.open(runs=BOTH, view="gates")
    assert tab.get("layer").count() == 1


def rows(tab: Tab, column: str) -> list[str]:
    """A column of the table of runs."""
    return tab.get("runs-table").locator(f"tbody [data-column='{column}']").all_inner_texts()


def test_more_than_three_runs_are_a_table(tab: Tab, made: Made) -> None:
    tab.open()
    names = ['a<b>&"c', "first", "long", "lossless", "once", "second", "stacked"]
    assert rows(tab, "run") == names
    for place, run in ((1, made.first), (5, made.second), (0, made.hostile)):
        steps, clips = run.frame("steps"), run.frame("clips")
        assert rows(tab, "loss")[place] == str(change(steps)).replace("->", "→")
        assert rows(tab, "clipped")[place] == f"{100 * share(steps, clips):.0f} %"
    assert rows(tab, "learns")[1] == "no" and rows(tab, "finding")[1] == "vanishing_gradient"
    drawn = tab.get("runs-row").filter(has_text="long").locator("svg.spark")
    assert [spark.get_attribute("aria-label") for spark in drawn.all()] == [
        "loss over training",
        "horizon over training",
    ]
    assert tab.get("runs-row").filter(has_text="once").locator("svg.spark").count() == 0
    assert not tab.get("layer").count() and not tab.get("figure-timeline").count()


def test_the_table_is_sorted_by_any_column(tab: Tab) -> None:
    tab.open()
    ends = [float(loss.split()[-1]) for loss in rows(tab, "loss") if loss[0].isdigit() and "finite" not in loss]
    tab.get("sort-loss").click()
    tab.ready()
    said = rows(tab, "loss")
    assert [float(loss.split()[-1]) for loss in said[:5]] == sorted(ends) and said[-1] == "–"
    tab.get("sort-loss").click()
    tab.ready()
    assert tab.words()["sort"] == "-loss" and rows(tab, "loss")[-1] == "–" and rows(tab, "loss")[0] != said[0]
    tab.get("sort-setting cell").click()
    tab.ready()
    assert rows(tab, "setting cell") == sorted(rows(tab, "setting cell"))


def test_a_few_runs_are_opened_side_by_side(tab: Tab) -> None:
    tab.open(view="flow")
    opener = tab.get("open")
    assert opener.is_disabled()
    for name in ("first", "second", "stacked"):
        tab.frame.get_by_label(f"Choose {name}").check()
    assert tab.frame.get_by_label("Choose long").is_disabled()
    tab.frame.get_by_label("Choose first").uncheck()
    assert opener.inner_text() == "Open 2 side by side"
    opener.click()
    tab.ready("flow")
    assert tab.get("run-column").count() == 2 and tab.words()["runs"] == "second%2Fgradscope%2Cstacked%2Fgradscope"
    tab.get("runs").click()
    tab.frame.get_by_role("button", name="All").click()
    tab.ready("flow")
    tab.page.keyboard.press("Escape")
    tab.get("runs-row").get_by_role("button", name="long").click()
    tab.ready("flow")
    assert tab.get("run-column").count() == 1 and "long" in tab.words()["runs"]
