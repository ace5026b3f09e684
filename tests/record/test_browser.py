"""The report in a real browser: no faults, no network, the files' figures shown, at any width, by keyboard, on paper."""

import json
import shutil
import zlib
from base64 import b64decode
from itertools import product
from statistics import mean

import pytest

from fairway.record.report import write_report
from record.pages import scored_run, trained_run

BROWSER, DRIVER = "chromium", "chromedriver"
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --disable-dev-shm-usage"
)
WIDTHS, SCHEMES = (360, 768, 1200), ("light", "dark")
EVIL = "<script>document.title='broken'</script>"


@pytest.fixture(scope="module")
def browser(request, tmp_path_factory):
    """One headless Chromium for all tests; its log of the network is on."""
    if not (shutil.which(BROWSER) and shutil.which(DRIVER)):
        missing = f"no {BROWSER} and {DRIVER}: apt-get install chromium chromium-driver"
        # Where all tests are asked for, a page that nobody has looked at is a failure.
        (pytest.fail if request.config.getoption("--slow") else pytest.skip)(missing)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which(BROWSER)
    for one in [*OPTIONS.split(), f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(one)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_data):
    """{name: page} of a folder of runs in all states, and of one against another; and the folder of three whole runs."""
    folder = tmp_path_factory.mktemp("reports")
    for seed in (42, 314, 1234):
        scored_run(folder / "three" / f"seed{seed}", seed, tiny_data)
    trained_run(folder / "begun" / ("long-name-" * 12), 7, device=EVIL)
    scored_run(folder / "begun" / EVIL.replace("/", ""), 8, settings=["optim.Muon.rate=0.03"])
    write_report([folder / "three"], (), folder / "three.html")
    write_report([folder / "three", folder / "begun"], (), folder / "mixed.html")
    write_report([folder / "begun"], [folder / "three"], folder / "begun.html")
    return folder


def look_at(browser, page, width=1200, scheme="light"):
    """Opens a page in a window of that width, in a light or dark scheme."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [scheme]})
    browser.get(page.as_uri())


def texts(browser, selector):
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent.trim())", selector
    )


def requests_of(browser):
    """Addresses that the browser has asked for since the last call, other than its own pages and what stands in a page."""
    messages = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
    found = {one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"}
    return {one for one in found if not one.startswith(("data:", "about:", "chrome:", "chrome-untrusted:"))}


@pytest.mark.parametrize("name", ["three", "mixed", "begun"])
def test_a_page_has_no_faults_no_requests_and_no_sideways_scroll(browser, places, name):
    page = places / f"{name}.html"
    for width, scheme in product(WIDTHS, SCHEMES):
        look_at(browser, page, width, scheme)
        found = browser.execute_script(
            "for (const one of document.querySelectorAll('details')) one.open = true;"
            "return [document.documentElement.scrollWidth, innerWidth, document.title]"
        )
        assert found[0] <= found[1] == width, (width, found)
        assert found[2].endswith("runs as measured")
    assert browser.get_log("browser") == []
    assert requests_of(browser) == {page.as_uri()}


def test_the_screen_shows_the_figures_of_the_files(browser, places):
    look_at(browser, places / "three.html")
    scores = [json.loads((places / "three" / f"seed{seed}" / "score.json").read_text()) for seed in (42, 314, 1234)]
    assert texts(browser, "#result .number") == [f"{mean(one['bpb'] for one in scores):.4f}"]
    assert texts(browser, "#result tbody tr td:nth-child(3)") == [f"{one['bpb']:.6f}" for one in scores]
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('#stages figure svg.wide text')].map(one => one.textContent)"
    )
    assert {f"{one['stages'][0]['bpb']:.4f}" for one in scores} <= set(drawn)
    assert {f"{one['bpb']:.4f}" for one in scores} <= set(drawn)
    badges = texts(browser, "#verdicts .matrix .verdict")
    assert badges == ["FAIL"] * 3 + ["NOT TESTED"] * 3 + ["PASS"] * 3


@pytest.mark.parametrize("width, shown", [(360, "narrow"), (1200, "wide")])
def test_one_view_of_each_chart_is_shown_and_has_a_name(browser, places, width, shown):
    look_at(browser, places / "three.html", width)
    seen = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].filter(one => one.getBoundingClientRect().width)"
        ".map(one => [one.classList[0], one.getBoundingClientRect().width, one.querySelector('title').textContent])"
    )
    assert len(seen) == 8
    assert {view for view, *_ in seen} == {shown} and all(280 < size <= width for _, size, _ in seen)
    browser.execute_cdp_cmd("Accessibility.enable", {})
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    images = [node for node in nodes if node.get("role", {}).get("value") in ("image", "img", "graphics-document")]
    named = {node.get("name", {}).get("value", "") for node in images}
    # The name has the title first, then what the chart shows, in words.
    assert all(any(name.startswith(f"{title} ") for name in named) for *_, title in seen) and "" not in named
    tables = [node for node in nodes if node.get("role", {}).get("value") == "region"]
    assert tables and all(node["name"]["value"] for node in tables)


def test_the_schemes_differ_and_print_is_light(browser, places):
    grounds = {}
    for scheme in SCHEMES:
        look_at(browser, places / "three.html", 1200, scheme)
        grounds[scheme] = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    media = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    printed = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert printed == "rgb(255, 255, 255)" and len({printed, *grounds.values()}) == 3


def test_the_keyboard_reaches_the_result_and_opens_what_is_folded(browser, places):
    from selenium.webdriver import ActionChains, Keys

    look_at(browser, places / "three.html")
    keys = ActionChains(browser)
    keys.send_keys(Keys.TAB).perform()
    focused = "const one = document.activeElement; return [one.className, one.getBoundingClientRect().left]"
    name, left = browser.execute_script(focused)
    assert name == "skip" and left >= 0
    keys.send_keys(Keys.ENTER).perform()
    assert browser.execute_script("return document.activeElement.id") == "result"
    summary = browser.execute_script("const one = document.querySelector('#stages summary'); one.focus(); return one")
    assert browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", summary) == "solid"
    is_open = "return arguments[0].parentElement.open"
    assert not browser.execute_script(is_open, summary)
    keys.send_keys(Keys.ENTER).perform()
    assert browser.execute_script(is_open, summary)
    rows = texts(browser, "#stages tbody th")
    assert rows[:3] == ["seed42, weights", "seed42, packed file", "seed42, packed file, sliding windows"]


def test_the_keyboard_reaches_every_table_that_scrolls(browser, places):
    look_at(browser, places / "mixed.html", 360)
    found = browser.execute_script(
        "for (const one of document.querySelectorAll('details')) one.open = true;"
        "return [...document.querySelectorAll('*')].filter(one => one.scrollWidth > one.clientWidth + 1"
        " && ['auto', 'scroll'].includes(getComputedStyle(one).overflowX))"
        ".map(one => [one.tabIndex, one.getAttribute('aria-label')])"
    )
    assert found and all(index == 0 and label for index, label in found)


def test_it_prints_to_a_pdf_with_text_in_it(browser, places):
    look_at(browser, places / "three.html", 1200, "dark")
    pdf = b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") >= 2
    streams = [part.split(b"endstream")[0] for part in pdf.split(b"stream\r\n" if b"stream\r\n" in pdf else b"stream\n")[1:]]
    shown = b""
    for stream in streams:
        try:
            shown += zlib.decompress(stream)
        except zlib.error:
            continue
    assert shown.count(b" Tj") + shown.count(b"]TJ") + shown.count(b"] TJ") > 100
