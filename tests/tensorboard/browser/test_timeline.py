"""Loss, horizon and findings over one axis: who moves along it moves the pictures below."""

from __future__ import annotations

import time

from browsers import Tab, until, walked
from made_boards import HOSTILE, RECORDED
from playwright.sync_api import Locator

RESTS_S = 5


def hover(tab: Tab, share: float) -> tuple[float, float]:
    """Move the pointer to a share of the axis, wherever the picture lies by now: what loads above it moves it."""
    box = tab.get("figure-timeline").locator(".nsewdrag").first.bounding_box()
    place = box["x"] + box["width"] * share, box["y"] + box["height"] / 2
    tab.page.mouse.move(place[0] - 1, place[1])
    tab.page.mouse.move(*place)
    return place


def shows(tab: Tab, share: float, title: Locator, *steps: int) -> bool:
    """True if the pictures below follow the pointer to one of these steps, at a share of the axis.

    The pointer rests meanwhile: each move calls off what the page still fetches for the move before.
    """
    hover(tab, share)
    wanted, end = {f"Reach by lag, at step {step}" for step in steps}, time.monotonic() + RESTS_S
    while title.inner_text() not in wanted and time.monotonic() < end:
        tab.page.wait_for_timeout(100)
    return title.inner_text() in wanted


def test_moving_along_the_time_axis_moves_what_is_below(tab: Tab) -> None:
    tab.open(runs=["first/gradscope"])
    title = tab.get("figure-reach").locator("h3")
    assert title.inner_text() == f"Reach by lag, at step {RECORDED[-1]}"
    until(lambda: shows(tab, 0.5, title, 64, 68))
    below = tab.get("figure-horizon").locator("h3").inner_text()
    assert below.rpartition(" ")[2] == title.inner_text().rpartition(" ")[2] and "step" not in tab.words()
    tab.page.mouse.move(0, 0)
    until(lambda: title.inner_text() == f"Reach by lag, at step {RECORDED[-1]}")
    tab.page.mouse.click(*hover(tab, 0.25))
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
