import pytest
import torch

from atbook.demos import dasnet as demo
from atbook.demos.toy import digits


@pytest.mark.parametrize("train", [True, False])
def test_the_labelled_digit_is_somewhere_whole(train):
    images, labels = demo.task(100, train, 7)
    known, classes = digits(train)
    assert images.shape == (100, 1, 32, 32) and len(labels.unique()) > 5
    windows = images[:, 0].unfold(1, 16, 1).unfold(2, 16, 1)  # all places of a digit
    for n in range(10):
        own = known[classes == labels[n]]
        excess = own[:, None, None] - windows[n]  # pieces below never darken a digit
        assert (excess.amax(dim=(3, 4)) < 1e-6).any()


def test_a_rule_of_constant_gains_does_not_depend_on_the_image():
    torch.manual_seed(0)
    model = demo.trained(steps=1, seed=100)
    U = torch.rand(5, 24, 2, 2)
    constant = model.passes_of(U, demo.rule("constant gains", 0.1 * torch.randn(24)))[1]
    varying = model.passes_of(U, demo.rule("rule by evolution", 0.1 * torch.randn(840)))[1]
    assert constant[:, 1:].std(dim=0).max() < 1e-5 < varying[:, 1:].std(dim=0).min()


def test_evolution_lowers_the_loss_it_is_given():
    model = demo.trained(steps=1, seed=100)
    images, labels = demo.task(100, True, 7)
    with torch.no_grad():
        U = model.before(images)
        before = torch.nn.functional.cross_entropy(model(images), labels)
        demo.evolve(model, "rule by evolution", U, labels, generations=5, seed=0)
        assert torch.nn.functional.cross_entropy(model(images), labels) < before


@pytest.mark.parametrize("arm", demo.ARMS)
def test_every_arm_runs_and_twice_the_same(arm, twice):
    _, picture = twice(demo, arm)
    assert picture["images"].shape == (6, 1, 32, 32) and picture["answers"].shape == (6, 3)
    assert picture["gains"].shape == (6, 3, 24) and picture["changed"].shape == (2,)
    if arm == "frozen":
        assert (picture["gains"] - 1).abs().max() < 1e-5 and picture["changed"].tolist() == [0, 0]


def test_a_wrong_arm_is_refused_by_name():
    with pytest.raises(ValueError, match="'evolution' is unknown.*did you mean 'rule by evolution'"):
        demo.run("evolution", seed=100)
