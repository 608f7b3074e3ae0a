"""Which pictures of the site are plots, and so may be inverted on a dark page."""

import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "book" / "_ext"))
from atbook_plots import is_plot, mark_plots

BOOK = Path(__file__).parent.parent / "book"


def line(axis):
    axis.plot([0, 1, 4, 9])


def bars(axis):
    axis.bar(range(5), range(5))


def noise(axis):
    axis.imshow(np.random.default_rng(0).random((64, 64)), cmap="inferno")


@pytest.mark.parametrize(
    ("panels", "plot"), [([line], True), ([line, bars], True), ([noise], False), ([line, line, noise], False)]
)
def test_a_figure_with_a_picture_in_it_is_no_plot(tmp_path, panels, plot):
    figure, axes = plt.subplots(1, len(panels), squeeze=False)
    for draw, axis in zip(panels, axes[0], strict=True):
        draw(axis)
    figure.savefig(tmp_path / "x.png")
    plt.close(figure)
    assert is_plot(tmp_path / "x.png") == plot


def test_only_plots_are_marked_and_only_once(tmp_path):
    (tmp_path / "_images").mkdir()
    plt.imsave(tmp_path / "_images" / "plot.png", np.ones((50, 50, 3)))
    plt.imsave(tmp_path / "_images" / "map.png", np.zeros((50, 50, 3)))
    page, app = tmp_path / "a.html", SimpleNamespace(outdir=tmp_path, builder=SimpleNamespace(format="html"))
    page.write_text('<img alt="a" src="../_images/plot.png"><img alt="b" src="../_images/map.png">')
    mark_plots(app, None)
    mark_plots(app, None)
    assert page.read_text() == (
        '<img class="plot" alt="a" src="../_images/plot.png"><img alt="b" src="../_images/map.png">'
    )


def test_what_an_author_calls_a_plot_is_one_and_is_no_picture():
    chapters = [nbformat.read(path, 4) for path in sorted(BOOK.glob("[0-9]*.ipynb"))]
    cells = [cell for nb in chapters for cell in nb.cells]
    called = [cell for cell in cells if cell.metadata.get("mystnb", {}).get("image", {}).get("classes")]
    assert called and all("fill_between" in cell.source and "imshow" not in cell.source for cell in called)
