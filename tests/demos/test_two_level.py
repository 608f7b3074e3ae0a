import pytest
import torch

from atbook.demos import two_level as demo
from atbook.demos.toy import digits


def test_the_digit_of_the_label_is_at_its_corner():
    images, labels, corner = demo.task(50, True, 7)
    assert images.shape == (50, 1, 32, 32) and corner.shape == (50, 2) and 0 <= corner.min() and corner.max() <= 16
    known, classes = digits(True)
    for image, label, (top, left) in zip(images[:, 0], labels, corner.tolist(), strict=True):
        found = image[top : top + 16, left : left + 16]
        covered = (known <= found + 1e-6).all(dim=2).all(dim=1)  # scraps may make it brighter, never darker
        assert label in classes[covered]


def test_windows_are_row_by_row():
    images = torch.rand(2, 1, 32, 32)
    found = demo.windows(images)
    assert found.shape == (2, 25, 16, 16)
    for i in range(5):
        for j in range(5):
            assert torch.equal(found[:, 5 * i + j], images[:, 0, 4 * i : 4 * i + 16, 4 * j : 4 * j + 16])


def test_a_window_holds_the_digit_up_to_two_pixels():
    held = demo.holds(torch.tensor([[9, 3], [2, 2], [16, 0]]))
    assert [torch.nonzero(row)[:, 0].tolist() for row in held] == [[11], [0, 1, 5, 6], [20]]


def test_parts_are_what_a_place_of_the_middle_layer_sees():
    torch.manual_seed(0)
    net, images = demo.Net(10).eval(), torch.rand(1, 1, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(net.middle(images)[0, :, 6, 9].sum(), images)
    seen = torch.nonzero(gradient[0, 0])
    low, high = seen.amin(dim=0).tolist(), (seen.amax(dim=0) + 1).tolist()
    assert [high[axis] - low[axis] for axis in (0, 1)] == [demo.PART, demo.PART]
    part = demo.cut(images.detach(), torch.tensor([[[6, 9]]]))
    patch = images.detach()[:, :, low[0] : high[0], low[1] : high[1]]
    torch.testing.assert_close(part, torch.nn.functional.interpolate(patch, size=16, mode="bilinear"))


def test_parts_lie_in_kept_windows():
    torch.manual_seed(0)
    kept = torch.rand(20, 25) < 0.1
    allowed = demo.near_kept(kept)
    for n in range(20):
        for y in range(16):
            for x in range(16):
                top, left = 2 * y + 1 - 4, 2 * x + 1 - 4
                inside = [
                    4 * i <= top and top + 8 <= 4 * i + 16 and 4 * j <= left and left + 8 <= 4 * j + 16
                    for i in range(5) for j in range(5) if kept[n, 5 * i + j]
                ]  # fmt: skip
                assert allowed[n, y, x] == any(inside)


def test_random_windows_are_as_many():
    torch.manual_seed(0)
    found, net = demo.windows(demo.task(40, True, 7)[0]), demo.Net(2).eval()
    net.classify.weight.data *= 50
    kept, random, every = (
        demo.kept_windows(arm, found, net, 7) for arm in ("object level", "random windows", "all windows")
    )
    assert every.all() and torch.equal(kept.sum(dim=1), random.sum(dim=1)) and not torch.equal(kept, random)
    assert kept.sum(dim=1).unique().numel() > 1


def test_of_windows_leaves_each_in_its_place():
    torch.manual_seed(0)
    found, kept = torch.rand(3, 4, 2, 2), torch.rand(3, 4) < 0.5
    made = demo.of_windows(lambda x: x.flatten(1)[:, :3], found, kept)
    assert made.shape == (3, 4, 3) and 0 < kept.sum() < 12
    for n in range(3):
        for i in range(4):
            assert torch.equal(made[n, i], found[n, i].flatten()[:3] * kept[n, i])


@pytest.mark.parametrize("arm", demo.ARMS)
def test_every_arm_runs_and_twice_the_same(arm, twice):
    _, picture = twice(demo, arm)
    assert picture["images"].shape == (6, 1, 32, 32) and ("kept" in picture) == (arm != "whole image")
    if "parts" in picture:
        assert picture["parts"].shape == (6, 3, 2) and 4 <= picture["parts"].min() and picture["parts"].max() <= 28


def test_a_wrong_arm_is_refused_by_name():
    with pytest.raises(ValueError, match="'part levl' is unknown.*did you mean 'part level'"):
        demo.run("part levl", seed=100)
