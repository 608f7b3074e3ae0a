"""Plots follow the page's colours: drawings on white paper are marked here, and custom.css inverts them in the dark.

What looks like a picture is left alone. Where that is wrong, as for plots with shaded bands, the cell's metadata says
so: ``mystnb: image: classes: plot``.
"""

import re
from pathlib import Path

import numpy as np
from PIL import Image

IMAGE = re.compile(r'<img(?![^>]*\bclass=)(?=[^>]*\bsrc="([^"]+\.png)")')
WHITE, BLOCK, FEW = 240, 24, 32


def is_plot(path: Path) -> bool:
    """Whether a PNG is mostly white and holds no picture, that is, no block without white and with many colours.

    A photograph or a map must keep its colours; inverted, it would show something else.
    """
    with Image.open(path) as image:
        colours = np.asarray(image.convert("RGB")).astype(int)
    if (colours.min(axis=2) > WHITE).mean() < 0.7:
        return False
    places = np.ndindex(*(size // BLOCK for size in colours.shape[:2]))
    blocks = (colours[BLOCK * y : BLOCK * (y + 1), BLOCK * x : BLOCK * (x + 1)] for y, x in places)
    solid = (block.reshape(-1, 3) for block in blocks if block.min(axis=2).max() <= WHITE)
    return all(len(np.unique(block, axis=0)) <= FEW for block in solid)


def mark_plots(app, error):
    if error is None and app.builder.format == "html":
        plots = {path.name for path in Path(app.outdir, "_images").glob("*.png") if is_plot(path)}
        for page in Path(app.outdir).rglob("*.html"):
            text = page.read_text("utf-8")
            new = IMAGE.sub(lambda found: '<img class="plot"' if Path(found[1]).name in plots else found[0], text)
            if new != text:
                page.write_text(new, encoding="utf-8")


def setup(app):
    app.connect("build-finished", mark_plots)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
