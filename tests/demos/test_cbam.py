import pytest
import torch

from atbook.demos import cbam as demo
from atbook.demos.toy import digits

SHAPES = {"images": (6, 2, 32, 32), "plane": (6,), "half": (6,), "gates": (6, 16), "mask": (6, 16, 16)}


def test_every_half_of_every_plane_has_a_digit_and_the_label_is_that_of_the_named_one():
    images, labels, plane, half = demo.task(40, True, 7, cue=False)
    assert images.shape == (40, 2, 32, 32) and labels.shape == plane.shape == half.shape == (40,)
    known, classes = digits(True)
    of = {image.numpy().tobytes(): label for image, label in zip(known, classes.tolist(), strict=True)}
    for n in range(40):
        for p in range(2):
            for h in range(2):
                columns = images[n, p, :, 16 * h : 16 * h + 16]
                found = {of.get(columns[top : top + 16].numpy().tobytes()) for top in range(17)} - {None}
                assert len(found) == 1
                if p == plane[n] and h == half[n]:
                    assert found == {labels[n].item()}
    assert set(plane.tolist()) == {0, 1} and set(half.tolist()) == {0, 1}


def test_new_images_have_digits_not_trained_on():
    known, _ = digits(False)
    new = {image.numpy().tobytes() for image in known}
    images, _, plane, half = demo.task(20, False, 7, cue=False)
    for n in range(20):
        columns = images[n, plane[n], :, 16 * half[n] : 16 * half[n] + 16]
        assert any(columns[top : top + 16].numpy().tobytes() in new for top in range(17))


def test_the_cue_is_a_frame_in_the_named_plane_and_light_on_the_named_half_of_all():
    bare, labels, plane, half = demo.task(40, True, 7, cue=False)
    images, *same = demo.task(40, True, 7)
    assert all(torch.equal(a, b) for a, b in zip(same, (labels, plane, half), strict=True))
    for n in range(40):
        expected = bare[n].clone()
        columns = slice(16 * half[n], 16 * half[n] + 16)
        expected[:, :, columns] = expected[:, :, columns].clamp(min=demo.LIGHT)
        for edge in (0, 31):
            expected[plane[n], edge, :] = expected[plane[n], :, edge] = 1.0
        assert torch.equal(images[n], expected)


def test_the_first_layer_keeps_the_planes_apart():
    torch.manual_seed(0)
    model = demo.Reader("channels and places").eval()
    x = torch.rand(1, 2, 32, 32)
    changed = x.clone()
    changed[:, 1] = torch.rand(32, 32)
    moved = (model.first(x) != model.first(changed))[0].flatten(1).any(dim=1)
    assert moved[8:].any() and not moved[:8].any()


@pytest.mark.parametrize("arm", demo.ARMS)
def test_a_reader_has_the_gates_of_its_arm_and_no_others(arm):
    torch.manual_seed(0)
    model, F = demo.Reader(arm).eval(), torch.randn(2, 16, 16, 16)
    ratio = model.cbam(F) / F
    channels, places = ratio.std(dim=1).amax() > 1e-3, ratio.std(dim=(2, 3)).amax() > 1e-3
    assert channels == ("channels" in arm or arm == "no cue") and places == ("places" in arm or arm == "no cue")


@pytest.mark.parametrize("arm", demo.ARMS)
def test_every_arm_runs_and_twice_the_same(arm, twice):
    _, picture = twice(demo, arm)
    assert {key: tuple(tensor.shape) for key, tensor in picture.items()} == {key: SHAPES[key] for key in picture}
    assert ("gates" in picture) == ("channels" in arm or arm == "no cue")
    assert ("mask" in picture) == ("places" in arm or arm == "no cue")


def test_a_wrong_arm_is_refused_by_name():
    with pytest.raises(ValueError, match="'channel' is unknown.*did you mean 'channels'"):
        demo.run("channel", seed=100)
