import pytest
import torch

from atbook.demos import show_attend_tell as demo
from atbook.demos.toy import digits


def test_digits_stand_from_left_to_right_and_are_whole():
    images, labels, middles = demo.task(50, True, 7)
    assert images.shape == (50, 1, 32, 64) and labels.shape == (50, 3) and middles.shape == (50, 3, 2)
    known, classes = digits(True)
    of = {image.numpy().tobytes(): label for image, label in zip(known, classes.tolist(), strict=True)}
    for n in range(50):
        x, y = middles[n].long().unbind(1)
        assert (x.diff() >= 16).all()
        for k in range(3):
            patch = images[n, 0, y[k] - 8 : y[k] + 8, x[k] - 8 : x[k] + 8]
            assert of[patch.numpy().tobytes()] == labels[n, k]
    assert middles[:, 0, 0].min() == 8 or middles[:, 2, 0].max() > 50
    assert middles[..., 1].min() < 10 and middles[..., 1].max() > 22


def test_new_images_have_digits_not_trained_on():
    trained = {image.numpy().tobytes() for image in digits(True)[0]}
    images, _, middles = demo.task(20, False, 7)
    for n in range(20):
        for x, y in middles[n].long().tolist():
            assert images[n, 0, y - 8 : y + 8, x - 8 : x + 8].numpy().tobytes() not in trained


def test_without_order_the_same_digits_are_shuffled():
    images, labels, middles = demo.task(600, True, 7)
    same, shuffled, moved = demo.task(600, True, 7, ordered=False)
    assert torch.equal(images, same) and torch.equal(labels.sort().values, shuffled.sort().values)
    order = moved[..., 0].argsort(dim=1)
    assert torch.equal(shuffled.gather(1, order), labels)
    assert torch.equal(moved[..., 0].gather(1, order), middles[..., 0])
    assert (order == torch.arange(3)).all(dim=1).float().mean().item() == pytest.approx(1 / 6, abs=0.05)


def test_annotations_are_row_by_row():
    torch.manual_seed(0)
    encoder = demo.Encoder(one=False).eval()
    x = torch.zeros(1, 1, 32, 64)
    x[..., 17, 42] = 1.0
    changed = (encoder(x) - encoder(torch.zeros_like(x))).abs().amax(dim=2)[0]
    weights = changed / changed.sum()
    assert changed.shape == (128,) and (demo.middle(weights) - torch.tensor([42.0, 17.0])).abs().max() < 4
    one_hot = torch.zeros(128)
    one_hot[4 * 16 + 10] = 1.0  # row 4, column 10 of places of 4 pixels
    assert demo.middle(one_hot).tolist() == [42.0, 18.0]


def test_one_vector_is_a_single_place():
    reader = demo.Reader("one vector").eval()
    a = reader.encoder(torch.rand(2, 1, 32, 64))
    assert a.shape == (2, 1, 128) and (reader.writer.write(a, 3)[1] == 1).all()


def test_the_mean_looks_everywhere_equally():
    reader = demo.Reader("mean of all places").eval()
    assert (reader.writer.write(reader.encoder(torch.rand(2, 1, 32, 64)), 3)[1] == 1 / 128).all()


@pytest.mark.parametrize("arm", demo.ARMS)
def test_every_arm_runs_and_twice_the_same(arm, twice):
    _, picture = twice(demo, arm)
    assert picture["images"].shape == (6, 1, 32, 64) and picture["written"].shape == picture["labels"].shape == (6, 3)
    if "alpha" in picture:
        torch.testing.assert_close(picture["alpha"].sum(dim=(2, 3)), torch.ones(6, 3))


def test_a_wrong_arm_is_refused_by_name():
    with pytest.raises(ValueError, match="'none' is unknown: choose one of 'mean of all places'"):
        demo.run("none", seed=100)
