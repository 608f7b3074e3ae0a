"""The printed book, tried on a small page: tagged, outlined, and nothing written where something is missing."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from pypdf import PdfReader

TOOL = Path(__file__).parent.parent / "book" / "_tools" / "pdf.py"
HEADINGS = ["A title of two lines", "1. First", "2. Second", "Folded"]
PAGE = """<html lang="en"><head><title>Book</title><style>h2 { break-before: page }</style></head><body>
<h1>A title<br> of two lines</h1><h2>1. First<a class="headerlink" href="#">#</a></h2><img src="a.png" alt="a map">
<h2>2. <i>Second</i></h2><details><summary>more</summary><h3>Folded</h3></details><h4 hidden>Gone</h4></body></html>"""


def printed(folder: Path, page: str, **environment) -> subprocess.CompletedProcess:
    plt.imsave(folder / "a.png", np.zeros((8, 8, 3)))
    (folder / "index.html").write_text(page)
    command = [sys.executable, str(TOOL), "index.html", "book.pdf"]
    return subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)


def alternatives(pdf: PdfReader) -> set[str]:
    """What the figures of a tagged PDF say to those who cannot see them."""
    held = (pdf.get_object(number) for number in range(1, int(pdf.trailer["/Size"])))
    figures = (one for one in held if isinstance(one, dict) and one.get("/S") == "/Figure")
    return {str(one["/Alt"]) for one in figures if "/Alt" in one}


def test_a_page_is_printed_with_tags_outline_and_figures(browser, tmp_path):
    done = printed(tmp_path, PAGE)
    assert (done.returncode, done.stderr) == (0, "") and "book.pdf: " in done.stdout
    pdf = PdfReader(tmp_path / "book.pdf")

    def titles(entries):
        return [title for one in entries for title in (titles(one) if isinstance(one, list) else [one.title])]

    assert titles(pdf.outline) == HEADINGS
    root = pdf.trailer["/Root"]
    assert root["/MarkInfo"]["/Marked"] and "/StructTreeRoot" in root and root["/Lang"] == "en"
    assert alternatives(pdf) == {"a map"} and len(pdf.pages) == 3


@pytest.mark.parametrize(
    ("wrong", "said"), [("gone.png", "pictures missing"), ("https://localhost:1/a.png", "other hosts asked")]
)
def test_what_is_missing_stops_the_printing(browser, tmp_path, wrong, said):
    done = printed(tmp_path, PAGE.replace("a.png", wrong))
    assert done.returncode == 1 and said in done.stderr and wrong in done.stderr
    assert not (tmp_path / "book.pdf").exists()


def test_without_a_browser_it_says_what_to_install(tmp_path):
    done = printed(tmp_path, PAGE, PATH="")
    assert done.returncode == 1 and "install it (Debian: chromium)" in done.stderr
    assert not (tmp_path / "book.pdf").exists()
