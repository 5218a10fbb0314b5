"""The HTML report in a browser: it loads, fits the window, and supports dark mode."""

import pytest
from support.browser import CHROMIUM, Browser
from support.fabricated import fabricate_result, fabricate_sweep

from ltg_mdlm.reporting.html_report.page import Extent, write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

TOO_WIDE = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg')
    && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 100))"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    runs = fabricate_sweep(folder / "runs")
    for run in runs:
        fabricate_result(folder / "results", run.name, 0.6)
    write_report(runs, folder / "page.html", results=folder / "results", extent=Extent(samples=0, recipes=1))
    return folder / "page.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def test_the_page_loads_without_errors_and_without_other_requests(browser, page):
    browser.open(page)
    assert browser.evaluate("document.querySelectorAll('svg[role=img]').length") > 10
    assert browser.complaints == []
    assert {address for address in browser.requests if not address.startswith("data:")} == {page.resolve().as_uri()}


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_window(browser, page, width):
    browser.open(page, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(TOO_WIDE) == []


def test_dark_mode_changes_page_text_and_lines(browser, page):
    seen = []
    for dark in (False, True):
        browser.open(page, dark=dark)
        line = "getComputedStyle(document.querySelector('svg[role=img] path[style*=\"--series\"]')).stroke"
        colours = ("getComputedStyle(document.body).backgroundColor", "getComputedStyle(document.body).color", line)
        seen.append([browser.evaluate(colour) for colour in colours])
    light, dark = seen
    assert light[0] == "rgb(255, 255, 255)"
    assert all(before != after for before, after in zip(light, dark, strict=True))


def test_it_prints_light_even_for_readers_who_prefer_dark(browser, page, tmp_path):
    browser.open(page, dark=True)
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate("getComputedStyle(document.body).color") == "rgb(26, 26, 26)"
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
