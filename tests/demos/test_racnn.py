import pytest
import torch
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from atbook.demos import racnn as demo
from atbook.demos.toy import digits
from atbook.mechanisms import racnn


@pytest.mark.parametrize("scraps", [0, 2])
def test_the_true_square_holds_the_digit_of_the_label(scraps):
    images, labels, squares = demo.task(50, True, 7, scraps=scraps)
    assert images.shape == (50, 1, 32, 32) and squares.shape == (50, 3) and (squares[:, 2] == demo.LEAST).all()
    assert (squares[:, :2] >= demo.LEAST).all() and (squares[:, :2] <= 32 - demo.LEAST).all()
    known, classes = digits(True)
    known = interpolate(known[:, None], size=10, mode="area")[:, 0]
    for image, label, (x, y, _) in zip(images[:, 0], labels, squares.int().tolist(), strict=True):
        found = image[y - 5 : y + 5, x - 5 : x + 5]
        covered = (known <= found + 1e-6).all(dim=2).all(dim=1)  # scraps may make it brighter, never darker
        assert label in classes[covered]
        assert scraps or found.sum().item() == pytest.approx(image.sum().item())


def test_the_view_of_the_whole_is_the_image_shrunk(monkeypatch):
    monkeypatch.setattr(racnn, "K", 200.0)
    images = torch.rand(2, 1, 32, 32)
    made = demo.view(images, torch.full((2, 3), 16.0))
    assert made.shape == (2, 1, 16, 16)
    torch.testing.assert_close(made, avg_pool2d(images, 2), atol=1e-5, rtol=0)


def test_squares_to_begin_with_hold_the_digit():
    torch.manual_seed(0)
    true = demo.task(500, True, 7)[2]
    squares = demo.around(true)
    off = (squares - true)[:, :2].abs().amax(dim=1)
    assert (off + 5 <= squares[:, 2] + 1e-4).all() and off.max() > 5
    assert demo.LEAST <= squares[:, 2].min() and squares[:, 2].max() <= demo.MOST


def test_the_two_losses_of_looking_coded_anew():
    torch.manual_seed(0)
    model = demo.TwoScales(demo.Reader()).eval()
    x, y, _ = demo.task(8, True, 7)
    with torch.no_grad():
        coarse, fine = model.readers[0](avg_pool2d(x, 2)), model.readers[1](demo.view(x, model.squares(x)))
        assert model.looking_loss("cross-entropy", x, y) == cross_entropy(fine, y)
        p, q = (torch.stack([logits.softmax(1)[n, y[n]] for n in range(8)]) for logits in (coarse, fine))
        assert model.looking_loss("rank loss", x, y).item() == pytest.approx((p - q + 0.05).clamp(min=0).mean().item())
    model.looking_loss("rank loss", x, y).backward()
    assert all(part.grad.abs().sum() > 0 for part in model.propose.parameters())
    assert all(part.grad is None for part in model.readers[0].parameters())


@pytest.mark.parametrize("arm", demo.ARMS)
def test_the_proposal_learns_in_two_arms_alone(arm, monkeypatch):
    task = demo.task
    monkeypatch.setattr(demo, "task", lambda n, *rest, **scraps: task(n // 20, *rest, **scraps))
    begun = []

    class Watched(demo.TwoScales):
        def __init__(self, reader):
            super().__init__(reader)
            begun.append([part.detach().clone() for part in self.parameters()])

    monkeypatch.setattr(demo, "TwoScales", Watched)
    model = demo.train(arm, seed=100, steps=4)
    now = model.named_parameters()
    changed = {name for (name, part), old in zip(now, begun[0], strict=True) if (part != old).any()}
    assert any(name.startswith("propose") for name in changed) == (arm in ("rank loss", "cross-entropy"))
    assert any(name.startswith("readers.0") for name in changed)


@pytest.mark.parametrize("arm", demo.ARMS)
def test_every_arm_runs_and_twice_the_same(arm, twice):
    _, picture = twice(demo, arm)
    assert picture["images"].shape == (6, 1, 32, 32) and ("squares" in picture) == (arm != "whole image")
    if "squares" in picture:
        assert picture["squares"].shape == (6, 3) and picture["views"].shape == (6, 1, 16, 16)
        assert (picture["off"] == 0) == (arm == "true square")


def test_a_wrong_arm_is_refused_by_name():
    with pytest.raises(ValueError, match="'rank los' is unknown.*did you mean 'rank loss'"):
        demo.run("rank los", seed=100)
