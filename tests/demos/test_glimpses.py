import pytest
import torch

from atbook.demos import glimpses as demo
from atbook.demos.toy import digits
from atbook.mechanisms.glimpses import glimpse


def test_the_whole_digit_is_where_it_is_said_to_be():
    images, labels, middles = demo.task(300, False, 7)
    assert images.shape == (300, 1, 32, 32) and middles.abs().max() <= 0.5
    known, classes = digits(False)
    seen = glimpse(images, middles, 16)[:, 0]
    # Pieces never darken what they lie on: the digit is nowhere brighter than what is seen.
    for n in range(300):
        below = (known <= seen[n] + 1e-5).flatten(1).all(dim=1)
        assert labels[n] in classes[below]
    assert len(labels.unique()) == 10


def test_there_is_clutter_outside_the_digit():
    images, _, middles = demo.task(300, True, 7)
    left, top = ((middles + 1) * 16 - 8).round().long().unbind(1)
    outside = images[:, 0].clone()
    for n in range(300):
        outside[n, top[n] : top[n] + 16, left[n] : left[n] + 16] = 0
    assert (outside.flatten(1).amax(dim=1) > 0.3).float().mean() > 0.95
    assert top.min() == 0 and top.max() == 16 and left.min() == 0 and left.max() == 16


def test_25_windows_lie_within_the_image_row_by_row():
    corners = (demo.windows() + 1) * 16 - 8
    assert corners.tolist() == [[x, y] for y in range(0, 17, 4) for x in range(0, 17, 4)]
    points = torch.tensor([[3.0, 9.0], [16.0, 0.0]])
    assert demo.nearest((points + 8) / 16 - 1).tolist() == [2 * 5 + 1, 4]


def test_reward_moves_the_policy_and_without_it_the_reader_alone_is_trained():
    torch.manual_seed(0)
    model, (x, y, middles) = demo.OneWindow(), demo.task(20, True, 7)
    demo.one_window_loss(model, "baseline", x, y, middles).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad(set_to_none=True)
    demo.one_window_loss(model, "random window", x, y, middles).backward()
    assert all((p.grad is None) != name.startswith("reader") for name, p in model.named_parameters())


def test_the_baseline_is_the_mean_of_the_others():
    assert demo.others(torch.tensor([1.0, 2.0, 6.0])).tolist() == [4.0, 3.5, 1.5]


@pytest.mark.parametrize("arm", demo.ARMS)
def test_every_arm_runs_and_twice_the_same(arm, twice):
    _, picture = twice(demo, arm)
    assert picture["images"].shape == (6, 1, 32, 32) and picture["middles"].shape == (6, 2)
    assert picture["places"].shape == (6, 5 if arm in demo.FIVE else 1, 2)


def test_the_right_window_is_at_most_two_pixels_off_each_way(monkeypatch):
    task = demo.task
    monkeypatch.setattr(demo, "task", lambda n, *rest: task(n // 20, *rest))
    right, random = (demo.run(arm, seed=100, steps=1)[1]["off"] for arm in ("right window", "random window"))
    assert right < 2 < random


def test_a_wrong_arm_is_refused_by_name():
    with pytest.raises(ValueError, match="'oracle' is unknown: choose one of 'random window'"):
        demo.run("oracle", seed=100)
