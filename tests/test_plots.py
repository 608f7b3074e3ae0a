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
