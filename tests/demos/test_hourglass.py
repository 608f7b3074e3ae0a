import math

import pytest
import torch

from atbook.demos import hourglass
from atbook.mechanisms.hourglass import Hourglass


def test_three_corners_determine_the_one_that_is_covered():
    _, corners, covered = hourglass.task(200, True, 7)
    at = torch.arange(200)
    before, across, after = (corners[at, (covered + k) % 4] for k in (3, 2, 1))
    torch.testing.assert_close(corners[at, covered], before + after - across)
    assert set(covered.tolist()) == {0, 1, 2, 3} and 0 < corners.min() and corners.max() < 32
    right_angles = ((before - across) * (after - across)).sum(dim=1)
    torch.testing.assert_close(right_angles, torch.zeros(200), atol=1e-3, rtol=0)


def test_corners_are_named_as_in_an_upright_rectangle():
    _, corners, _ = hourglass.task(200, True, 7)
    upper_left, upper_right, lower_right, lower_left = corners.unbind(1)
    assert (upper_left[:, 0] < upper_right[:, 0]).all() and (lower_left[:, 0] < lower_right[:, 0]).all()
    assert (upper_left[:, 1] < lower_left[:, 1]).all() and (upper_right[:, 1] < lower_right[:, 1]).all()


def test_the_outline_is_drawn_at_three_corners_and_grey_at_the_fourth():
    images, corners, covered = hourglass.task(2000, True, 7)
    x, y = corners.long().unbind(2)
    drawn = images[torch.arange(2000)[:, None], 0, y, x]
    hidden = torch.zeros(2000, 4, dtype=torch.bool).scatter_(1, covered[:, None], True)
    assert drawn[hidden].mean() == pytest.approx(0.5, abs=0.02)
    assert drawn[~hidden].mean() > 0.85
    # The noise alone parts the covered pixels from 0.5; an outline would make the spread larger.
    assert drawn[hidden].std() == pytest.approx(0.1, abs=0.01)


def test_chance_is_the_middle_of_the_disc():
    assert hourglass.CHANCE == 100 * (hourglass.NEAR / hourglass.JITTER) ** 2
    assert hourglass.JITTER < hourglass.RADIUS and hourglass.JITTER + hourglass.RADIUS < 14  # the shortest side


def test_targets_peak_in_the_cell_of_the_point():
    corners = torch.tensor([[[5.0, 23.0], [30.9, 0.2]]])
    maps = hourglass.heatmaps(corners)
    assert maps.shape == (1, 2, 16, 16)
    assert hourglass.peaks(maps).tolist() == [[[5.0, 23.0], [31.0, 1.0]]]
    assert maps[0, 0, 11, 2] == 1 and maps[0, 0, 11, 3].item() == pytest.approx(math.exp(-0.5))


def test_score_counts_the_covered_corner_alone():
    corners = torch.tensor([[[5.0, 5.0], [25.0, 5.0], [25.0, 25.0], [5.0, 25.0]]]).repeat(2, 1, 1)
    found = corners.clone()
    found[0, 1, 0] -= 2.0  # near enough
    found[1, 1, 0] -= 4.0  # too far, but it is the third corner that is covered there
    maps = hourglass.heatmaps(found)
    assert hourglass.near(maps, corners, torch.tensor([1, 2])) == 100
    assert hourglass.near(maps, corners, torch.tensor([1, 1])) == 50


def test_flat_has_the_same_parameters_and_one_scale():
    flat, two = hourglass.build("flat"), hourglass.build("two stacks")
    assert [p.shape for p in flat.parameters()] == [p.shape for p in two.parameters()]
    seen = []
    for part in flat.modules():
        if isinstance(part, Hourglass):
            part.before.register_forward_hook(lambda _, inputs, made: seen.append(made.shape[-1]))
    flat(torch.randn(2, 1, 32, 32))
    assert seen == [16] * 4  # two stacks, two levels


@pytest.mark.parametrize("arm", hourglass.ARMS)
def test_every_arm_runs_and_twice_the_same(arm, twice):
    score, picture = twice(hourglass, arm)
    stacks = 1 if arm == "one stack" else 2
    assert score == pytest.approx(picture["stacks"][-1].item(), rel=1e-5)
    assert picture["heatmaps"].shape == (6, stacks, 4, 16, 16) and picture["images"].shape == (6, 1, 32, 32)


def test_a_wrong_arm_is_refused_by_name():
    with pytest.raises(ValueError, match="'two stack' is unknown.*did you mean"):
        hourglass.run("two stack", seed=100)
