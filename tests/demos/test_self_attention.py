import pytest
import torch
from torch.nn.functional import avg_pool2d

from atbook.demos import self_attention as demo
from atbook.demos.toy import digits


def read(images, train):
    """Number of the digit in each cell, -1 where there is none: images -> `(n, 16)`."""
    known = avg_pool2d(digits(train)[0][:, None], 2)[:, 0]
    of = {digit.numpy().tobytes(): number for number, digit in enumerate(known)}
    cells = images[:, 0].unflatten(1, (4, 8)).unflatten(3, (4, 8)).transpose(2, 3).flatten(1, 2)
    return torch.tensor([[of.get(cell.contiguous().numpy().tobytes(), -1) for cell in row] for row in cells])


@pytest.mark.parametrize("train", [True, False])
def test_the_named_cell_alone_holds_another_writing_of_the_query(train):
    images, cells = demo.task(200, train, 7)
    assert images.shape == (200, 1, 32, 32) and cells.min() == 1 and cells.max() == 15
    numbers, labels = read(images, train), digits(train)[1]
    assert ((numbers >= 0).sum(dim=1) == 5).all() and (numbers[:, 0] >= 0).all()
    for row, cell in zip(numbers, cells, strict=True):
        classes = labels[row[1:][row[1:] >= 0]].tolist()
        assert len(set(classes)) == 4 and labels[row[cell]] == labels[row[0]] and row[cell] != row[0]


def test_without_the_query_the_corner_tells_nothing():
    other, same = demo.task(2000, True, 7, query=False)
    assert len(same.unique()) == 15
    numbers, labels = read(other, True), digits(True)[1]
    assert ((numbers >= 0).sum(dim=1) == 5).all()
    right = labels[numbers[:, 0]] == labels[numbers[torch.arange(2000), same]]
    assert right.float().mean().item() == pytest.approx(0.1, abs=0.025)


def test_uniform_weights_are_equal_and_nothing_else_changes():
    uniform, asked = demo.build("uniform weights"), demo.build("query's token")
    assert [p.shape for p in uniform.parameters()] == [p.shape for p in asked.parameters()]
    assert (uniform(torch.rand(2, 1, 32, 32))[1] == 1 / 17).all()


def test_the_class_token_answers_only_where_it_is_said():
    assert {arm: demo.read_at(arm) for arm in demo.ARMS} == {
        "uniform weights": 1, "no query": 1, "class token, one block": 0, "class token, two blocks": 0,
        "query's token": 1,
    }  # fmt: skip


@pytest.mark.parametrize("arm", demo.ARMS)
def test_every_arm_runs_and_twice_the_same(arm, twice):
    _, picture = twice(demo, arm)
    assert picture["images"].shape == (6, 1, 32, 32) and picture["labels"].shape == picture["answers"].shape == (6,)
    assert picture["maps"].shape == (6, 2 if arm.endswith("two blocks") else 1, 4, 17, 17)
    assert picture["rollout"].shape == (6, 4, 4) and picture["rollout"].sum(dim=(1, 2)).max() < 1
    assert picture["found"].shape == (5,) and 0 <= picture["found"].min() and picture["found"].max() <= 100


def test_a_wrong_arm_is_refused_by_name():
    with pytest.raises(ValueError, match="'class token' is unknown: choose one of 'uniform weights'"):
        demo.run("class token", seed=100)
