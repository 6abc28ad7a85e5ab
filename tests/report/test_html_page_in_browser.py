"""The page in a real browser: drawn, used, attacked, printed. Skips itself without Chromium."""

import base64
import json
import shutil

import pytest
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
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium, or no driver of it")

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, which keeps what pages log."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(DRIVER)) as driver:
        yield driver


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two arms with two seeds each, and one that is not as far, with names that attack."""
    root = tmp_path_factory.mktemp("study")
    for arm, peak in (("rewarm", 3e-4), ("constant", 1e-4), (HOSTILE.replace("/", "∕"), 6e-4)):
        for seed in (17, 18)[: 1 if arm.startswith("<") else 2]:
            write_run(root / arm / str(seed), 100, seed=seed, peak=peak, settings={"note": HOSTILE})
    claim = {"claim": HOSTILE, "verdict": "held", "why": HOSTILE}
    said = {"arms": {"rewarm": {}, "constant": {}}, "claims": {HOSTILE: claim}}
    (root / "results.json").write_text(json.dumps(said))
    return root


class Opened:
    """A page in the browser, and what is asked of it."""

    def __init__(self, browser, file, width=1280, *, dark=False):
        self.browser = browser
        mobile = width < 600
        size = {"width": width, "height": 900, "deviceScaleFactor": 1 + mobile, "mobile": mobile}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce",  # else a click would have to wait for scrolling
        }
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get_log("browser")
        browser.get(file.as_uri())
        WebDriverWait(browser, 20).until(lambda _: self.drawn)

    @property
    def drawn(self):
        """Seconds from the navigation until everything could be seen; None before that."""
        said = self.js("return document.documentElement.dataset.drawn")
        return said and int(said) / 1000

    def js(self, body, *given):
        return self.browser.execute_script(body, *given)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        return self.browser.find_element("css selector", selector)

    def errors(self):
        return [line["message"] for line in self.browser.get_log("browser")]

    def ink(self):
        """How many pixels of each chart are drawn on."""
        return self.js("""return [...document.querySelectorAll(".plot canvas")].map((canvas) => {
            const all = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return all.data.filter((value, i) => i % 4 === 3 && value > 0).length;
        })""")

    def readouts(self):
        return [one.text for one in self.all(".readout")]

    def ranges(self):
        """The label of the first and of the last tick cannot be read from a canvas; the cursor's
        place can: what each chart shows at its left and right edge."""
        return self.js("""return [...document.querySelectorAll(".plot .u-over")].map((over) => {
            const box = over.getBoundingClientRect();
            return [1, box.width - 1].map((x) => {
                const at = { clientX: box.left + x, clientY: box.top + 20, bubbles: true };
                over.dispatchEvent(new MouseEvent("mouseenter", at));
                over.dispatchEvent(new MouseEvent("mousemove", at));
                return over.closest("figure").querySelector(".readout .position").textContent.trim();
            });
        })""")

    def settle(self):
        """Waits until what was asked for is drawn."""
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
        self.settle()


@pytest.fixture(scope="module")
def file(study, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html_page(collect_runs([study])), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, file):
    return Opened(browser, file)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_drawn_without_errors_and_without_scrolling_sideways(browser, file, width, dark, tmp_path):
    shown = Opened(browser, file, width, dark=dark)
    shown.settle()
    assert shown.js("return document.documentElement.scrollWidth") == width
    ink = shown.ink()
    assert len(ink) == 4
    assert min(ink) > 1000
    picture = browser.execute_cdp_cmd(
        "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True}
    )
    (tmp_path / f"{width}.png").write_bytes(base64.b64decode(picture["data"]))
    assert shown.errors() == []


def test_arms_can_be_taken_out_and_back(opened):
    buttons = opened.all(".arms button")
    assert [one.get_attribute("aria-pressed") for one in buttons] == ["true"] * 3
    before = opened.ink()
    assert "rewarm" in opened.readouts()[0]
    buttons[0].send_keys(Keys.SPACE)
    opened.settle()
    assert buttons[0].get_attribute("aria-pressed") == "false"
    assert all("rewarm" not in text for text in opened.readouts())
    assert opened.ink() != before
    for button in buttons[1:]:
        button.click()
    assert opened.one("figure .none").is_displayed()
    for button in buttons:
        button.click()
    opened.settle()
    assert opened.ink() == before
    assert opened.errors() == []


def test_axes_scales_and_smoothing(opened):
    whole = opened.ranges()
    assert whole[0] == ["0 tokens", "204.8k tokens"]
    opened.set("#x", "step")
    assert opened.ranges()[0] == ["step 0", "step 100"]
    before = opened.ink()
    opened.set("#log", True)
    assert opened.ranges()[0][0] != "step 0"
    assert opened.ink() != before
    opened.set("#log", False)
    loss = opened.readouts()[0]
    opened.set("#y", "perplexity")
    assert opened.one("figure h3").text.endswith("perplexity")
    assert opened.readouts()[0] != loss
    opened.set("#y", "loss")
    smooth = opened.ink()[2]
    opened.set("#smooth", "0")
    assert opened.ink()[2] != smooth
    opened.set("#seeds", False)
    assert opened.ink()[2] < smooth
    assert opened.errors() == []


def test_dragging_zooms_every_chart_and_reset_shows_all(opened):
    whole = opened.ranges()
    over = opened.one(".plot .u-over")
    ActionChains(opened.browser).move_to_element_with_offset(
        over, -80, 0
    ).click_and_hold().move_by_offset(120, 0).release().perform()
    opened.settle()
    zoomed = opened.ranges()
    assert all(a != b for a, b in zip(zoomed, whole, strict=True))
    assert opened.one("#reset").is_enabled()
    opened.one("#reset").click()
    opened.settle()
    assert opened.ranges() == whole
    opened.one("#in").click()
    opened.one("#later").click()
    opened.settle()
    assert opened.ranges() != whole
    opened.one("#earlier").click()
    opened.one("#out").click()
    opened.settle()
    assert opened.ranges() == whole
    assert opened.errors() == []


def test_a_keyboard_is_enough(opened):
    whole = opened.ranges()
    opened.all(".plot")[1].click()
    chart = opened.all(".plot")[1]
    chart.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    opened.settle()
    assert opened.readouts()[1].startswith("20.48k tokens")
    assert opened.all(".readout")[1].get_attribute("aria-live") == "polite"
    chart.send_keys("+")
    opened.settle()
    assert opened.ranges() != whole
    chart.send_keys(Keys.ESCAPE)
    opened.settle()
    assert opened.ranges() == whole
    assert opened.errors() == []


def test_values_are_a_table_too(opened):
    opened.one("details.values summary").click()
    opened.settle()
    rows = opened.all("details.values[open] tbody tr")
    assert len(rows) == 11
    assert rows[0].text.split()[:3] == ["0", "3.0000", "3.0000"]
    assert opened.errors() == []


def column(table, index):
    return [row.text for row in table.find_elements("css selector", f"td:nth-child({index})")]


def test_tables_sort(opened):
    table = opened.one("#runs table")
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
def test_tables_copy(opened, api):
    origin = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    opened.browser.execute_cdp_cmd("Browser.grantPermissions", origin)
    read = "navigator.clipboard.readText().then(arguments[0], (e) => arguments[0](String(e)))"
    if not api:
        opened.js("navigator.clipboard.writeText = () => Promise.reject(new Error('not here'))")
    copied = {}
    for button in opened.all("#summary .table:first-of-type .tools button"):
        button.click()
        opened.settle()
        copied[button.text] = opened.browser.execute_async_script(read).splitlines()
    evil = HOSTILE.replace("/", "∕")
    assert copied["CSV"][0] == "arm,runs,upstream loss,forgetting,downstream loss,adaptation"
    assert copied["CSV"][1] == "rewarm,2,3.5000,+0.5000,2.7707,+1.7293"
    assert copied["CSV"][3].startswith(evil)
    assert copied["Markdown"][1] == "| --- | --: | --: | --: | --: | --: |"
    assert copied["Markdown"][4].startswith("| \\<∕script\\>\\<img src=x")
    assert copied["LaTeX"][:2] == ["\\begin{tabular}{lrrrrr}", "\\toprule"]
    assert copied["LaTeX"][4] == "rewarm & 2 & 3.5000 & +0.5000 & 2.7707 & +1.7293 \\\\"
    assert copied["LaTeX"][6].startswith("$<$∕script$>$$<$img src=x")
    assert opened.errors() == []


def test_what_gets_in_cannot_run(opened):
    """Nothing that a name says has run; and what a mistake would let in, the policy stops."""
    sources = [image.get_attribute("src") for image in opened.all("img")]
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert HOSTILE in opened.one("#summary").text
    assert opened.errors() == []
    opened.js("""document.body.insertAdjacentHTML("beforeend",
        "<img src=x onerror='window.ran = 1'><style>body { color: red }</style>");
        const made = document.createElement("script");
        made.textContent = "window.ran = 2";
        document.body.append(made);""")
    opened.settle()
    assert opened.js("return window.ran") is None
    assert "Content Security Policy" in " ".join(opened.errors())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read(browser, file, dark):
    """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for lines."""
    shown = Opened(browser, file, dark=dark)
    low = shown.js("""
        const light = (color) => {
            const [r, g, b] = color.match(/[\\d.]+/g).map(Number)
                .map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const behind = (node) => {
            for (let one = node; one; one = one.parentElement) {
                const color = getComputedStyle(one).backgroundColor;
                if (!color.endsWith(", 0)")) return color;
            }
        };
        const contrast = (node) => {
            const style = getComputedStyle(node);
            const isText = node.closest("svg") && node.tagName === "text";
            const [a, b] = [isText ? style.fill : style.color, behind(node)].map(light);
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        };
        const wanted = [["h1, h2, h3, p, a, li, td, th, button, label, summary, span, text", 4.5],
                        [".swatch", 3]];
        return wanted.flatMap(([selector, least]) => [...document.querySelectorAll(selector)]
            .filter((node) => node.getClientRects().length && contrast(node) < least)
            .map((node) => `${node.tagName} ${node.textContent.slice(0, 20)} ${contrast(node)}`));
    """)
    assert low == []


def test_everything_has_a_name(opened):
    nameless = opened.js("""
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
    assert opened.js("return document.documentElement.lang") == "en"


def test_it_prints_in_light_colours_as_wide_as_the_paper(browser, file):
    shown = Opened(browser, file, dark=True)
    shown.js("dispatchEvent(new Event('beforeprint'))")
    assert shown.js("return getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    widths = shown.js(
        "return [...document.querySelectorAll('.uplot')].map((one) => one.offsetWidth)"
    )
    assert max(widths) <= 700
    shown.js("dispatchEvent(new Event('afterprint'))")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    assert shown.errors() == []


def test_nine_arms_of_ten_thousand_points_open_in_a_second(browser, tmp_path):
    for arm in range(9):
        write_run(tmp_path / "runs" / f"arm-{arm}", 10_000, peak=(arm + 1) * 1e-4, every=100)
    path = tmp_path / "nine.html"
    path.write_text(html_page(collect_runs([tmp_path / "runs"])), encoding="utf-8")
    seconds = []
    for _ in range(3):  # the machine may be busy with something else
        shown = Opened(browser, path)
        seconds.append(shown.drawn)
    print(f"{path.stat().st_size:,} bytes, drawn after {seconds} s")
    assert min(shown.ink()) > 1000
    assert min(seconds) < 1
    assert shown.errors() == []
