"""The built site: complete, without errors, self-contained, every link and picture in order. Needs ``make book``."""

import json
import os
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SITE = ROOT / "_build" / "html"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"]] + [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]
GENERATED = {"404", "index", "genindex", "py-modindex", "search"}  # by Sphinx, besides the pages
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}

each_page = pytest.mark.parametrize("name", PAGES)


@pytest.fixture(autouse=True)
def _built(request):
    if "site" in request.keywords and not SITE.is_dir():
        if os.environ.get("CI"):
            pytest.fail("there is no site: run make book first")
        pytest.skip("there is no site: run make book first")


class Page(HTMLParser):
    """Tags and ids of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.ids, self.tags = path, set(), []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        attributes = {key: value or "" for key, value in attrs}
        self.tags.append((tag, attributes))
        self.ids |= {attributes[key] for key in ("id", "name") if key in attributes}

    def find(self, *names: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@cache
def page(path: Path) -> Page:
    return Page(path)


def built(name: str) -> Page:
    return page(SITE / f"{name}.html")


def broken_links(found: Page, site: Path) -> list[str]:
    """Links within the site whose page or anchor does not exist."""
    broken = []
    for url in [tag.get("href") or tag.get("src") for tag in found.find("a", "link", "img", "script")]:
        parts = urlsplit(url or "")
        if parts.scheme or parts.netloc or not url:
            continue
        target = (found.path.parent / unquote(parts.path)).resolve() if parts.path else found.path
        if not target.is_file() or not target.is_relative_to(site.resolve()):
            broken.append(url)
        elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in page(target).ids:
            broken.append(url)
    return broken


def foreign(found: Page) -> list[str]:
    """What the page would load from another host."""
    urls = [attributes.get(LOADED[tag], "") for tag, attributes in found.tags if tag in LOADED]
    styles = re.findall(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s]+)", found.html)
    return [url for url in urls if urlsplit(url).netloc] + styles


def undescribed(found: Page) -> list[str]:
    """Images without a text alternative; Sphinx puts the file's name where there is none."""
    return [
        img.get("src", "")
        for img in found.find("img")
        if not img.get("alt", "").strip() or re.search(r"\.(png|svg|jpe?g|gif)$", img["alt"])
    ]


def uncaptioned(found: Page) -> list[str]:
    """Tables that do not begin with a caption."""
    return [start for start, after in re.findall(r"(<table\b[^>]*>)\s*(<\w+)", found.html) if after != "<caption"]


# The sources ---------------------------------------------------------------------------------------------------------


def test_the_contents_list_what_there_is_and_nothing_else():
    listed = {name.removeprefix("book/") for name in PAGES}
    written = {path.stem for path in (ROOT / "book").iterdir() if path.suffix in (".md", ".ipynb")}
    assert listed == written and len(PAGES) == len(listed)


def test_pins_are_exact_and_belong_to_the_package():
    pins = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pins = [line for line in pins if line]
    assert pins.pop() == "-e ." and all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins)
    project = (ROOT / "pyproject.toml").read_text()
    needed = re.findall(r'"([\w-]+)>=', project.split("dependencies = [")[1].split("]")[0])
    names = [line.split("==")[0] for line in pins]
    assert set(needed) <= set(names)
    assert all(len(set(listed)) == len(listed) for listed in (needed, names)), "something is listed twice"


def test_the_readme_links_to_what_there_is():
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert links and not [link for link in links if not (ROOT / link).exists()]


# The site ------------------------------------------------------------------------------------------------------------


@pytest.mark.site
def test_every_page_is_built_and_no_other():
    found = {path.relative_to(SITE).with_suffix("").as_posix() for path in SITE.rglob("*.html")}
    found = {name for name in found if not name.startswith(("_static/", "_modules/"))}
    assert found == set(PAGES) | GENERATED


@pytest.mark.site
@each_page
def test_a_page_shows_no_error(name):
    assert not re.search(r"Traceback \(most recent call last\)|\bWARNING\b|class=\"system-message", built(name).html)


@pytest.mark.site
@each_page
def test_a_page_loads_nothing_from_elsewhere(name):
    assert not foreign(built(name))


@pytest.mark.site
@each_page
def test_links_and_anchors_lead_somewhere(name):
    assert not broken_links(built(name), SITE)


@pytest.mark.site
@each_page
def test_every_image_is_described(name):
    assert not undescribed(built(name))


@pytest.mark.site
@each_page
def test_every_table_has_a_caption(name):
    assert not uncaptioned(built(name))


def test_a_bad_page_is_found(tmp_path):
    """The checks above fail where they should."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<h1 id="here">x</h1><a href="#here"></a><a href="#gone"></a><a href="other.html"></a><a href="https://a.org"></a>'
        '<img src="bad.html" alt="_images/x.png"><img src="bad.html" alt=""><img src="bad.html" alt="a map">'
        '<script src="//cdn.org/x.js"></script>'
        '<style>@import "https://b.org/x.css"; a {background: url(//c.org/y.png)}</style>'
        '<table class="a"><caption>Sizes</caption></table><table class="b">\n<thead></thead></table>'
    )
    found = page(bad)
    assert broken_links(found, tmp_path) == ["#gone", "other.html"]
    assert undescribed(found) == ["bad.html"] * 2
    assert uncaptioned(found) == ['<table class="b">']
    assert foreign(found) == ["//cdn.org/x.js", "https://b.org/x.css", "//c.org/y.png"]


def meta(found: Page) -> dict[str, str]:
    return {tag.get("name") or tag.get("property", ""): tag.get("content", "") for tag in found.find("meta")}


@pytest.mark.site
def test_each_page_has_a_description_of_its_own():
    said = [meta(built(name)).get("description", "") for name in PAGES]
    assert all(20 <= len(text) <= 210 for text in said) and len(set(said)) == len(said)
    assert all(meta(built(name))["og:title"] for name in PAGES)


@pytest.mark.site
def test_addresses_are_written_only_where_the_site_has_one():
    site = os.environ.get("ATBOOK_SITE")
    assert (SITE / "sitemap.xml").exists() == bool(site)
    for name in PAGES:
        canonical = [tag["href"] for tag in built(name).find("link") if tag.get("rel") == "canonical"]
        found = [*canonical, *(meta(built(name)).get(key) for key in ("og:url", "og:image"))]
        assert all(url.startswith(site) for url in found if url) if site else not any(found)


@pytest.mark.site
@pytest.mark.parametrize("name", [name for name in PAGES if (ROOT / f"{name}.ipynb").exists()])
def test_a_chapter_can_be_taken_away(name):
    links = [tag["href"] for tag in built(name).find("a") if tag.get("href", "").endswith(".zip")]
    assert links == [f"{name.removeprefix('book/')}.zip"]
    assert bool(re.search(r"(?i)mybinder|colab", built(name).html)) == bool(os.environ.get("ATBOOK_REPOSITORY"))


@pytest.mark.site
def test_the_first_page_says_how_to_cite():
    html = built(PAGES[0]).html
    text = re.sub(r"<[^>]*>", "", html)
    for key in ("@software{atbook", "@inproceedings{zagoruyko2017", "Zagoruyko, Sergey and Komodakis, Nikos"):
        assert key in text


@pytest.mark.parametrize("url", ["example.org/book", "file:///tmp", "https://"])
def test_a_wrong_address_is_refused(monkeypatch, url):
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    from atbook_meta import address
    from sphinx.errors import ConfigError

    monkeypatch.setenv("ATBOOK_SITE", url)
    with pytest.raises(ConfigError, match="ATBOOK_SITE is .* no web address: write it as https://"):
        address("ATBOOK_SITE")


def test_the_printed_book_is_tagged_and_outlined_and_has_every_chapter():
    path = ROOT / "_build" / "book.pdf"
    if not path.is_file():
        pytest.skip("there is no PDF: run make pdf first")
    from pypdf import PdfReader
    from test_pdf import alternatives

    printed = PdfReader(path)
    root = printed.trailer["/Root"]
    assert root["/MarkInfo"]["/Marked"] and "/StructTreeRoot" in root

    def titles(entries):
        for entry in entries:
            yield from titles(entry) if isinstance(entry, list) else [entry.title]

    found, figures = list(titles(printed.outline)), {" ".join(text.split()) for text in alternatives(printed)}
    assert not [title for title in found if re.fullmatch(r"([\d.]+ )?\1?(.+?)\2", title)]  # Chromium doubles some
    for name in PAGES:
        if (ROOT / f"{name}.ipynb").exists():
            cells = json.loads((ROOT / f"{name}.ipynb").read_text())["cells"]
            text = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
            assert any(title.endswith(re.search(r"(?m)^# (.+)$", text)[1]) for title in found), name
            said = [cell["metadata"].get("mystnb", {}).get("image", {}).get("alt") for cell in cells]
            assert {" ".join(text.split()) for text in said if text} <= figures, name
    print(f"\n{len(printed.pages)} pages, {path.stat().st_size / 1e6:.1f} MB")


@pytest.mark.site
def test_every_public_name_says_which_chapter_explains_it():
    html = (SITE / "book" / "api.html").read_text()
    entries = re.split(r'<dt class="sig[^>]*id="(atbook\.\w+\.\w+)"', html)[1:]
    names, texts = entries[::2], entries[1::2]
    assert "atbook.losses.attention_transfer" in names
    silent = [name for name, text in zip(names, texts, strict=True) if "Chapters:" not in text]
    assert not silent, f"no chapter imports or links: {silent}"


@pytest.mark.site
@pytest.mark.parametrize("name", [name for name in PAGES if (ROOT / f"{name}.ipynb").exists()])
def test_a_name_of_the_package_leads_to_its_page(name):
    """Each function and class that a chapter imports is a link, at the latest in the list at its end."""
    cells = json.loads((ROOT / f"{name}.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    imports = re.findall(r"(?m)^from (atbook\.\w+) import (\([^)]*\)|.*)", code)
    used = {f"{module}.{short}" for module, names in imports for short in re.findall(r"\w+", names)}
    used = {full for full in used if not (ROOT / full.replace(".", "/")).with_suffix(".py").exists()}  # no modules
    linked = {unquote(urlsplit(tag.get("href", "")).fragment) for tag in built(name).find("a")}
    constants = {full for full in used if full.rpartition(".")[2].isupper()} | {"atbook.compat.torchvision"}
    assert used and not used - linked - constants
