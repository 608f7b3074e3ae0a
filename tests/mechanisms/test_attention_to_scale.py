import pytest
import torch
from torch import nn
from torch.nn import functional as F

from atbook.mechanisms.attention_to_scale import AttentionToScale, resize


def model(scales=(1.0, 0.5), zeroed=False):
    torch.manual_seed(0)
    made = AttentionToScale(nn.Conv2d(2, 3, 3, padding=1), channels=3, classes=4, scales=scales, hidden=5)
    if not zeroed:
        made.h[-1].reset_parameters()
    return made


def test_merged_scores_are_the_papers_equations_coded_anew():
    net, x = model(), torch.randn(2, 2, 8, 8)
    f1 = net.features(x)
    f2 = net.features(F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True))
    up = [f1, F.interpolate(f2, scale_factor=2, mode="bilinear")]
    p1 = net.score(f1)
    p2 = F.interpolate(net.score(f2), scale_factor=2, mode="bilinear")
    h = net.h[2](F.conv2d(torch.cat(up, dim=1), net.h[0].weight, net.h[0].bias, padding=1).clamp(min=0))
    w1 = torch.exp(h[:, 0]) / (torch.exp(h[:, 0]) + torch.exp(h[:, 1]))
    for n in range(2):
        for c in range(4):
            torch.testing.assert_close(net(x)[n, c], w1[n] * p1[n, c] + (1 - w1[n]) * p2[n, c])


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5), (1.0, 0.75, 0.25)])
def test_shapes_and_weights_that_sum_to_one(scales):
    net, x = model(scales), torch.randn(2, 2, 8, 12)
    p, w = net.scores_and_weights(x)
    assert p.shape == (2, len(scales), 4, 8, 12) and w.shape == (2, len(scales), 8, 12)
    assert net(x).shape == (2, 4, 8, 12)
    assert 0 < w.min()
    torch.testing.assert_close(w.sum(dim=1), torch.ones(2, 8, 12))


def test_training_starts_from_the_mean_of_the_scales_and_can_leave_it():
    net, x = model(zeroed=True), torch.randn(2, 2, 8, 8)
    p, w = net.scores_and_weights(x)
    assert (w == 0.5).all()
    torch.testing.assert_close(net(x), p.mean(dim=1))
    net(x).square().sum().backward()
    assert net.h[-1].weight.grad.abs().min() > 0 and (net.h[0].weight.grad == 0).all()


def test_all_scales_share_their_layers():
    one, two = model((1.0,)), model((1.0, 0.5))
    for part in ("features", "score"):
        assert [p.shape for p in getattr(one, part).parameters()] == [p.shape for p in getattr(two, part).parameters()]
    # At a single scale the weight is 1 whatever the head says, and g is the network's own score.
    net, x = model((1.0,)), torch.randn(1, 2, 8, 8)
    torch.testing.assert_close(net(x), net.score(net.features(x)))


def test_shrinking_blurs_so_that_thin_lines_leave_a_trace():
    x = torch.zeros(1, 1, 16, 16)
    x[..., 8] = 1
    # Four rows of cells, each of which is a quarter as bright in all as the line's four pixels there; a plain pick of
    # pixels would give 4 or 0.
    assert resize(x, (4, 4)).sum() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(resize(x, (16, 16)), x)
