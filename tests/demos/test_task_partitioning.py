import pytest
import torch
from scipy.ndimage import label

from atbook.demos import task_partitioning as demo


def test_every_ship_is_a_part_of_its_own():
    images, targets, ships = demo.task(200, True, 7)
    assert images.shape == (200, 1, 48, 48) and targets.shape == (200, 48, 48)
    assert [label(target, structure=torch.ones(3, 3))[1] for target in targets.numpy()] == ships.tolist()
    assert set(ships.tolist()) == {2, 3, 4, 5, 6}
    area = targets.sum(dim=(1, 2)) / ships
    assert area.mean().item() == pytest.approx(demo.LENGTH * demo.WIDTH, rel=0.02)
    border = torch.cat([targets[:, [0, -1]].flatten(1), targets[:, :, [0, -1]].flatten(1)], dim=1)
    assert border.sum() == 0


def test_distances_of_a_group_coded_anew():
    centre = torch.tensor([[20.3, 25.1]]).repeat(50, 1)
    ship, box, count = demo.group(50, centre, torch.Generator().manual_seed(7))
    area = (ship < 0).sum(dim=1)
    assert (area - 16 * count).abs().max() <= 6 and set(count.tolist()) == {1, 2, 3}
    length, width = demo.LENGTH, count * demo.WIDTH + (count - 1) * demo.GAP
    within = (box < 0).sum(dim=1)
    assert (within - length * width).abs().max() <= 6
    assert (box <= ship + 1e-4).all()  # the rectangle holds all ships
    alone = count == 1
    assert torch.equal(ship[alone], box[alone])


def test_what_is_near_a_ship_does_not_tell_on_which_side_it_is(monkeypatch):
    groups, group = [], demo.group
    monkeypatch.setattr(demo, "group", lambda *inputs: groups.append(group(*inputs)) or groups[-1])
    images, targets, _ = demo.task(400, True, 7)
    ships = [distance.view(400, 1, 48, 48) for distance, _, _ in groups]
    assert torch.equal((ships[0].minimum(ships[1]) < 0)[:, 0], targets > 0) and len(ships) == 3
    noise = images - (0.5 - torch.stack(ships).amin(dim=0)).clamp(0, 1)  # where there is no land
    near, around = (
        [torch.nn.functional.max_pool2d((ship < 0).float(), size, stride=1, padding=size // 2) > 0 for ship in ships]
        for size in (7, 25)  # a shallow layer sees 7x7 pixels
    )
    for seen in near:
        assert noise[seen].max() < 0.6 and noise[seen].mean().abs() < 0.005
    assert noise[around[2]].mean() > 0.1  # the land around the yard


def test_chance_is_to_take_every_pixel():
    _, targets, _ = demo.task(500, False, 7)
    assert demo.iou(torch.ones_like(targets) > 0, targets) == pytest.approx(demo.CHANCE, abs=0.1)


def test_scores_by_hand():
    made = torch.tensor([[[1, 0, 0], [0, 1, 0], [0, 0, 0]], [[1, 0, 1], [1, 0, 1], [0, 0, 0]]]) > 0
    target = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 0]], [[1, 0, 0], [1, 0, 0], [1, 0, 0]]])
    assert demo.iou(made, target) == pytest.approx(100 * (1 + 2 / 5) / 2)
    # One part, as a diagonal connects, and two.
    assert demo.miscounted(made, torch.tensor([1, 2])) == 0 and demo.miscounted(made, torch.tensor([3, 1])) == 1.5


@pytest.mark.parametrize("arm", demo.ARMS)
def test_every_arm_runs_and_twice_the_same(arm, twice):
    _, picture = twice(demo, arm)
    assert picture["images"].shape == (6, 1, 48, 48)
    assert all(picture[key].shape == (6, 48, 48) for key in ("targets", "answers", "deep", "shallow"))


def test_a_wrong_arm_is_refused_by_name():
    with pytest.raises(ValueError, match="'shalow' is unknown.*did you mean 'shallow'"):
        demo.run("shalow", seed=100)
