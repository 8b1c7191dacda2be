"""Loss, horizon and findings over one axis: who moves along it moves the pictures below."""

from __future__ import annotations

import pytest
from browsers import Tab, until, walked
from made_boards import HOSTILE, RECORDED

pytestmark = pytest.mark.xdist_group("browser")  # one worker, with one TensorBoard per loader


def test_moving_along_the_time_axis_moves_what_is_below(tab: Tab) -> None:
    tab.open(runs=["first/gradscope"])
    box = tab.get("figure-timeline").locator(".nsewdrag").first.bounding_box()
    title = tab.get("figure-reach").locator("h3")
    assert title.inner_text() == f"Reach by lag, at step {RECORDED[-1]}"
    tab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    until(lambda: title.inner_text() in ("Reach by lag, at step 64", "Reach by lag, at step 68"))
    below = tab.get("figure-horizon").locator("h3").inner_text()
    assert below.rpartition(" ")[2] == title.inner_text().rpartition(" ")[2] and "step" not in tab.words()
    tab.page.mouse.move(0, 0)
    until(lambda: title.inner_text() == f"Reach by lag, at step {RECORDED[-1]}")
    tab.page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    tab.ready()
    step = tab.words()["step"]
    tab.page.mouse.move(0, 0)
    until(lambda: title.inner_text() == f"Reach by lag, at step {step}")
    tab.get("tab-flow").click()
    tab.ready("flow")
    assert f"at step {step}" in tab.get("figure-profile").locator("h3").inner_text()
    tab.get("figure-timeline").get_by_text("Back to the last step").click()
    tab.ready("flow")
    assert f"at step {RECORDED[-1]}" in tab.get("figure-profile").locator("h3").inner_text()


def test_the_keyboard_moves_along_the_time_axis(tab: Tab) -> None:
    tab.open(runs=["first/gradscope"], view="flow")
    title = tab.get("figure-profile").locator("h3")
    assert "loss" in walked(tab, "timeline", "Home")
    until(lambda: "at step 0" in title.inner_text())
    tab.page.keyboard.press("End")
    tab.page.keyboard.press("Escape")
    until(lambda: f"at step {RECORDED[-1]}" in title.inner_text())


def test_findings_lie_on_the_time_axis(tab: Tab) -> None:
    tab.open(runs=["first/gradscope"])
    first = "The loss has stopped falling: loss "
    assert (
        tab.get("headline").inner_text().startswith(first)
        and f"It vanishes {HOSTILE}" in tab.get("headline").inner_text()
    )
    strip = tab.plotted("timeline")[-1]
    assert (strip["x"][0], strip["x"][-1]) == (40, 128)
    assert "vanishing gradient" in tab.get("figure-timeline").locator(".plot").text_content()
