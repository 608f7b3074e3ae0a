import math

import pytest
import torch

from atbook.mechanisms import racnn
from atbook.mechanisms.racnn import AttentionProposal, boxcar, rank_loss, zoom


def test_mask_is_the_papers_equation_coded_anew():
    t_x, t_y, t_l = 5.3, 7.1, 2.6
    mask = boxcar(torch.tensor([[t_x, t_y, t_l]]), 12)
    assert mask.shape == (1, 12, 12)

    def h(x):
        return 1 / (1 + math.exp(-racnn.K * x))

    for row in range(12):
        for column in range(12):
            x, y = column + 0.5, row + 0.5
            across = h(x - (t_x - t_l)) - h(x - (t_x + t_l))
            down = h(y - (t_y - t_l)) - h(y - (t_y + t_l))
            assert mask[0, row, column].item() == pytest.approx(across * down, abs=1e-5)


def test_a_steep_mask_is_a_box(monkeypatch):
    monkeypatch.setattr(racnn, "K", 200.0)
    box = torch.zeros(10, 10)
    box[2:6, 3:7] = 1
    torch.testing.assert_close(boxcar(torch.tensor([[5.0, 4.0, 2.0]]), 10)[0], box)


def test_zoom_enlarges_what_is_in_the_square(monkeypatch):
    monkeypatch.setattr(racnn, "K", 200.0)
    images = torch.rand(2, 3, 16, 16)
    squares = torch.tensor([[6.0, 10.0, 4.0], [4.0, 5.0, 3.0]])
    torch.testing.assert_close(zoom(images, squares[:1].expand(2, 3), 8), images[:, :, 6:14, 2:10])
    part = torch.nn.functional.interpolate(images[1:, :, 2:8, 1:7], scale_factor=3, mode="bilinear")
    inner = slice(2, -2)  # beyond, the pixels next to the square are mixed in, which the mask has made black
    torch.testing.assert_close(zoom(images[1:], squares[1:], 18)[..., inner, inner], part[..., inner, inner])


def test_gradient_points_to_what_is_at_the_edge():
    image = torch.zeros(1, 1, 16, 16)
    image[:, :, 7:9, 11] = 1.0  # half in the square, whose right edge is at 11.5
    t = torch.tensor([[8.0, 8.0, 3.5]], requires_grad=True)
    zoom(image, t, 16).sum().backward()
    assert t.grad[0, 0] > 0.01 and t.grad[0, 2] > 0.01 and abs(t.grad[0, 1]) < 1e-4


def test_rank_loss_is_zero_when_ordered_by_the_margin():
    coarse, fine = torch.tensor([0.1, 0.5, 0.5, 0.9]), torch.tensor([0.2, 0.55, 0.5, 0.2])
    assert rank_loss(coarse[:2], fine[:2]).item() == pytest.approx(0, abs=1e-6)
    assert rank_loss(coarse, fine).item() == pytest.approx((0 + 0 + 0.05 + 0.75) / 4)


def test_rank_loss_has_no_gradient_when_ordered():
    fine = torch.tensor([0.9, 0.3], requires_grad=True)
    rank_loss(torch.tensor([0.5, 0.5]), fine).backward()
    assert fine.grad.tolist() == [0.0, -0.5]


def test_squares_lie_within_the_image():
    torch.manual_seed(0)
    proposal = AttentionProposal(8, 32, 5, 12)
    proposal.layers[2].weight.data *= 20
    t = proposal(100 * torch.randn(500, 8))
    assert t.shape == (500, 3) and 5 <= t[:, 2].min() < 6 and 11 < t[:, 2].max() <= 12
    low, high = t[:, :2] - t[:, 2:], t[:, :2] + t[:, 2:]
    assert -1e-4 <= low.min() < 1 and 31 < high.max() <= 32 + 1e-4


@pytest.mark.parametrize("bounds", [(0, 5), (6, 5), (5, 17)])
def test_bounds_that_cannot_be_are_refused(bounds):
    with pytest.raises(ValueError, match="16.0"):
        AttentionProposal(8, 32, *bounds)
