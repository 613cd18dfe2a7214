"""The report page in a browser: sorting, filters, baseline and methods, at the widths of a desktop and a phone, without console errors.

Skipped without selenium, or without a Chromium (or Chrome) with its driver.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reports.build import build_report, write_report
from reports.combined import write_comparison
from reports.load import load_run
from tests.reports.build import case, write

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (1400, 390)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (the extra dev)")
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs a Chromium or Chrome with chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield session
    session.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with two networks and five methods, whose latencies sort differently as text and as numbers."""
    seconds = {"base": 8.0, "device-only": 1.0, "code": 10.0, "lantern": 100.0, "ciar threshold=0.5": 4.0}
    cases = [
        case(m, s * k, {"network.preset": p}) for p, k in (("wifi", 1.0), ("lte", 2.5)) for m, s in seconds.items()
    ]
    return write(tmp_path_factory.mktemp("page") / "run", cases, draw=build_report) / "report.html"


def opened(browser: Any, page: Path, width: int) -> Any:
    """Open the page at a width and return a function that runs JavaScript in it."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get(page.as_uri())
    return browser.execute_script


LABELS = "return [...document.querySelectorAll('#cases tbody tr')].filter(r => !r.hidden).map(r => r.dataset.label)"
SORT = (
    "[...document.querySelectorAll('#cases thead th')].find(h => h.textContent.startsWith(arguments[0]))"
    ".querySelector('button').click()"
)
SET = (
    "const e = document.getElementById('controls').elements[arguments[0]]; e.value = arguments[1];"
    "e.dispatchEvent(new Event('input', {bubbles: true}))"
)
CHECK = "const e = [...document.getElementsByName(arguments[0])].find(e => !arguments[1] || e.value === arguments[1]); e.click()"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_and_the_plots_answer(browser: Any, page: Path, width: int) -> None:
    run = opened(browser, page, width)
    run(SORT, "latency (s)")
    assert run(LABELS)[:4] == ["device-only", "device-only", "ciar threshold=0.5", "base"]  # 1, 2.5, 4, 8 s
    run(SORT, "latency (s)")
    assert run(LABELS)[0] == "lantern"
    run(CHECK, "within", "")
    assert run(LABELS)[:5] == ["lantern", "code", "base", "ciar threshold=0.5", "device-only"]  # the first condition
    marks = "return [...document.querySelectorAll('tr[data-label=\"code\"] .rel')].map(i => i.textContent)"
    assert "+25 %" in {text.replace("+26", "+25").replace("+24", "+25") for text in run(marks)}  # against base
    run(SET, "baseline", "label:ciar threshold=0.5")
    assert any(text.startswith("+1") and len(text) == 6 for text in run(marks))  # 10 s against 4 s
    run(SET, "text", "lte")
    assert len(run(LABELS)) == 5
    assert run("return document.getElementById('count').textContent") == "5 of 10 cases are shown."
    run(SET, "text", "")
    run(SET, "condition", "wifi")
    assert len(run(LABELS)) == 5
    run(SET, "condition", "")
    drawn = (
        "return [...document.querySelectorAll('.plot [data-method=\"code\"]')].map(e => getComputedStyle(e).display)"
    )
    assert set(run(drawn)) == {"inline"}
    run(CHECK, "method", "code")
    assert "code" not in run(LABELS)
    assert set(run(drawn)) == {"none"}
    wide = "return document.querySelector('.plot svg').getBoundingClientRect().width"
    before = run(wide)
    run("document.querySelector('.zoom').click()")
    assert run(wide) > before
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def test_a_change_is_never_more_than_all_and_has_no_sign_where_it_is_none(browser: Any, page: Path) -> None:
    run = opened(browser, page, 1400)
    changes = {
        -0.02: "0.0 %",
        0.04: "0.0 %",
        -9.94: "\u22129.9 %",
        12.4: "+12 %",
        -99.4: "\u221299 %",
        -99.8: "\u221299.8 %",
    }
    changes |= {-99.97: "\u221299.97 %", 99.8: "+100 %"}
    assert {percent: run("return change(arguments[0])", percent) for percent in changes} == changes


@pytest.mark.parametrize("width", WIDTHS)
def test_a_label_of_one_long_word_keeps_the_page_narrow(browser: Any, tmp_path: Path, width: int) -> None:
    cases = [case("base", 8.0, {}), case("a" * 80, 4.0, {}, name="ciar")]
    folder = write(tmp_path / "run", cases, images=())
    run = opened(browser, write_report(load_run(folder), folder), width)
    assert run("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_the_names_stay(browser: Any, page: Path, width: int) -> None:
    """The page is no wider than the screen. In the table the numbers scroll; method, condition and header stay visible."""
    run = opened(browser, page, width)
    assert run("return document.documentElement.scrollWidth") <= width
    run("document.querySelector('.table').scrollTo(400, 0)")
    left = "document.querySelector('{}').getBoundingClientRect().left"
    name = f"return {left.format('#cases tbody th')} - {left.format('.table')}"
    assert 0 <= run(name) < 5
    shown = "return document.querySelector('#cases tbody th').innerText"
    assert width > 600 or "wifi" in run(shown)
    assert run("return getComputedStyle(document.querySelector('#cases thead th')).position") == "sticky"
    top = "return document.querySelector('.advice').getBoundingClientRect().bottom"
    run("window.scrollTo(0, 0)")
    assert run(top) < 900  # the advice is visible without scrolling


def test_on_paper_every_page_of_the_table_has_a_header(browser: Any, page: Path) -> None:
    """In print, headers are repeated on every page and have no buttons."""
    run = opened(browser, page, 1400)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    heads = "return [...document.querySelectorAll('#cases thead th')].map(h => "
    assert run(f"{heads}h.innerText.trim())")[:3] == [""] * 3
    assert run(f"{heads}getComputedStyle(h, '::after').content)")[:3] == ['"method"', '"condition"', '"latency (s)"']
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_comparison_takes_a_run_as_the_baseline(browser: Any, page: Path, tmp_path: Path) -> None:
    other = write(
        tmp_path / "other", [case("base", 16.0, {"network.preset": "wifi"})], images=(), provenance={"name": "other"}
    )
    found, _ = write_comparison([page.parent, other], tmp_path / "both")
    run = opened(browser, found, 1400)
    marks = "return [...document.querySelectorAll('tr[data-run=\"other\"] .rel')].map(i => i.textContent)"
    assert run("return document.getElementById('controls').elements.baseline.value") == "run:synthetic"
    assert any(text in ("+99 %", "+100 %", "+101 %", "+98 %", "+102 %") for text in run(marks))
    run(SET, "baseline", "")
    assert run(marks) == []
