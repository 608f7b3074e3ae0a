"""Prints the whole book, built as one page, into one tagged and outlined PDF, through Chromium: ``make pdf``."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
READY = """async () => {
    document.querySelectorAll("details").forEach(folded => { folded.open = true; });
    const pictures = [...document.images];
    pictures.forEach(picture => { picture.loading = "eager"; });
    if (window.MathJax) { await MathJax.startup.promise; }
    await Promise.all(pictures.map(picture => picture.decode().catch(() => null)));
    return pictures.filter(picture => picture.src && !picture.naturalWidth).map(picture => picture.src);
}"""
FOOTER = '<div style="font-size: 8px; width: 100%; text-align: center"><span class="pageNumber"></span></div>'


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
        made = page.pdf(**look, display_header_footer=True, header_template="<span></span>", footer_template=FOOTER)
    target.write_bytes(made)
    print(f"{target}: {len(made) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
