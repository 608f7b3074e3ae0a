import pytest
import torch

from atbook.demos import spatial_transformer as demo
from atbook.demos.toy import digits


def window(image, middle):
    x, y = ((middle + 1) * 16).long().tolist()
    return image[y - 8 : y + 8, x - 8 : x + 8]


def nearest(patch, train):
    """Label of a known digit all of whose pixels are in the patch, the scraps being brighter at most."""
    known, classes = digits(train)
    fits = (patch >= known).all(dim=(1, 2))
    return set(classes[fits].tolist())


def test_the_digit_is_at_its_middle_and_the_label_is_right():
    images, labels, middles = demo.task(100, True, 7)
    assert images.shape == (100, 1, 32, 32) and labels.shape == (100,) and middles.shape == (100, 2)
    assert all(labels[n].item() in nearest(window(images[n, 0], middles[n]), True) for n in range(100))
    assert middles.min() == -0.5 and middles.max() == 0.5  # up to the edges of the image


def test_new_images_have_digits_not_trained_on():
    images, labels, middles = demo.task(50, False, 7)
    for n in range(50):
        patch = window(images[n, 0], middles[n])
        assert labels[n].item() in nearest(patch, False) and not (patch == digits(True)[0]).all(dim=(1, 2)).any()


def test_there_are_scraps_all_over_the_image(monkeypatch):
    images, _, middles = demo.task(2000, True, 7)
    monkeypatch.setattr(demo, "SCRAPS", 0)
    bare, _, alone = demo.task(2000, True, 7)
    for n in range(100):
        window(bare[n, 0], alone[n])[:] = 0
        window(images[n, 0], middles[n])[:] = 0
    assert bare[:100].max() == 0
    assert (images[:100].amax(dim=(1, 2, 3)) > 0).float().mean() > 0.9
    assert images[:, 0].mean(dim=0).min() > 0


def test_windows_that_are_not_learnt():
    middles = torch.rand(500, 2) - 0.5
    A = {arm: demo.fixed(arm, middles) for arm in ("whole image", "middle", "random window", "true window")}
    scales = {arm: made[:, :, :2].mean(dim=0).tolist() for arm, made in A.items()}
    assert scales.pop("whole image") == [[1.0, 0.0], [0.0, 1.0]]
    assert all(scale == [[0.5, 0.0], [0.0, 0.5]] for scale in scales.values())
    assert torch.equal(A["true window"][..., 2], middles)
    assert A["whole image"][..., 2].abs().max() == A["middle"][..., 2].abs().max() == 0
    assert 0.49 < A["random window"][..., 2].abs().max() <= 0.5
    assert torch.corrcoef(torch.cat([A["random window"][..., 2], middles], dim=1).T)[:2, 2:].abs().max() < 0.2


def test_the_true_window_shows_the_digit_pixel_by_pixel():
    images, _, middles = demo.task(5, True, 7)
    _, V, _ = demo.Reader("true window").eval()(images, middles)
    for n in range(5):
        torch.testing.assert_close(V[n, 0], window(images[n, 0], middles[n]))


def test_localisations_start_in_the_middle_and_one_cannot_leave_the_image():
    x = torch.rand(4, 1, 32, 32)
    half = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]).expand(4, -1, -1)
    for free in (False, True):
        localisation = demo.Localisation(free).eval()
        assert torch.equal(localisation(x), half)
        torch.nn.init.constant_(localisation.layers[-1].bias, 100.0)
        moved = localisation(x) - half
        expected = torch.full((4, 2, 3), 100.0) if free else torch.tensor([[0.0, 0.0, 0.5]] * 2).expand(4, -1, -1)
        torch.testing.assert_close(moved, expected)


def test_the_reader_tells_the_localisation_where_to_look():
    model = demo.Reader("transformer")
    images, labels, middles = demo.task(16, True, 7)
    torch.nn.functional.cross_entropy(model(images, middles)[0], labels).backward()
    assert model.transformer.localisation.layers[-1].bias.grad.abs().min() > 0


@pytest.mark.parametrize("arm", demo.ARMS)
def test_every_arm_runs_and_twice_the_same(arm, twice):
    _, picture = twice(demo, arm)
    assert picture["images"].shape == (6, 1, 32, 32) and picture["read"].shape == (6, 1, 16, 16)
    assert picture["A"].shape == (6, 2, 3) and picture["middles"].shape == (6, 2)
    assert picture["off"] == 0 if arm == "true window" else 0 < picture["off"] < 32


def test_the_distance_is_in_pixels(monkeypatch):
    task = demo.task
    monkeypatch.setattr(demo, "task", lambda n, *rest: task(n // 20, *rest))
    _, picture = demo.run("middle", seed=100, steps=1)
    _, _, middles = task(100, False, 1100)
    assert picture["off"].item() == pytest.approx((16 * middles).norm(dim=1).mean().item(), rel=1e-5)


def test_a_wrong_arm_is_refused_by_name():
    with pytest.raises(ValueError, match="'transformers' is unknown.*did you mean 'transformer'"):
        demo.run("transformers", seed=100)
