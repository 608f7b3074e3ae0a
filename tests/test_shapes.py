import time

import numpy as np
import pytest

from atbook import shapes


@pytest.fixture(scope="module")
def test_split():
    return shapes.make("test")


def test_dice_are_splitmix64():
    mask = 2**64 - 1

    def splitmix64(counter):
        z = counter * 0x9E3779B97F4A7C15 & mask
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    dice = shapes.Dice(np.array([0, 7]))
    assert dice.roll(-5, 95, 3).tolist() == [
        [(splitmix64((image << 32) + roll) >> 32) * 100 // 2**32 - 5 for roll in range(3)] for image in (0, 7)
    ]
    assert dice.roll(0, 2**31 - 1, 1)[1, 0] == (splitmix64((7 << 32) + 3) >> 32) * (2**31 - 1) // 2**32


def test_shapes_types_and_balance(test_split):
    images, labels, masks = test_split
    assert images.shape == (2000, 3, 32, 32) and images.dtype == np.uint8
    assert masks.shape == (2000, 32, 32) and masks.dtype == bool
    assert labels.dtype == np.int64 and np.bincount(labels).tolist() == [200] * 10


def test_objects_are_whole_and_of_similar_size_in_all_classes(test_split):
    _, labels, masks = test_split
    area = masks.mean(axis=(1, 2))
    assert 0.08 < area.min() and area.max() < 0.25
    by_class = np.array([area[labels == c].mean() for c in range(10)])
    assert by_class.max() / by_class.min() < 1.1  # so that the size does not give the class away


def test_mask_is_where_the_object_was_pasted(test_split):
    images, _, masks = test_split
    inside = np.array([image[:, mask].mean() for image, mask in zip(images, masks, strict=True)])
    outside = np.array([image[:, ~mask].mean() for image, mask in zip(images, masks, strict=True)])
    assert (inside > outside).mean() > 0.99


def test_image_depends_on_its_number_alone():
    one, chunk = shapes._scenes(np.array([5])), shapes._scenes(np.arange(3, 9))
    assert (one[0][0] == chunk[0][2]).all() and (one[1][0] == chunk[1][2]).all()


def test_outlines_agree_with_their_geometry():
    drawn = dict(zip(shapes.CLASSES, shapes.outlines(), strict=True))
    assert drawn["square"].sum() == 44**2  # 88 of 128 units are 44 of 64 cells
    assert drawn["disc"].sum() == pytest.approx(np.pi * 28**2, rel=0.01)
    assert not drawn["ring"][32, 32] and drawn["disc"][32, 32]
    for name in ("arrow", "cross", "disc", "heart", "ring", "square", "star", "triangle"):
        assert (drawn[name] == drawn[name][:, ::-1]).all(), name


def test_both_splits_are_made_in_seconds():
    start = time.process_time()
    shapes.make("train")
    shapes.make("test")
    assert time.process_time() - start < 6  # about 1.5 s on a quiet machine; room for a busy one
