"""The HTML report in a browser: it loads, fits the window, follows its form, prints, and has a dark mode."""

import json
import time

import numpy as np
import pytest
from support.browser import CHROMIUM, Browser
from support.fabricated import fabricate_result, fabricate_run, fabricate_sweep

from ltg_mdlm.reporting.html_report.page import Extent, write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

TOO_WIDE = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg')
    && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 100))"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return fabricate_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    for run in runs:
        fabricate_result(folder / "results", run.name, 0.6)
    write_report(runs, folder / "page.html", results=folder / "results", extent=Extent(recipes=1, samples=0))
    return folder / "page.html"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """The page of 14 groups."""
    folder = tmp_path_factory.mktemp("many")
    runs = [fabricate_run(folder / f"{i}", "freq_mdlm", f"plugins.freq_mdlm.power={i / 10}") for i in range(1, 15)]
    write_report(runs, folder / "page.html", results=None, extent=Extent(recipes=0, samples=0))
    return folder / "page.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def shown(browser, page, **options):
    """The browser with the page, after its charts are drawn."""
    browser.open(page, **options)
    return drawn(browser, 0)


def drawn(browser, after):
    deadline = time.monotonic() + 60
    while int(browser.evaluate("document.body.dataset.drawn") or 0) <= after:
        assert time.monotonic() < deadline, browser.complaints
        time.sleep(0.05)
    return browser


def choose(browser, change):
    """Change a field of the form, and wait for the charts."""
    before = int(browser.evaluate("document.body.dataset.drawn"))
    browser.evaluate(f"{change}; form.dispatchEvent(new Event('change'))")
    return drawn(browser, before)


def first_chart(browser):
    """Position of the first chart in the window, after scrolling there."""
    browser.evaluate("document.querySelector('.chart').scrollIntoView({block: 'center'})")
    return browser.evaluate("document.querySelector('.chart svg').getBoundingClientRect().toJSON()")


def rows(browser, chart):
    """The rows from which a chart is drawn, as columns by line."""
    found = browser.evaluate(f"rowsOf(data.charts[{chart}], choices())")
    return {line: [row for row in found if row["line"] == line] for line in dict.fromkeys(row["line"] for row in found)}


def logged(run, key):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[key] for row in found if key in row}


def test_the_page_loads_without_errors_and_without_other_requests(browser, page):
    browser.requests.clear()
    shown(browser, page)
    charts = browser.evaluate("document.querySelectorAll('.chart').length")
    assert charts == browser.evaluate("document.querySelectorAll('.chart svg').length") > 5
    assert browser.complaints == []
    assert {address for address in browser.requests if not address.startswith("data:")} == {page.resolve().as_uri()}


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_window(browser, page, width):
    shown(browser, page, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(TOO_WIDE) == []


@pytest.mark.parametrize("width", [1280, 400])
def test_no_text_of_a_chart_is_cut_at_its_edge(browser, page, width):
    shown(browser, page, width=width)
    assert browser.evaluate("document.querySelectorAll('.chart .mark-text text').length") > 20
    cut = """[...document.querySelectorAll('.chart .mark-text text')].filter(e => {
        const text = e.getBoundingClientRect(), chart = e.closest('svg').getBoundingClientRect();
        return text.left < chart.left - 1 || text.right > chart.right + 1 || text.top < chart.top - 1;
    }).map(e => e.textContent)"""
    assert browser.evaluate(cut) == []


def test_every_selected_group_has_its_letter_at_another_place(browser, many):
    shown(browser, many)
    places = browser.evaluate("""[...document.querySelectorAll('.chart')].map(chart =>
        [...chart.querySelectorAll('.mark-text text')].filter(e => /^[A-Z]$/.test(e.textContent))
        .map(e => [e.textContent, Math.round(e.getBoundingClientRect().left)]))""")
    for letters in places:
        assert sorted(letter for letter, _ in letters) == list("ABCDEF")
        assert len({place for _, place in letters}) == 6


def test_groups_are_found_by_name_and_selected_together_until_the_form_is_reset(browser, many):
    shown(browser, many)
    visible = "[...form.querySelectorAll('.group')].filter(e => e.offsetHeight).map(e => e.innerText.trim().slice(2))"
    selected = "new FormData(form).getAll('group').length"
    assert (len(browser.evaluate(visible)), browser.evaluate(selected)) == (14, 6)
    browser.evaluate("form.querySelector('button[value=\"\"]').click()")
    assert browser.evaluate(selected) == 0
    browser.evaluate(
        "{const find = document.getElementById('filter'); find.value = 'POWER=1.'; "
        "find.dispatchEvent(new Event('input'))}"
    )
    assert set(browser.evaluate(visible)) == {"power=1.0", "power=1.1", "power=1.2", "power=1.3", "power=1.4"}
    browser.evaluate("form.querySelector('button[value=\"1\"]').click()")
    assert browser.evaluate(selected) == 5
    before = int(browser.evaluate("document.body.dataset.drawn"))
    browser.evaluate("form.reset()")
    drawn(browser, before)
    assert (len(browser.evaluate(visible)), browser.evaluate(selected)) == (14, 6)


def test_dark_mode_changes_page_text_lines_and_pictures(browser, page):
    seen = []
    for dark in (False, True):
        shown(browser, page, dark=dark)
        line = "getComputedStyle(document.querySelector('.chart path[stroke*=\"--series\"]')).stroke"
        picture = "getComputedStyle(document.querySelector('.picture img')).filter"
        colours = ("getComputedStyle(document.body).backgroundColor", "getComputedStyle(document.body).color")
        seen.append([browser.evaluate(colour) for colour in (*colours, line, picture)])
    light, dark = seen
    assert light[0] == "rgb(255, 255, 255)"
    assert all(before != after for before, after in zip(light, dark, strict=True))


def test_it_prints_light_even_for_readers_who_prefer_dark(browser, page, tmp_path):
    shown(browser, page, dark=True)
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate("getComputedStyle(document.body).color") == "rgb(26, 26, 26)"
    assert browser.evaluate("getComputedStyle(document.querySelector('fieldset.screen')).display") == "none"
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    browser.call("Emulation.setEmulatedMedia", media="")


def test_a_point_shows_the_mean_and_standard_error_of_the_seeds(browser, page, runs):
    shown(browser, page)
    first_chart(browser)
    points = "[...document.querySelectorAll('.chart')[0].querySelectorAll('.mark-symbol path')]"
    box = browser.evaluate(f"{points}.at(-2).getBoundingClientRect().toJSON()")
    for away in (200, 0):
        x, y = (box["left"] + box["right"]) / 2 - away, (box["top"] + box["bottom"]) / 2
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        time.sleep(0.3)
    text = browser.evaluate("document.querySelector('#vg-tooltip-element').innerText")
    words = [word.strip() for word in text.split("\n") if word.strip()]
    told = dict(zip(words[::2], words[1::2], strict=True))
    of_group = [run for run in runs if told["line"].split()[1] in run.name]
    last = [logged(run, "valid/bound")[int(told["step"])] for run in of_group]
    assert told["runs"] == "3"
    assert float(told["value"]) == pytest.approx(np.mean(last), rel=1e-4)
    assert float(told["standard error"]) == pytest.approx(np.std(last, ddof=1) / np.sqrt(3), rel=0.05)


def test_seeds_and_groups_can_be_left_out(browser, page, runs):
    shown(browser, page)
    assert [len(points) for points in rows(browser, 0).values()] == [18, 18]
    choose(browser, "form.querySelector('[name=seed][value=\"1\"]').checked = false")
    assert [len(points) for points in rows(browser, 0).values()] == [12, 12]
    choose(browser, "form.average.checked = false; form.querySelector('[name=group][value=\"1\"]').checked = false")
    assert {line.split()[1] for line in rows(browser, 0)} == {run.name for run in runs if run.name[:4] == "freq"} - {
        "freq_mdlm-s1"
    }
    choose(browser, "form.others.checked = true")
    assert {row["look"] for points in rows(browser, 0).values() for row in points} == {0, -1}


def test_curves_are_smoothed_by_an_exponential_average_without_bias(browser, page, runs):
    shown(browser, page)
    choose(browser, "form.average.checked = false; form.smoothing.value = 0.9")
    for run in runs:
        (points,) = [points for line, points in rows(browser, 2).items() if line.endswith(run.name)]
        values = np.array(list(logged(run, "loss").values()))
        expected = [np.average(values[: i + 1], weights=0.9 ** np.arange(i, -1, -1)) for i in range(len(values))]
        assert [row["y"] for row in points] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("axis", "key", "title"), [("words", "words_seen", "words seen"), ("tokens", "tokens_seen", "tokens seen")]
)
def test_the_axis_shows_words_or_tokens(browser, page, runs, axis, key, title):
    shown(browser, page)
    choose(browser, f"form.x.value = '{axis}'; form.average.checked = false")
    points = next(points for line, points in rows(browser, 2).items() if line.endswith(runs[0].name))
    assert [row["x"] for row in points] == pytest.approx(list(logged(runs[0], key).values())[-len(points) :], rel=1e-4)
    assert title in browser.evaluate("document.querySelectorAll('.chart')[2].textContent")


def test_axes_are_logarithmic_and_limited_on_demand(browser, page):
    shown(browser, page)
    choose(browser, "form.logX.checked = true; form.logY.checked = true; form.from.value = 20; form.to.value = 80")
    assert browser.complaints == []
    for points in rows(browser, 2).values():
        assert {row["x"] for row in points} == set(range(20, 81))
    axis = browser.evaluate("document.querySelectorAll('.chart')[2].querySelector('.role-axis[aria-label]').ariaLabel")
    assert "log scale" in axis


def test_the_wheel_zooms_only_with_a_key_so_that_the_page_scrolls(browser, page):
    shown(browser, page)
    labels = "document.querySelector('.chart .role-axis-label').textContent"
    box = first_chart(browser)
    where = {"type": "mouseWheel", "x": (box["left"] + box["right"]) / 2, "y": box["top"] + 80, "deltaX": 0}
    before = browser.evaluate(labels)
    browser.call("Input.dispatchMouseEvent", **where, deltaY=40)
    time.sleep(0.3)
    assert browser.evaluate(labels) == before
    first_chart(browser)
    browser.call("Input.dispatchMouseEvent", **where, deltaY=-400, modifiers=2)
    time.sleep(0.5)
    assert browser.evaluate(labels) != before


def test_every_control_is_reached_by_the_keyboard_and_has_a_label(browser, page):
    shown(browser, page)
    controls = "[...form.elements].filter(e => e.tagName !== 'FIELDSET')"
    assert browser.evaluate(f"{controls}.length") > 10
    assert browser.evaluate(f"{controls}.filter(e => e.tabIndex < 0 || !(e.labels.length || e.value)).length") == 0
    named = "[...document.querySelectorAll('.chart')].every(e => e.ariaLabel === e.dataset.description && e.role)"
    assert browser.evaluate(named)
