import pytest
import torch

from atbook.data import load
from atbook.demos import decoupled_masks as demo


def test_a_box_is_as_tight_as_can_be():
    masks = load("shapes", "test").masks[:20]
    for mask, (left, top, right, bottom) in zip(masks, demo.around(masks).int().tolist(), strict=True):
        rows, columns = torch.nonzero(mask).unbind(1)
        assert (rows.min(), rows.max() + 1) == (top, bottom) and (columns.min(), columns.max() + 1) == (left, right)


def test_a_cut_at_the_same_size_is_the_pixels():
    image = torch.rand(1, 3, 32, 32)
    for mode in ("nearest", "bilinear"):
        made = demo.cut(image, torch.tensor([[5.0, 2.0, 29.0, 26.0]]), mode)
        torch.testing.assert_close(made, image[:, :, 2:26, 5:29], atol=1e-5, rtol=0)


def test_the_mask_touches_all_sides_and_the_object_is_brighter():
    images, classes, targets = demo.task(100, True, 7)
    assert images.shape == (100, 3, 24, 24) and classes.shape == (100,) and targets.shape == (100, 24, 24)
    assert set(targets.unique().tolist()) == {0, 1} and 0 <= images.min() and images.max() <= 1
    for side in (targets[:, 0], targets[:, -1], targets[:, :, 0], targets[:, :, -1]):
        assert (side.sum(dim=1) > 0).all()
    inside = (images.mean(dim=1) * targets).sum() / targets.sum()
    assert inside > (images.mean(dim=1) * (1 - targets)).sum() / (1 - targets).sum() + 0.2


def test_new_boxes_are_of_other_images():
    trained = {image.numpy().tobytes() for image in demo.task(10_000, True, 7)[0]}
    assert not trained & {image.numpy().tobytes() for image in demo.task(2_000, False, 7)[0]}


def test_chance_is_to_take_the_whole_box():
    _, _, targets = demo.task(2000, False, 7)
    assert demo.iou(torch.ones_like(targets) > 0, targets) == pytest.approx(demo.CHANCE, abs=0.5)


def test_score_by_hand():
    made = torch.tensor([[[True, True], [False, False]], [[True, True], [True, True]]])
    target = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    assert demo.iou(made, target) == pytest.approx(100 * (1 / 3 + 1) / 2)


def test_answers_of_the_arms():
    logits = torch.full((1, demo.CLASSES + 1, 1, 4), -9.0)
    logits[0, 4, 0] = torch.tensor([3.0, -2.0, 1.0, -1.0])  # the class that is asked for
    logits[0, 7, 0] = torch.tensor([4.0, -3.0, -3.0, 1.0])
    logits[0, demo.CLASSES, 0] = torch.tensor([2.0, 0.0, 2.0, -2.0])  # the background
    k = torch.tensor([4])
    assert demo.answer("softmax", logits, k).tolist() == [[[True, False, False, True]]]
    assert demo.answer("softmax, any class", logits, k).tolist() == [[[True, False, False, True]]]
    assert demo.answer("softmax, any class", logits, torch.tensor([5])).any()
    assert not demo.answer("softmax", logits, torch.tensor([5])).any()
    assert demo.answer("decoupled", logits, k).tolist() == [[[True, False, True, False]]]


@pytest.mark.parametrize("arm", demo.ARMS)
def test_every_arm_runs_and_twice_the_same(arm, twice):
    _, picture = twice(demo, arm)
    masks = 1 if arm == "one mask" else 11 if arm.startswith("softmax") else 10
    assert picture["images"].shape == (6, 3, 24, 24) and picture["masks"].shape == (6, masks, 24, 24)
    assert picture["answers"].shape == picture["targets"].shape == (6, 24, 24)


def test_a_wrong_arm_is_refused_by_name():
    with pytest.raises(ValueError, match="'softmx' is unknown.*did you mean 'softmax'"):
        demo.run("softmx", seed=100)
