import math

import pytest
import torch

from atbook.mechanisms.decoupled_masks import MaskBranch, coupled_loss, decoupled_loss, of_class


def boxes():
    """Logits of 4 masks for 3 boxes of 2x2 pixels, classes and targets."""
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 2, 2, requires_grad=True)
    return logits, torch.tensor([2, 0, 1]), (torch.rand(3, 2, 2) < 0.5).float()


def test_decoupled_loss_coded_anew():
    logits, k, target = boxes()
    total = 0.0
    for n in range(3):
        for i in range(2):
            for j in range(2):
                p = 1 / (1 + math.exp(-logits[n, k[n], i, j].item()))
                total -= math.log(p if target[n, i, j] == 1 else 1 - p)
    assert decoupled_loss(logits, k, target).item() == pytest.approx(total / 12, rel=1e-5)


def test_coupled_loss_coded_anew():
    logits, k, target = boxes()
    total = 0.0
    for n in range(3):
        for i in range(2):
            for j in range(2):
                exp = [math.exp(value) for value in logits[n, :, i, j].tolist()]
                total -= math.log(exp[int(k[n]) if target[n, i, j] == 1 else 3] / sum(exp))
    assert coupled_loss(logits, k, target).item() == pytest.approx(total / 12, rel=1e-5)


def others(gradient, k):
    """The part of a gradient that is on the masks of other classes."""
    return torch.stack([gradient[n, j] for n in range(3) for j in range(3) if j != k[n]])


def test_masks_of_other_classes_are_not_touched_unless_coupled():
    logits, k, target = boxes()
    decoupled_loss(logits, k, target).backward()
    assert (others(logits.grad, k) == 0).all() and (of_class(logits.grad, k) != 0).all()
    logits.grad = None
    coupled_loss(logits, k, target).backward()
    assert (others(logits.grad, k) > 0).all()  # a step downhill lowers them


def test_the_other_masks_do_not_change_the_loss_unless_coupled():
    logits, k, target = boxes()
    shifted = logits.detach().clone()
    shifted[:, 3] += 5  # no box is of this class
    assert decoupled_loss(shifted, k, target) == decoupled_loss(logits, k, target)
    assert coupled_loss(shifted, k, target) != coupled_loss(logits, k, target)


def test_of_class_picks_the_mask_of_each_box():
    logits = torch.arange(2 * 3)[:, None, None].view(2, 3, 1, 1).expand(2, 3, 4, 4)
    assert of_class(logits, torch.tensor([2, 1]))[:, 0, 0].tolist() == [2, 4]


def test_branch_keeps_the_size_and_the_order_of_places():
    torch.manual_seed(0)
    branch = MaskBranch(3, 5, width=8).eval()
    x = torch.randn(1, 3, 24, 24)
    y = x.clone()
    y[:, :, :2, 20:] += 1.0
    changed = (branch(y) - branch(x))[0].abs().amax(dim=0)
    assert branch(x).shape == (1, 5, 24, 24)
    assert changed[:2, 20:].max() > 1e-4 and changed[14:].max() == 0 and changed[:, :10].max() == 0
