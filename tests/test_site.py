"""The built site in a real browser: self-contained, without errors, for phones, keyboards and screen readers."""

import functools
import http.server
import os
import re
import threading
from base64 import b64encode
from hashlib import sha256

import pytest
from axe_playwright_python.sync_playwright import Axe
from test_book import PAGES, SITE

pytestmark = pytest.mark.site
each_page = pytest.mark.parametrize("name", PAGES)
LABS = {"index": "transfer",
        "04-mapping-functions": "explorer", "06-attention-transfer": "loss", "07-knowledge-distillation": "temperature",
        "11-cifar-wrn": "runs"}  # fmt: skip
TERMS = (
    "temperature",
    "f_sum",
    "hint",
    "Grad-CAM",
    "calibration",
    "normalize",
    "one-cycle",
    "receipt",
    "min-l2",
    "seed",
)


def policy() -> str:
    """``default-src 'self'`` and what the site needs besides.

    Styles within the page: of tables by pandas, of formulas by MathJax. Pictures within the page: icons of the theme.
    Scripts within the page: those of the theme and of Sphinx, by their hash.
    """
    inline = set()
    for path in SITE.rglob("*.html"):
        for kind, body in re.findall(r"<script([^>]*)>(.*?)</script>", path.read_text("utf-8"), re.S):
            if body and "application/json" not in kind:
                inline.add(b64encode(sha256(body.encode()).digest()).decode())
    hashes = " ".join(f"'sha256-{value}'" for value in sorted(inline))
    return f"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; script-src 'self' {hashes}"


@pytest.fixture(scope="module")
def address():
    """The site, served under that policy."""
    if not SITE.is_dir():
        pytest.skip("there is no site: run make book first")
    allowed = policy()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self):
            self.send_header("Content-Security-Policy", allowed)
            super().end_headers()

        def log_message(self, *_):
            pass

        def send_error(self, code, message=None, explain=None):  # as hosts of pages do
            self.send_response(code)
            self.end_headers()
            self.wfile.write((SITE / "404.html").read_bytes())

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def visit(browser, address):
    """Opens a page and notes what it asks for and what it complains of."""
    contexts = []

    def opened(name: str, width: int = 1280, scheme: str = "light", base: str = address, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.asked, page.said = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("response", lambda answer: answer.ok or page.said.append(f"{answer.status} {answer.url}"))
        page.on("console", lambda said: said.type in ("error", "warning") and page.said.append(said.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.goto(f"{base}/{name}", wait_until="load")
        page.wait_for_load_state("networkidle")
        return page

    yield opened
    for context in contexts:
        context.close()


@each_page
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_a_page_asks_nobody_else_says_nothing_wrong_and_fits(visit, address, name, width, scheme):
    page = visit(f"{name}.html", width, scheme)
    assert [url for url in page.asked if not url.startswith((address, "data:", "blob:"))] == []
    assert page.said == []
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 1, f"the page can be scrolled sideways by {wide} pixels"


def test_plots_follow_the_page_and_can_be_read_on_a_phone(visit):
    for scheme, filtered in ("light", "none"), ("dark", "invert(0.948) hue-rotate(180deg) brightness(1.35)"):
        plot = visit("book/04-mapping-functions.html", 390, scheme).locator("figure img.plot").first
        assert plot.evaluate("img => getComputedStyle(img).filter") == filtered
        assert plot.bounding_box()["width"] > 500  # it scrolls in its figure, which the keyboard reaches
        assert plot.locator("xpath=..").get_attribute("tabindex") == "0"


@each_page
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(visit, name, scheme):
    found = Axe().run(visit(f"{name}.html", scheme=scheme))
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("name", LABS)
def test_figures_come_alive_and_stand_still_without_javascript(visit, name):
    lab = visit(f"book/{name}.html").locator(f".atbook-lab[data-lab={LABS[name]}]")
    figure = lab.locator("xpath=ancestor::figure")
    assert figure.locator("figcaption").is_visible() and not figure.locator("img").is_visible()
    still = visit(f"book/{name}.html", java_script_enabled=False)
    assert still.locator(f"#{lab.get_attribute('data-figure')} img").is_visible()


def test_without_javascript_a_page_is_whole_and_says_what_is_missing(visit):
    page = visit("book/04-mapping-functions.html", java_script_enabled=False)
    assert page.locator("noscript p", has_text="runs no JavaScript here").is_visible()
    assert page.locator("html[data-theme=light]").count() == 1  # else it has no colours at all
    assert page.locator("figure img").last.is_visible() and page.locator("#sources, #exercises").last.is_visible()
    assert visit("search.html", java_script_enabled=False).locator("noscript .admonition").is_visible()


@pytest.mark.parametrize("name", ["book/04-mapping-functions", "book/index"])
def test_a_page_works_as_a_file(visit, name):
    page = visit(f"{name}.html", base=SITE.as_uri())
    assert [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.said == []
    assert page.locator(".atbook-lab canvas").count() == 3


@pytest.mark.skipif("ATBOOK_SITE" in os.environ, reason="the page is made for another place")
@pytest.mark.parametrize("name", ["gone.html", "book/a/b/gone.html"])
def test_what_is_missing_is_said_with_a_way_back(visit, address, name):
    page = visit(name)
    assert page.said and all(said.startswith("404") or "404" in said for said in page.said)  # of the page itself alone
    assert len([said for said in page.said if said.startswith("404")]) == 1
    page.get_by_role("link", name="the first page").click()
    assert page.url == f"{address}/book/index.html"


def test_three_doors_stand_on_the_first_screen(visit):
    page = visit("book/index.html")
    for name in ("Read", "Run", "Rerun"):
        box = page.locator(".sd-card-title", has_text=re.compile(rf"^\s*{name}\s*$")).bounding_box()
        assert box["y"] + box["height"] < 900


@pytest.mark.parametrize("term", TERMS)
def test_the_search_finds(visit, term):
    page = visit(f"search.html?q={term}")
    page.wait_for_selector("#search-results li", timeout=10_000)


def test_the_keyboard_reaches_the_text_first(visit):
    page = visit("book/04-mapping-functions.html")
    page.keyboard.press("Tab")
    assert "skip" in page.evaluate("document.activeElement.textContent").lower()
    page.get_by_label("p", exact=True).focus()
    before = page.locator(".atbook-lab output").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator(".atbook-lab output").inner_text() != before


def test_weights_and_paint_times_are_printed(visit, capsys):
    watch = """new Promise(done => new PerformanceObserver(list => done(list.getEntries().at(-1).startTime))
        .observe({type: "largest-contentful-paint", buffered: true}))"""
    rows = []
    for name in PAGES:
        page = visit(f"{name}.html")
        weight = sum(len(page.request.get(url).body()) for url in set(page.asked) if url.startswith("http"))
        rows.append((name, weight / 2**20, page.evaluate(watch)))
    with capsys.disabled():
        print("\npage                                weight   largest paint")
        for name, weight, paint in rows:
            print(f"{name:<34} {weight:5.1f} MiB  {paint:8.0f} ms")
    assert max(weight for _, weight, _ in rows) < 8
