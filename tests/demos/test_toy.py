import pytest
import torch
from torch import nn

from atbook.demos import toy


def test_no_digit_is_both_trained_and_tested_on():
    train, test = ({image.numpy().tobytes() for image in toy.digits(part)[0]} for part in (True, False))
    assert len(toy.digits(True)[0]) == 1200 and len(toy.digits(False)[0]) == 597
    assert not train & test


def test_digits_are_sklearns_in_0_to_1():
    images, labels = toy.digits(True)
    assert images.shape == (1200, 16, 16) and 0 <= images.min() and images.max() <= 1
    assert labels[:10].tolist() == list(range(10))  # the collection begins so


def test_a_patch_lands_where_it_is_put_and_never_darkens():
    canvas = torch.full((2, 8, 8), 0.5)
    toy.paste(canvas, torch.stack([torch.ones(2, 3), torch.zeros(2, 3)]), torch.tensor([1, 0]), torch.tensor([4, 0]))
    assert (canvas[0, 1:3, 4:7] == 1).all() and canvas[0].sum() == 0.5 * 58 + 6
    assert (canvas[1] == 0.5).all()


def test_fitting_solves_least_squares_and_ends_in_evaluation_mode():
    torch.manual_seed(0)
    x = torch.randn(256, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 3
    model = nn.Linear(3, 1)
    toy.fit(model, lambda a, b: (model(a) - b).square().mean(), (x, y), steps=400, seed=0, lr=0.1)
    assert not model.training
    torch.testing.assert_close(model.weight[0], torch.tensor([1.0, -2.0, 0.5]), atol=1e-2, rtol=0)
    assert model.bias.item() == pytest.approx(3, abs=1e-2)


def test_accuracy_by_hand():
    assert toy.accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 75
