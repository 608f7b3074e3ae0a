import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from atbook.plots import COLOURS, show_curves, show_maps
from atbook.runs import Run


def test_maps_have_a_row_a_kind_and_peak_at_their_peak():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    Q = torch.zeros(2, 8, 8)
    Q[0, 2, 5] = Q[1, 7, 0] = 0.1
    figure = show_maps(images, {"teacher": Q, "student": Q}, titles=["star", "ring"])
    assert len(figure.axes) == 3 * 2
    assert [axis.get_ylabel() for axis in figure.axes[::2]] == ["image", "teacher", "student"]
    assert tuple(figure.get_size_inches()) == pytest.approx((2 * 1.3, 3 * 1.3))
    drawn = figure.axes[2].images[1].get_array()
    assert np.unravel_index(drawn.argmax(), drawn.shape) == (2, 5) and drawn.max() == pytest.approx(1)


def test_wide_pictures_make_low_rows():
    figure = show_maps(torch.zeros(1, 3, 8, 16, dtype=torch.uint8), {}, size=2)
    assert tuple(figure.get_size_inches()) == (2, 1)


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="row 'teacher' has 1 maps for 2 images"):
        show_maps(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), {"teacher": torch.zeros(1, 8, 8)})


def test_curves_draw_the_history():
    rows = [{"epoch": 1, "test_error": 50.0}, {"epoch": 2, "test_error": 40.0}]
    run = Run.model_construct(history=rows)
    axis = show_curves({"student": run}).axes[0]
    (line,) = axis.lines
    assert line.get_ydata().tolist() == [50, 40] and line.get_label() == "student" and line.get_color() == COLOURS[0]


# What people see who lack one kind of cone, in linear RGB: Machado, Oliveira and Fernandes (2009), severity 1.
SIGHT = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}


def lab(colours, sight):
    """CIE L*a*b* of hexadecimal colours, as seen."""
    rgb = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(SIGHT[sight]).T, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    f = np.cbrt(seen @ np.array(to_xyz).T / [0.9505, 1, 1.089])
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def nearest(colours, sight):
    seen = lab(colours, sight)
    return min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("sight", SIGHT)
def test_readers_can_tell_the_colours_of_lines_apart(sight):
    assert nearest(COLOURS, sight) > 15  # about 2 can just be told apart side by side
    assert nearest(("#d62728", "#2ca02c", "#8c564b"), "deuteranopia") < 10  # a red, a green and a brown cannot


def in_the_dark(colours):
    """What custom.css makes of plots: inverted, the hue turned by half, and lifted (Filter Effects Module 1)."""
    css = (Path(__file__).parent.parent / "book" / "_static" / "custom.css").read_text()
    found = re.search(r"img\.plot { filter: invert\((.\d+)\) hue-rotate\(180deg\) brightness\((\d.\d+)\); }", css)
    share, lifted = map(float, found.groups())
    luminance = np.array([0.213, 0.715, 0.072])
    rgb = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours])
    inverted = share + rgb * (1 - 2 * share)
    turned = np.clip(2 * (inverted @ luminance)[:, None] - inverted, 0, 1)
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in np.clip(lifted * turned, 0, 1)]


def test_plots_in_the_dark_stand_on_the_page_and_keep_their_colours_apart():
    white, black, *lines = in_the_dark(("#ffffff", "#000000", *COLOURS))
    assert (white, black) == ("#121212", "#ffffff")  # the theme's dark ground; light text
    assert all(nearest(lines, sight) > 15 for sight in SIGHT)
    ground = lab([white], "usual")[0, 0]
    assert all(lightness - ground > 50 for lightness in lab(lines, "usual")[:, 0])
