import pytest
import torch

from atbook.demos import attention_to_scale as demo


def test_images_are_outlines_and_discs_and_labels_are_filled():
    images, labels = demo.task(200, True, 7)
    assert images.shape == (200, 1, 32, 32) and labels.shape == (200, 32, 32) and labels.unique().tolist() == [0, 1, 2]
    bright = images[:, 0] > 0.5
    assert bright[labels == 2].float().mean() > 0.99 and bright[labels == 0].float().mean() < 0.01
    inside = bright[labels == 1].float().mean()
    assert 0.15 < inside < 0.35  # the outline alone: about 4 of a side's 16 pixels


def test_a_square_is_filled_and_its_middle_looks_like_background():
    images, labels = demo.task(200, True, 7)
    for image, label in zip(images[:, 0], labels, strict=True):
        rows, columns = torch.nonzero(label == 1).unbind(1)
        box = label[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (box > 0).all() and min(box.shape) >= 11
        assert label[0].max() != 1 and label[:, 0].max() != 1
        core = image[rows.min() + 2 : rows.max() - 1, columns.min() + 2 : columns.max() - 1]
        core_labels = label[rows.min() + 2 : rows.max() - 1, columns.min() + 2 : columns.max() - 1]
        assert core[core_labels == 1].mean().abs() < 0.05


def test_mean_iou_against_sets():
    labels = torch.tensor([[[0, 0, 1], [2, 2, 1]]])
    answers = torch.tensor([[[0, 1, 1], [2, 0, 1]]])
    logits = torch.nn.functional.one_hot(answers, 3).permute(0, 3, 1, 2).float()
    assert demo.mean_iou(logits, labels) == pytest.approx(100 * (1 / 3 + 2 / 3 + 1 / 2) / 3)


def test_chance_is_background_alone():
    labels = demo.task(1000, False, 1100)[1]
    background = torch.zeros(1000, 3, 32, 32)
    background[:, 0] = 1
    assert demo.mean_iou(background, labels) == pytest.approx(demo.CHANCE, abs=0.3)


def test_merging():
    p = torch.tensor([[[1.0, 5.0], [3.0, 1.0]]])[..., None, None]  # one image, two scales, two classes, one pixel
    w = torch.tensor([[0.25, 0.75]])[..., None, None]
    assert [demo.merge(arm, p, w).flatten().tolist() for arm in ("mean", "maximum", "attention")] == [
        [2.0, 3.0], [3.0, 5.0], [2.5, 2.0],
    ]  # fmt: skip


def test_heads_begin_as_they_say():
    x = torch.rand(2, 1, 32, 32)
    assert (demo.build("attention").scores_and_weights(x)[1] == 0.5).all()
    assert (demo.build("attention, not zeroed").scores_and_weights(x)[1] != 0.5).any()


@pytest.mark.parametrize("arm", demo.ARMS)
def test_every_arm_runs_and_twice_the_same(arm, twice):
    _, picture = twice(demo, arm)
    assert picture["images"].shape == (6, 1, 32, 32) and picture["answers"].shape == (6, 32, 32)
    assert ("weights" in picture) == arm.startswith("attention")


def test_a_wrong_arm_is_refused_by_name():
    with pytest.raises(ValueError, match="'average' is unknown: choose one of 'fine alone'"):
        demo.run("average", seed=100)
