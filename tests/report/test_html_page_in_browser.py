"""The page in a real browser: drawn, used, attacked, printed. Skipped without Chromium."""

import base64
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from predicted_studies import ARMS, write_arm
from quickstart_in_readme import REPORT_PICTURE, photograph_report, runs_of_stored_metrics
from written_runs import HOSTILE, write_run

from rewarm.report.collect_runs import collect_runs
from rewarm.report.html_page import html_page

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium, or no chromedriver"),
]

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that keeps the console messages of pages."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(DRIVER)) as driver:
        yield driver


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two arms with two seeds each, and an arm with one seed and a hostile name."""
    root = tmp_path_factory.mktemp("study")
    for arm, peak in (("rewarm", 3e-4), ("constant", 1e-4), (HOSTILE.replace("/", "∕"), 6e-4)):
        for seed in (17, 18)[: 1 if arm.startswith("<") else 2]:
            write_run(root / arm / str(seed), 100, seed=seed, peak=peak, settings={"note": HOSTILE})
    claim = {"claim": HOSTILE, "verdict": "held", "why": HOSTILE}
    results = {"arms": {"rewarm": {}, "constant": {}}, "claims": {HOSTILE: claim}}
    (root / "results.json").write_text(json.dumps(results))
    return root


def test_the_picture_of_the_report_in_the_readme_is_that_of_the_page(tmp_path):
    """To store a new one: benchmarks/quickstart_in_readme.py."""
    picture = photograph_report(runs_of_stored_metrics(tmp_path), tmp_path)
    drawn, shown = (
        np.asarray(Image.open(path).convert("L"), int) for path in (picture, REPORT_PICTURE)
    )
    assert drawn.shape == shown.shape
    assert abs(drawn - shown).mean() < 4  # of 255: fonts may differ between machines


class OpenPage:
    """A page in the browser, and how tests look at it and use it."""

    def __init__(self, browser, file, width=1280, *, dark=False):
        self.browser = browser
        mobile = width < 600
        size = {"width": width, "height": 900, "deviceScaleFactor": 1 + mobile, "mobile": mobile}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        preferences = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce",  # else a click would have to wait for scrolling
        }
        features = [{"name": name, "value": value} for name, value in preferences.items()]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get_log("browser")
        browser.get(file.as_uri())
        WebDriverWait(browser, 20).until(lambda _: self.drawn)

    @property
    def drawn(self):
        """Seconds from navigation until the page was visible; None before that."""
        milliseconds = self.js("return document.documentElement.dataset.drawn")
        return milliseconds and int(milliseconds) / 1000

    def js(self, body, *arguments):
        return self.browser.execute_script(body, *arguments)

    def find_all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def errors(self):
        return [line["message"] for line in self.browser.get_log("browser")]

    def ink(self):
        """Returns how many pixels of each chart are drawn on."""
        return self.js("""return [...document.querySelectorAll(".plot canvas")].map((canvas) => {
            const all = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return all.data.filter((value, i) => i % 4 === 3 && value > 0).length;
        })""")

    def readouts(self):
        return [readout.text for readout in self.find_all(".readout")]

    def ranges(self):
        """Returns the readout of each chart with the cursor at its left and at its right edge.

        Tick labels cannot be read from a canvas.
        """
        return self.js("""return [...document.querySelectorAll(".plot .u-over")].map((over) => {
            const box = over.getBoundingClientRect();
            return [1, box.width - 1].map((x) => {
                const at = { clientX: box.left + x, clientY: box.top + 20, bubbles: true };
                over.dispatchEvent(new MouseEvent("mouseenter", at));
                over.dispatchEvent(new MouseEvent("mousemove", at));
                const readout = over.closest("figure").querySelector(".readout .position");
                return readout.textContent.trim();
            });
        })""")

    def wait_for_drawing(self):
        """Waits until all changes are drawn."""
        self.browser.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done));"
        )

    def set(self, selector, value):
        self.js(
            """const input = document.querySelector(arguments[0]);
            if (input.type === "checkbox") input.checked = arguments[1];
            else input.value = arguments[1];
            input.dispatchEvent(new Event("input", { bubbles: true }));""",
            selector,
            value,
        )
        self.wait_for_drawing()


@pytest.fixture(scope="module")
def file(study, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html_page(collect_runs([study])), encoding="utf-8")
    return path


@pytest.fixture
def page(browser, file):
    return OpenPage(browser, file)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_is_drawn_without_errors_or_horizontal_scrolling(browser, file, width, dark, tmp_path):
    page = OpenPage(browser, file, width, dark=dark)
    page.wait_for_drawing()
    assert page.js("return document.documentElement.scrollWidth") == width
    ink = page.ink()
    assert len(ink) == 4
    assert min(ink) > 1000
    picture = browser.execute_cdp_cmd(
        "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True}
    )
    (tmp_path / f"{width}.png").write_bytes(base64.b64decode(picture["data"]))
    assert page.errors() == []


def test_arms_can_be_hidden_and_shown(page):
    buttons = page.find_all(".arms button")
    assert [button.get_attribute("aria-pressed") for button in buttons] == ["true"] * 3
    before = page.ink()
    assert "rewarm" in page.readouts()[0]
    buttons[0].send_keys(Keys.SPACE)
    page.wait_for_drawing()
    assert buttons[0].get_attribute("aria-pressed") == "false"
    assert all("rewarm" not in text for text in page.readouts())
    assert page.ink() != before
    for button in buttons[1:]:
        button.click()
    assert page.find("figure .none").is_displayed()
    for button in buttons:
        button.click()
    page.wait_for_drawing()
    assert page.ink() == before
    assert page.errors() == []


def test_axes_scales_and_smoothing_change_the_charts(page):
    full_ranges = page.ranges()
    assert full_ranges[0] == ["0 tokens", "204.8k tokens"]
    page.set("#x", "step")
    assert page.ranges()[0] == ["step 0", "step 100"]
    before = page.ink()
    page.set("#log", True)
    assert page.ranges()[0][0] != "step 0"
    assert page.ink() != before
    page.set("#log", False)
    loss = page.readouts()[0]
    page.set("#y", "perplexity")
    assert page.find("figure h3").text.endswith("perplexity")
    assert page.readouts()[0] != loss
    page.set("#y", "loss")
    smooth = page.ink()[2]
    page.set("#smooth", "0")
    assert page.ink()[2] != smooth
    page.set("#seeds", False)
    assert page.ink()[2] < smooth
    assert page.errors() == []


def test_dragging_zooms_every_chart_and_reset_shows_everything(page):
    full_ranges = page.ranges()
    over = page.find(".plot .u-over")
    ActionChains(page.browser).move_to_element_with_offset(
        over, -80, 0
    ).click_and_hold().move_by_offset(120, 0).release().perform()
    page.wait_for_drawing()
    zoomed = page.ranges()
    assert all(a != b for a, b in zip(zoomed, full_ranges, strict=True))
    assert page.find("#reset").is_enabled()
    page.find("#reset").click()
    page.wait_for_drawing()
    assert page.ranges() == full_ranges
    page.find("#in").click()
    page.find("#later").click()
    page.wait_for_drawing()
    assert page.ranges() != full_ranges
    page.find("#earlier").click()
    page.find("#out").click()
    page.wait_for_drawing()
    assert page.ranges() == full_ranges
    assert page.errors() == []


def test_charts_are_usable_by_keyboard(page):
    full_ranges = page.ranges()
    page.find_all(".plot")[1].click()
    chart = page.find_all(".plot")[1]
    chart.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    page.wait_for_drawing()
    assert page.readouts()[1].startswith("20.48k tokens")
    assert page.find_all(".readout")[1].get_attribute("aria-live") == "polite"
    chart.send_keys("+")
    page.wait_for_drawing()
    assert page.ranges() != full_ranges
    chart.send_keys(Keys.ESCAPE)
    page.wait_for_drawing()
    assert page.ranges() == full_ranges
    assert page.errors() == []


def test_values_are_available_as_a_table(page):
    page.find("details.values summary").click()
    page.wait_for_drawing()
    rows = page.find_all("details.values[open] tbody tr")
    assert len(rows) == 11
    assert rows[0].text.split()[:3] == ["0", "3.0000", "3.0000"]
    assert page.errors() == []


def column(table, index):
    return [row.text for row in table.find_elements("css selector", f"td:nth-child({index})")]


def test_tables_can_be_sorted(page):
    table = page.find("#runs table")
    header = table.find_element("css selector", "th:nth-child(2)")
    header.find_element("css selector", "button").send_keys(Keys.ENTER)
    assert header.get_attribute("aria-sort") == "ascending"
    assert column(table, 2) == ["17", "17", "17", "18", "18"]
    header.find_element("css selector", "button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert column(table, 2) == ["18", "18", "17", "17", "17"]
    table.find_element("css selector", "th:nth-child(1) button").click()
    assert header.get_attribute("aria-sort") is None
    assert column(table, 1)[1:] == ["constant", "constant", "rewarm", "rewarm"]


@pytest.mark.parametrize("api", [True, False], ids=["clipboard", "without"])
def test_tables_can_be_copied(page, api):
    origin = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    page.browser.execute_cdp_cmd("Browser.grantPermissions", origin)
    read = "navigator.clipboard.readText().then(arguments[0], (e) => arguments[0](String(e)))"
    if not api:
        page.js("navigator.clipboard.writeText = () => Promise.reject(new Error('not here'))")
    copied = {}
    for button in page.find_all("#summary .table:first-of-type .tools button"):
        button.click()
        page.wait_for_drawing()
        copied[button.text] = page.browser.execute_async_script(read).splitlines()
    hostile_name = HOSTILE.replace("/", "∕")
    assert copied["CSV"][0] == "arm,runs,upstream loss,forgetting,downstream loss,adaptation"
    assert copied["CSV"][1] == "rewarm,2,3.5000,+0.5000,2.7707,+1.7293"
    assert copied["CSV"][3].startswith(hostile_name)
    assert copied["Markdown"][1] == "| --- | --: | --: | --: | --: | --: |"
    assert copied["Markdown"][4].startswith("| \\<∕script\\>\\<img src=x")
    assert copied["LaTeX"][:2] == ["\\begin{tabular}{lrrrrr}", "\\toprule"]
    assert copied["LaTeX"][4] == "rewarm & 2 & 3.5000 & +0.5000 & 2.7707 & +1.7293 \\\\"
    assert copied["LaTeX"][6].startswith("$<$∕script$>$$<$img src=x")
    assert page.errors() == []


def test_injected_scripts_do_not_run(page):
    """No name was run as a script; and the policy stops what a mistake would let in."""
    sources = [image.get_attribute("src") for image in page.find_all("img")]
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert HOSTILE in page.find("#summary").text
    assert page.errors() == []
    page.js("""document.body.insertAdjacentHTML("beforeend",
        "<img src=x onerror='window.ran = 1'><style>body { color: red }</style>");
        const script = document.createElement("script");
        script.textContent = "window.ran = 2";
        document.body.append(script);""")
    page.wait_for_drawing()
    assert page.js("return window.ran") is None
    assert "Content Security Policy" in " ".join(page.errors())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast(browser, file, dark):
    """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for lines."""
    page = OpenPage(browser, file, dark=dark)
    too_low = page.js("""
        const luminance = (color) => {
            const [r, g, b] = color.match(/[\\d.]+/g).map(Number)
                .map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const background = (node) => {
            for (let ancestor = node; ancestor; ancestor = ancestor.parentElement) {
                const color = getComputedStyle(ancestor).backgroundColor;
                if (!color.endsWith(", 0)")) return color;
            }
        };
        const contrast = (node) => {
            const style = getComputedStyle(node);
            const isText = node.closest("svg") && node.tagName === "text";
            const [a, b] = [isText ? style.fill : style.color, background(node)].map(luminance);
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        };
        const minimums = [["h1, h2, h3, p, a, li, td, th, button, label, summary, span, text", 4.5],
                        [".swatch", 3]];
        return minimums.flatMap(([selector, minimum]) => [...document.querySelectorAll(selector)]
            .filter((node) => node.getClientRects().length && contrast(node) < minimum)
            .map((node) => `${node.tagName} ${node.textContent.slice(0, 20)} ${contrast(node)}`));
    """)
    assert too_low == []


def test_every_control_has_an_accessible_name(page):
    nameless = page.js("""
        return [...document.querySelectorAll("button, select, input, [role], svg, [tabindex]")]
            .filter((node) => !node.closest("[hidden]") && !node.closest("[aria-hidden]"))
            .filter((node) => node.getAttribute("role") !== "status")
            .filter((node) => ![
                node.getAttribute("aria-label"),
                node.textContent,
                node.closest("label")?.textContent,
                document.getElementById(node.getAttribute("aria-labelledby"))?.textContent,
            ].some((name) => name?.trim()))
            .map((node) => node.outerHTML.slice(0, 80));
    """)
    assert nameless == []
    assert page.js("return document.documentElement.lang") == "en"


def test_print_is_light_and_fits_the_paper(browser, file):
    page = OpenPage(browser, file, dark=True)
    page.js("dispatchEvent(new Event('beforeprint'))")
    assert page.js("return getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    widths = page.js(
        "return [...document.querySelectorAll('.uplot')].map((plot) => plot.offsetWidth)"
    )
    assert max(widths) <= 700
    page.js("dispatchEvent(new Event('afterprint'))")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    assert page.errors() == []


@pytest.fixture(scope="module")
def predicted_file(tmp_path_factory):
    """The page of three arms of which each can be predicted from the others."""
    folder = tmp_path_factory.mktemp("predicted")
    for name in ("peak", "half", "replay"):
        write_arm(folder / "study" / name, ARMS[name])
    path = folder / "report.html"
    path.write_text(html_page(collect_runs([folder / "study"])), encoding="utf-8")
    return path


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_predicted_losses_are_drawn_with_the_measured_ones(browser, predicted_file, width, dark):
    page = OpenPage(browser, predicted_file, width, dark=dark)
    page.wait_for_drawing()
    assert page.js("return document.documentElement.scrollWidth") == width
    predicted, residual = page.find_all("[data-chart=predicted]"), "[data-chart=residual] .readout"
    assert len(predicted) == 2
    assert min(page.ink()) > 1000
    before = page.find_all(residual)[0].text
    assert re.search(r"half\s+[+-]\d\.\d{4}", before)
    page.set("#y", "perplexity")
    assert predicted[0].find_element("css selector", "h3").text == "predicted upstream perplexity"
    assert page.find_all(residual)[0].text == before
    page.set("#x", "step")
    page.find(".arms button").click()
    page.wait_for_drawing()
    assert "half" not in page.find_all(residual)[0].text
    assert page.errors() == []


def test_nine_arms_of_ten_thousand_points_open_within_a_second(browser, tmp_path):
    for arm in range(9):
        write_run(tmp_path / "runs" / f"arm-{arm}", 10_000, peak=(arm + 1) * 1e-4, every=100)
    path = tmp_path / "nine.html"
    path.write_text(html_page(collect_runs([tmp_path / "runs"])), encoding="utf-8")
    seconds = []
    for _ in range(3):  # the machine may be busy
        page = OpenPage(browser, path)
        seconds.append(page.drawn)
    print(f"{path.stat().st_size:,} bytes, drawn after {seconds} s")
    assert min(page.ink()) > 1000
    assert min(seconds) < 1
    assert page.errors() == []
