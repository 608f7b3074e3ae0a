import math

import pytest
import torch

from atbook.mechanisms.task_partitioning import (
    TaskPartitioning,
    cells_near,
    enlarge,
    partitioned,
    partitioned_loss,
    smooth,
)


def scene():
    """Logits of a 16x16 image and of its 4x4 cells, and a target of one object in the upper left cell."""
    torch.manual_seed(0)
    target = torch.zeros(1, 16, 16)
    target[0, 1:3, 2] = 1
    return torch.randn(1, 16, 16), torch.randn(1, 4, 4), target


def test_cells_near_coded_anew():
    torch.manual_seed(0)
    target = (torch.rand(2, 16, 24) < 0.02).float()
    near = cells_near(target)
    assert near.shape == (2, 4, 6)
    for n in range(2):
        for i in range(4):
            for j in range(6):
                around = target[n, max(0, 4 * i - 4) : 4 * i + 8, max(0, 4 * j - 4) : 4 * j + 8]
                assert near[n, i, j] == around.max()


def test_loss_coded_anew():
    precise, coarse, target = scene()

    def cost(logit, y):
        p = 1 / (1 + math.exp(-logit))
        return -math.log(p if y == 1 else 1 - p)

    detection = sum(cost(coarse[0, i, j].item(), i < 2 and j < 2) for i in range(4) for j in range(4)) / 16
    pixels = [cost(precise[0, i, j].item(), target[0, i, j]) for i in range(8) for j in range(8)]
    assert partitioned_loss(precise, coarse, target).item() == pytest.approx(detection + sum(pixels) / 64, rel=1e-5)


def test_the_shallow_layer_learns_nothing_far_from_objects():
    precise, coarse, target = scene()
    precise.requires_grad_()
    partitioned_loss(precise, coarse, target).backward()
    assert (precise.grad[0, :8, :8] != 0).all()
    assert (precise.grad[0, 8:] == 0).all() and (precise.grad[0, :, 8:] == 0).all()


def test_both_layers_have_to_agree():
    precise, coarse, _ = scene()
    answer = partitioned(precise, coarse)
    for i in range(16):
        for j in range(16):
            assert answer[0, i, j] == (precise[0, i, j] > 0 and coarse[0, i // 4, j // 4] > 0)
    assert answer.any() and not partitioned(precise, coarse - 10).any()


def test_enlarged_is_constant_in_a_cell_and_smooth_is_not():
    _, coarse, _ = scene()
    assert torch.equal(enlarge(coarse)[:, 1::4, 2::4], coarse)
    assert torch.equal(enlarge(coarse)[0, 4:8, 8:12], coarse[0, 1, 2].expand(4, 4))
    assert smooth(coarse).shape == (1, 16, 16)
    w = torch.tensor([0.125, 0.875])  # the middle of pixel 5 is an eighth of a cell before that of its own cell, 1
    assert smooth(coarse)[0, 5, 9].item() == pytest.approx((w @ coarse[0, :2, 1:3] @ w).item(), rel=1e-4)


def test_how_far_the_layers_see():
    torch.manual_seed(0)
    network, x = TaskPartitioning(4).eval(), torch.randn(1, 1, 64, 64)
    x.requires_grad_()
    for answer, low, high in ((0, 7, 7), (1, 50, 64)):
        middle = network(x)[answer][0]
        (gradient,) = torch.autograd.grad(middle[middle.shape[0] // 2, middle.shape[1] // 2], x)
        rows = torch.nonzero(gradient[0, 0].abs().sum(dim=1))[:, 0]
        assert low <= rows.max() - rows.min() + 1 <= high


def test_shapes_of_the_answers():
    precise, coarse = TaskPartitioning(4)(torch.randn(2, 1, 48, 32))
    assert precise.shape == (2, 48, 32) and coarse.shape == (2, 12, 8)
