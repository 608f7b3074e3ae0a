"""Prints the whole book, built as one page, into one tagged and outlined PDF, through Chromium: ``make pdf``."""

import io
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import Destination, NameObject, TextStringObject

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
READY = """async () => {
    document.querySelectorAll("details").forEach(folded => { folded.open = true; });
    const pictures = [...document.images];
    pictures.forEach(picture => { picture.loading = "eager"; });
    if (window.MathJax) { await MathJax.startup.promise; }
    await Promise.all(pictures.map(picture => picture.decode().catch(() => null)));
    return pictures.filter(picture => picture.src && !picture.naturalWidth).map(picture => picture.src);
}"""
HEADINGS = """() => [...document.querySelectorAll(":is(h1,h2,h3,h4,h5,h6,[role=heading])")]
    .filter(it => it.checkVisibility()).map(one => {
    const copy = one.cloneNode(true);
    copy.querySelectorAll(".headerlink").forEach(link => link.remove());
    return copy.textContent.trim().replace(/\\s+/g, " ");
})"""
FOOTER = '<div style="font-size: 8px; width: 100%; text-align: center"><span class="pageNumber"></span></div>'


def named(made: bytes, headings: list[str]) -> bytes:
    """The PDF with the page's headings in its outline: Chromium doubles those that begin a sheet, and joins lines.

    Raises:
        ValueError: if the outline has not one entry for each heading.
    """
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it adds objects of its own, and then warns of their number
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(made)))
    entries = list(flat(writer.outline))
    if len(entries) != len(headings):
        raise ValueError(f"the outline has {len(entries)} entries for {len(headings)} headings")
    for entry, heading in zip(entries, headings, strict=True):
        entry.node[NameObject("/Title")] = TextStringObject(heading)
    written = io.BytesIO()
    writer.write(written)
    return written.getvalue()


def flat(outline: list) -> Iterator[Destination]:
    for entry in outline:
        yield from flat(entry) if isinstance(entry, list) else [entry]


def main(source: Path, target: Path) -> int:
    """Print ``source``; returns 1, and writes nothing, if a picture is missing or the page asks another host."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print("make pdf prints with Chromium, and there is none here: install it (Debian: chromium)", file=sys.stderr)
        return 1
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"]).new_page()
        page.set_default_timeout(300_000)
        foreign = []
        page.on("request", lambda sent: sent.url.startswith(("file:", "data:", "blob:")) or foreign.append(sent.url))
        page.route("**/labs.js*", lambda route: route.abort())  # on paper, figures stand still
        page.emulate_media(media="print", color_scheme="light")
        page.goto(source.resolve().as_uri(), wait_until="load")
        missing = page.evaluate(READY)
        if missing or foreign:
            print(f"no PDF: pictures missing {missing}, other hosts asked {foreign}", file=sys.stderr)
            return 1
        margin = dict.fromkeys(("top", "bottom"), "16mm") | dict.fromkeys(("left", "right"), "14mm")
        look = {"format": "A4", "margin": margin, "print_background": True, "outline": True, "tagged": True}
        headings = page.evaluate(HEADINGS)
        made = page.pdf(**look, display_header_footer=True, header_template="<span></span>", footer_template=FOOTER)
    made = named(made, headings)
    target.write_bytes(made)
    print(f"{target}: {len(made) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
