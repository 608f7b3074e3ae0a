import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from atbook.mechanisms.spatial_transformer import SpatialTransformer, affine_grid, attention, sample


def test_attention_scales_and_moves():
    A = attention(0.5, torch.tensor([[0.1, -0.2], [0.3, 0.0]]))
    torch.testing.assert_close(A[0], torch.tensor([[0.5, 0.0, 0.1], [0.0, 0.5, -0.2]]))
    torch.testing.assert_close(A[1], torch.tensor([[0.5, 0.0, 0.3], [0.0, 0.5, 0.0]]))


def test_the_identity_gives_the_input_back():
    U = torch.rand(2, 3, 5, 7)
    A = attention(1.0, torch.zeros(2, 2))
    torch.testing.assert_close(sample(U, affine_grid(A, 5, 7)), U)


@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, 1), (-3, 2)])
def test_a_translation_by_whole_pixels_is_a_shift_and_zero_comes_in(right, down):
    U = torch.rand(1, 2, 6, 8)
    A = attention(1.0, torch.tensor([[2 * right / 8, 2 * down / 6]]))
    V = sample(U, affine_grid(A, 6, 8))
    for i in range(6):
        for j in range(8):
            inside = 0 <= i + down < 6 and 0 <= j + right < 8
            expected = U[0, :, i + down, j + right] if inside else torch.zeros(2)
            torch.testing.assert_close(V[0, :, i, j], expected)


def test_half_the_scale_is_a_crop_and_the_whole_on_half_as_many_pixels_is_a_mean():
    U = torch.rand(1, 1, 32, 32)
    t = torch.tensor([[(9 + 8) / 16 - 1, (3 + 8) / 16 - 1]])  # 16x16 pixels from column 9 and row 3
    torch.testing.assert_close(sample(U, affine_grid(attention(0.5, t), 16, 16)), U[:, :, 3:19, 9:25])
    whole = sample(U, affine_grid(attention(1.0, torch.zeros(1, 2)), 16, 16))
    torch.testing.assert_close(whole, F.avg_pool2d(U, 2))


def test_one_pixel_by_the_four_around_it():
    torch.manual_seed(0)
    U, A = torch.rand(1, 1, 6, 8), torch.tensor([[[0.6, 0.2, 0.1], [-0.3, 0.7, -0.05]]])
    i, j, h, w = 1, 3, 4, 5  # of an output of 4x5 pixels
    x_t, y_t = (2 * j + 1) / w - 1, (2 * i + 1) / h - 1
    x_s, y_s = 0.6 * x_t + 0.2 * y_t + 0.1, -0.3 * x_t + 0.7 * y_t - 0.05
    x, y = (x_s + 1) * 8 / 2 - 0.5, (y_s + 1) * 6 / 2 - 0.5
    left, top = math.floor(x), math.floor(y)
    a, b = x - left, y - top
    assert 0.1 < a < 0.9 and 0.1 < b < 0.9
    (p, q), (r, s) = U[0, 0, top : top + 2, left : left + 2].tolist()
    expected = (1 - b) * ((1 - a) * p + a * q) + b * ((1 - a) * r + a * s)
    assert sample(U, affine_grid(A, h, w))[0, 0, i, j].item() == pytest.approx(expected, rel=1e-4)


def test_any_points_also_outside_as_pytorch_samples_them():
    torch.manual_seed(0)
    U, A = torch.rand(3, 2, 6, 8), torch.randn(3, 2, 3)
    points = affine_grid(A, 5, 4)
    torch.testing.assert_close(points, F.affine_grid(A, [3, 2, 5, 4], align_corners=False))
    torch.testing.assert_close(sample(U, points), F.grid_sample(U, points, align_corners=False), atol=1e-5, rtol=1e-5)


def slope(U, t):
    """Of the mean brightness of a window of half the scale, when it is moved."""
    t = torch.tensor([t], requires_grad=True)
    sample(U, affine_grid(attention(0.5, t), 4, 4)).mean().backward()
    return t.grad[0].tolist()


def test_a_loss_on_the_output_moves_the_window_also_from_whole_pixels():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)  # brighter to the right, equal from top to bottom
    assert slope(ramp, [0.05, 0.05]) == pytest.approx([4.0, 0.0], abs=1e-5)  # one unit of x is 4 pixels
    assert slope(ramp, [0.0, 0.0]) == pytest.approx([8.0, 0.0], abs=1e-5)  # both neighbours


def test_a_window_that_has_lost_its_object_gets_no_gradient():
    U = torch.zeros(1, 1, 8, 8)
    U[..., 7] = 1.0
    assert slope(U, [0.05, 0.05]) == [0.0, 0.0]
    assert slope(U, [0.45, 0.05])[0] > 0


def test_the_module_samples_where_its_localisation_says():
    class Fixed(nn.Module):
        def forward(self, U):
            return attention(0.5, torch.full((len(U), 2), 0.25))

    U = torch.rand(2, 1, 8, 8)
    V, A = SpatialTransformer(Fixed(), size=4)(U)
    torch.testing.assert_close(A, attention(0.5, torch.tensor([[0.25, 0.25]] * 2)))
    torch.testing.assert_close(V, U[:, :, 3:7, 3:7])
