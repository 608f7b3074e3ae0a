import pytest
import torch
from torch import nn
from torch.nn import functional as F

from atbook.mechanisms.hourglass import Hourglass, Residual, StackedHourglass


class Times(nn.Module):
    """Stands in for a layer whose output is to be known."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def test_a_residual_module_is_batch_norm_relu_and_convolution_thrice_beside_the_identity():
    torch.manual_seed(0)
    module, x = Residual(6).eval(), torch.randn(2, 6, 5, 5)
    made = x
    for norm, convolution in zip(module.f[0::3], module.f[2::3], strict=True):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        mean, var = norm.running_mean[:, None, None], norm.running_var[:, None, None]
        made = ((made - mean) / (var + 1e-5).sqrt()).clamp(min=0)
        made = F.conv2d(made, convolution.weight, convolution.bias, padding=convolution.weight.shape[-1] // 2)
    torch.testing.assert_close(module(x), x + made)


def test_two_levels_are_written_out_by_hand():
    outer = Hourglass(2, depth=2)
    inner = outer.inner
    for hourglass, (skip, before, after) in ((outer, (2, 3, 5)), (inner, (7, 11, 13))):
        hourglass.skip, hourglass.before, hourglass.after = Times(skip), Times(before), Times(after)
    inner.inner = Times(17)
    x = torch.rand(1, 2, 8, 8)
    half, quarter = F.max_pool2d(x, 2), F.max_pool2d(x, 4)
    wide = 7 * 3 * half + 11 * 17 * 13 * 3 * quarter.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(outer(x), 2 * x + 5 * wide.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_waist_is_the_size_over_two_to_the_depth(depth):
    hourglass, seen = Hourglass(4, depth), []
    for module in hourglass.modules():
        if isinstance(module, Residual):
            module.register_forward_hook(lambda _, inputs, made: seen.append(made.shape[-1]))
    assert hourglass(torch.randn(2, 4, 16, 16)).shape == (2, 4, 16, 16)
    assert min(seen) == 16 // 2**depth and len(seen) == 3 * depth + 1


def test_the_next_stack_is_fed_features_and_heatmaps_of_the_one_before():
    torch.manual_seed(0)
    model = StackedHourglass(nn.Identity(), channels=4, points=3, stacks=2, depth=1).eval()
    f1 = torch.randn(2, 4, 8, 8)
    z1 = model.hourglasses[0](f1)
    p1 = model.out[0](z1)
    W, W_p = model.W[0], model.W_p[0]
    f2 = f1 + torch.einsum("dc,nchw->ndhw", W.weight[..., 0, 0], z1) + W.bias[:, None, None]
    f2 = f2 + torch.einsum("dk,nkhw->ndhw", W_p.weight[..., 0, 0], p1) + W_p.bias[:, None, None]
    heatmaps = model(f1)
    assert [tuple(p.shape) for p in heatmaps] == [(2, 3, 8, 8)] * 2
    torch.testing.assert_close(heatmaps[0], p1)
    torch.testing.assert_close(heatmaps[1], model.out[1](model.hourglasses[1](f2)))


def test_every_parameter_has_a_part_in_the_last_heatmaps():
    model = StackedHourglass(nn.Conv2d(1, 4, 1), channels=4, points=2, stacks=3, depth=2)
    model(torch.randn(2, 1, 8, 8))[-1].square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
