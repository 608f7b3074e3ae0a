import pytest
import torch

from atbook.demos import squeeze_excitation as demo
from atbook.demos.toy import digits


def found(plane, train):
    """Labels of the digits that equal some patch of a plane."""
    known, classes = digits(train)
    patches = plane.unfold(0, 16, 1).unfold(1, 16, 1).flatten(0, 1)
    bytes_of = {patch.numpy().tobytes() for patch in patches.contiguous()}
    return {int(label) for image, label in zip(known, classes, strict=True) if image.numpy().tobytes() in bytes_of}


def test_every_plane_has_a_whole_digit_and_the_label_is_that_of_the_named_one():
    images, labels, named = demo.task(30, True, 7)
    assert images.shape == (30, 3, 32, 32) and labels.shape == named.shape == (30,)
    for n in range(30):
        of = [found(plane, True) for plane in images[n]]
        assert all(len(labels) == 1 for labels in of) and labels[n].item() in of[named[n]]


def test_new_images_have_digits_not_trained_on():
    images, _, _ = demo.task(10, False, 7)
    assert not any(found(plane, True) for image in images for plane in image)


def test_the_frame_is_on_the_named_plane_alone_and_does_not_touch_the_digit():
    images, labels, named = demo.task(200, True, 7)
    bare, same, also = demo.task(200, True, 7, cue=False)
    assert torch.equal(labels, same) and torch.equal(named, also) and set(named.tolist()) == {0, 1, 2}
    added = images - bare
    border = torch.ones(32, 32)
    border[demo.FRAME : -demo.FRAME, demo.FRAME : -demo.FRAME] = 0
    assert torch.equal(added, torch.nn.functional.one_hot(named, 3)[:, :, None, None] * border)
    assert (bare * border).max() == 0


def test_the_mean_of_a_channel_shows_the_frame():
    images, _, named = demo.task(500, True, 7)
    assert torch.equal(images.mean(dim=(2, 3)).argmax(dim=1), named)
    assert demo.FRAME * (32 - demo.FRAME) * 4 / 32**2 == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize("arm", demo.ARMS)
def test_every_arm_runs_and_twice_the_same(arm, twice):
    _, picture = twice(demo, arm)
    assert picture["images"].shape == (6, 3, 32, 32) and picture["named"].shape == (6,)
    assert ("gates" in picture) == arm.startswith("gate")
    empty = picture["images"].amax(dim=(2, 3)) == 0
    alone = torch.nn.functional.one_hot(picture["named"], 3) == 0
    assert torch.equal(empty, alone if arm == "named plane alone" else torch.zeros(6, 3, dtype=torch.bool))


def test_a_wrong_arm_is_refused_by_name():
    with pytest.raises(ValueError, match="'gates' is unknown.*did you mean 'gate'"):
        demo.run("gates", seed=100)
