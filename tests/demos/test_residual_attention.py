import pytest
import torch

from atbook.demos import residual_attention as demo
from atbook.demos.toy import digits


def inside(image, box):
    rows, columns = box.any(dim=1).nonzero()[:, 0], box.any(dim=0).nonzero()[:, 0]
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@pytest.mark.parametrize("train", [True, False])
def test_the_box_holds_the_digit_of_the_label(train):
    images, labels, boxes = demo.task(100, train, 7)
    assert images.shape == boxes.shape == (100, 1, 32, 32) and labels.shape == (100,)
    known, classes = digits(train)
    for n in range(100):
        patch = inside(images[n, 0], boxes[n, 0])
        fits = (patch >= known).all(dim=(1, 2))  # a scrap may make it brighter
        assert patch.shape == (16, 16) and labels[n].item() in classes[fits].tolist()
        assert not (patch == digits(not train)[0]).all(dim=(1, 2)).any()
    assert set(boxes.unique().tolist()) == {0, 1} and (boxes.sum(dim=(1, 2, 3)) == 256).all()


def test_outside_the_box_there_are_scraps_alone(monkeypatch):
    images, _, boxes = demo.task(200, True, 7)
    assert ((images * (1 - boxes)).amax(dim=(1, 2, 3)) > 0).float().mean() > 0.9
    monkeypatch.setattr(demo.spatial_transformer, "SCRAPS", 0)
    images, _, boxes = demo.task(200, True, 7)
    assert (images * (1 - boxes)).max() == 0


def test_arms_differ_in_the_masks_alone():
    naive, residual, without = (demo.Reader(arm) for arm in ("naive", "residual", "no masks"))
    assert [p.shape for p in naive.parameters()] == [p.shape for p in residual.parameters()]
    assert [block.residual for block in (*naive.blocks, *residual.blocks)] == [False] * 3 + [True] * 3
    trunks = [block.trunk for block in naive.blocks]
    assert [type(trunk) for trunk in trunks] == [type(block) for block in without.blocks] == [demo.Unit] * 3


def test_masks_are_those_that_the_network_uses():
    model, x = demo.Reader("residual").eval(), torch.rand(2, 1, 32, 32)
    seen = []
    for block in model.blocks:
        block.mask.register_forward_hook(lambda _, inputs, made: seen.append(made.mean(dim=1)))
    model(x)
    used = torch.stack(seen, dim=1)
    assert used.shape == (2, 3, 16, 16) and torch.equal(model.masks(x), used)


@pytest.mark.parametrize(("residual", "factor"), [(False, 0.5), (True, 1.5)])
def test_untrained_blocks_multiply_by_about_a_half_more_or_less(residual, factor):
    made = demo.sizes(residual, seed=100)
    assert made.shape == (7,) and made[0] == 1
    assert ((made[1:] / made[:-1] - factor).abs() < 0.06).all()


@pytest.mark.parametrize("arm", demo.ARMS)
def test_every_arm_runs_and_twice_the_same(arm, twice):
    _, picture = twice(demo, arm)
    images, boxes = picture["images"], picture["boxes"]
    assert images.shape == boxes.shape == (6, 1, 32, 32)
    assert ((images * (1 - boxes)).max() == 0) == (arm == "true mask")
    assert ("masks" in picture) == (arm in ("naive", "residual"))
    if "masks" in picture:
        assert picture["masks"].shape == (6, 3, 16, 16) and picture["sizes"].shape == (7,)
        share = 256 / 1024
        mean = share * picture["inside"] + (1 - share) * picture["outside"]
        torch.testing.assert_close(mean, picture["masks"].mean(dim=(0, 2, 3)), atol=0.05, rtol=0)


def test_a_wrong_arm_is_refused_by_name():
    with pytest.raises(ValueError, match="'residua' is unknown.*did you mean 'residual'"):
        demo.run("residua", seed=100)
