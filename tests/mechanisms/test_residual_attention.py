import pytest
import torch
from torch import nn
from torch.nn import functional as F

from atbook.mechanisms.residual_attention import DownUp, ResidualAttention, Unit


class Times(nn.Module):
    """Stands in for a layer whose output is to be known."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def rms(x):
    return x.square().mean().sqrt()


def constant(block, M):
    """Makes the mask of a block the same everywhere."""
    last = block.mask[-2]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, torch.tensor(M / (1 - M)).log().item())
    return block


def test_a_unit_is_batch_norm_relu_and_a_convolution_beside_the_identity():
    torch.manual_seed(0)
    unit, x = Unit(3).eval(), torch.randn(2, 3, 5, 5)
    norm, _, convolution = unit.f
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    mean, var = norm.running_mean[:, None, None], norm.running_var[:, None, None]
    made = F.conv2d(((x - mean) / (var + 1e-5).sqrt()).clamp(min=0), convolution.weight, convolution.bias, padding=1)
    torch.testing.assert_close(unit(x), x + made)


def test_two_levels_are_written_out_by_hand():
    branch = DownUp(2, depth=2)
    branch.before, branch.after, branch.skip = Times(2), Times(3), Times(5)
    branch.below.before, branch.below.after = Times(7), Times(11)
    x = torch.rand(1, 2, 8, 8)
    half, quarter = 2 * F.max_pool2d(x, 2), 2 * F.max_pool2d(x, 4)
    up = {"scale_factor": 2, "mode": "bilinear", "align_corners": False}
    expected = 3 * (F.interpolate(7 * 11 * quarter, **up) + 5 * half)
    torch.testing.assert_close(branch(x), F.interpolate(expected, **up))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_lowest_unit_sees_the_size_over_two_to_the_depth(depth):
    branch, seen = DownUp(4, depth), []
    for module in branch.modules():
        if isinstance(module, Unit):
            module.register_forward_hook(lambda _, inputs, made: seen.append(made.shape[-1]))
    assert branch(torch.randn(2, 4, 16, 16)).shape == (2, 4, 16, 16)
    assert min(seen) == 16 // 2**depth and len(seen) == 3 * depth - 1


def test_masks_are_between_0_and_1_and_scale_the_trunk():
    torch.manual_seed(0)
    trunk, x = nn.Conv2d(4, 4, 3, padding=1), torch.randn(2, 4, 8, 8)
    naive, residual = (ResidualAttention(trunk, 4, 2, residual).eval() for residual in (False, True))
    residual.load_state_dict(naive.state_dict())
    logits = naive.mask[:-1](x)
    M, T = 1 / (1 + torch.exp(-logits)), trunk(x)
    assert M.shape == T.shape and 0 < M.min() < M.max() < 1
    for n, c in ((0, 0), (1, 3)):
        torch.testing.assert_close(naive(x)[n, c], M[n, c] * T[n, c])
        torch.testing.assert_close(residual(x)[n, c], T[n, c] + M[n, c] * T[n, c])


@pytest.mark.parametrize(("residual", "M", "factor"), [(False, 0.5, 0.5), (True, 0.5, 1.5), (False, 0.2, 0.2)])
def test_six_equal_masks_are_a_power(residual, M, factor):
    blocks = [constant(ResidualAttention(nn.Identity(), 4, 1, residual), M) for _ in range(6)]
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(rms(nn.Sequential(*blocks)(x)) / rms(x), torch.tensor(factor**6))


def test_only_the_residual_form_can_leave_the_trunk_as_it_is():
    x = torch.randn(2, 4, 8, 8)
    naive, residual = (constant(ResidualAttention(nn.Identity(), 4, 1, form), 1e-9) for form in (False, True))
    torch.testing.assert_close(residual(x), x)
    assert naive(x).abs().max() < 1e-7


def test_every_parameter_has_a_part_in_the_output():
    block = ResidualAttention(Unit(4), 4, depth=3)
    block(torch.randn(2, 4, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
