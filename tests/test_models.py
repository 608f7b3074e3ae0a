import pytest
import torch
import torch.nn.functional as F

from atbook.models import build


@pytest.mark.parametrize(
    ("name", "count"), [("wrn-16-1", 175_066), ("wrn-16-2", 691_674), ("wrn-40-1", 563_930), ("wrn-40-2", 2_243_546)]
)
def test_parameter_counts_are_the_published_ones(name, count):
    assert sum(p.numel() for p in build(name).parameters()) == count


def test_groups_have_the_papers_shapes():
    logits, groups = build("wrn-10-2", num_classes=7).groups(torch.zeros(3, 3, 32, 32))
    assert logits.shape == (3, 7)
    assert [tuple(g.shape) for g in groups] == [(3, 32, 32, 32), (3, 64, 16, 16), (3, 128, 8, 8)]


def functional_wrn(weights, x, blocks):
    """The network once more, as plain functions on the tensors of evaluation mode."""

    def bn_relu(x, name):
        stats = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, *stats, training=False))

    x = F.conv2d(x, weights["conv0.weight"], padding=1)
    for j, stride in enumerate((1, 2, 2)):
        for i in range(blocks):
            name, s = f"group{j}.{i}", stride if i == 0 else 1
            o = bn_relu(x, f"{name}.bn0")
            y = F.conv2d(o, weights[f"{name}.conv0.weight"], stride=s, padding=1)
            y = F.conv2d(bn_relu(y, f"{name}.bn1"), weights[f"{name}.conv1.weight"], padding=1)
            project = weights.get(f"{name}.shortcut.weight")
            x = y + (x if project is None else F.conv2d(o, project, stride=s))
    return F.linear(bn_relu(x, "bn").mean((2, 3)), weights["fc.weight"], weights["fc.bias"])


@pytest.mark.parametrize(("name", "blocks"), [("wrn-16-1", 2), ("wrn-10-3", 1)])
def test_forward_equals_a_functional_version(name, blocks):
    torch.manual_seed(0)
    model, x = build(name), torch.randn(4, 3, 32, 32)
    model(x)  # moves the running statistics away from their initial values
    model.eval()
    torch.testing.assert_close(model(x), functional_wrn(model.state_dict(), x, blocks))


def test_initial_weights_are_the_authors():
    torch.manual_seed(0)
    model = build("wrn-16-4")
    std = model.group2[1].conv1.weight.std().item()
    assert std == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert model.bn.weight.min() >= 0 and model.bn.weight.max() < 1 and model.bn.weight.std() > 0.2
    assert not model.bn.bias.any() and not model.fc.bias.any()


def test_same_seed_same_weights():
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(build("wrn-10-1").conv0.weight)
    assert torch.equal(*weights)


@pytest.mark.parametrize("name", ["wrn-17-1", "wrn-4-1", "wrn-16-0", "resnet", "wrn-16", "", "wrn-16-1x"])
def test_bad_names_are_refused(name):
    with pytest.raises(ValueError, match="network"):
        build(name)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="num_classes is 1"):
        build("wrn-10-1", num_classes=1)
