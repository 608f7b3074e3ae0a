import pytest
import torch
import torch.nn.functional as F

from atbook.compat import torchvision
from atbook.models import build, first_groups, start_from
from atbook.names import NIN, RESNETS


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("wrn-16-1", 10, 175_066),
        ("wrn-16-2", 10, 691_674),
        ("wrn-40-1", 10, 563_930),
        ("wrn-40-2", 10, 2_243_546),
        ("nin-wide-nobn", 10, 966_986),  # the network of Lin, Chen and Yan
        ("resnet20", 100, 278_324),
        ("resnet32", 100, 472_756),
        ("resnet56", 100, 861_620),
        ("resnet110", 100, 1_736_564),
        ("resnet8x4", 100, 1_233_540),
        ("resnet32x4", 100, 7_433_860),
    ],
)
def test_parameter_counts_are_the_published_ones(name, classes, count):
    assert sum(p.numel() for p in build(name, classes).parameters()) == count


def test_thin_nin_has_the_papers_size_and_batch_norm_two_numbers_a_channel():
    counts = {name: sum(p.numel() for p in build(name).parameters()) for name in NIN}
    assert round(counts["nin-thin-nobn"] / 1e6, 1) == 0.2 and round(counts["nin-wide-nobn"] / 1e6) == 1
    for name, channels in (("nin-thin", 704), ("nin-wide", 1408)):  # each has scale and shift, and its bias is gone
        assert counts[name] - counts[f"{name}-nobn"] == channels


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


@pytest.mark.parametrize("name", [*NIN, *RESNETS])
def test_other_networks_have_three_groups_on_the_same_grids(name):
    model = build(name, num_classes=7)
    assert not name.endswith("-nobn") or not any("bn" in key or "running" in key for key in model.state_dict())
    logits, groups = model.eval().groups(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 7) and torch.equal(logits, model(torch.zeros(2, 3, 32, 32)))
    assert [tuple(g.shape[2:]) for g in groups] == [(32, 32), (16, 16), (8, 8)]
    assert all(w.norm() > 0 for key, w in model.named_parameters() if "weight" in key)


def test_residual_blocks_equal_torchvisions():
    torch.manual_seed(0)
    model, x = build("resnet8x4").eval(), torch.randn(2, 3, 32, 32)
    for j, A in enumerate(model.groups(x)[1][:2]):
        group = getattr(model, f"group{j + 1}")
        theirs = torchvision.models.resnet.BasicBlock(A.shape[1], 2 * A.shape[1], 2, group[0].shortcut).eval()
        names = {"conv0": "conv1", "bn0": "bn1", "conv1": "conv2", "bn1": "bn2", "shortcut": "downsample"}
        state = {k.replace(k.split(".")[0], names[k.split(".")[0]], 1): v for k, v in group[0].state_dict().items()}
        theirs.load_state_dict(state)
        torch.testing.assert_close(group[0](A), theirs(A))


@pytest.mark.parametrize("name", ["nin-thin", "nin-thin-nobn"])
def test_network_in_network_equals_a_functional_version(name):
    torch.manual_seed(0)
    model, x = build(name), torch.randn(2, 3, 32, 32)
    model(x)
    model.eval()
    weights, o = model.state_dict(), x
    for j, pool in enumerate((F.max_pool2d, F.avg_pool2d, None)):
        step = 2 if name.endswith("-nobn") else 3  # places of one convolution's layers in the group
        for i in range(3 if pool else 2):
            key = f"group{j}.{i * step}"
            o = F.conv2d(o, weights[f"{key}.weight"], weights.get(f"{key}.bias"), padding="same")
            if step == 3:
                key = f"group{j}.{i * step + 1}"
                stats = (weights[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
                o = F.batch_norm(o, *stats)
            o = o.relu()
        o = pool(o, 3, 2, 1) if pool else o
    o = F.conv2d(o, weights["classes.weight"], weights["classes.bias"]).mean((2, 3))
    torch.testing.assert_close(model(x), o)


WRONG = ["nin", "resnet21", "resnet8x3", "wrn-17-1", "wrn-4-1", "wrn-16-0", "resnet", "wrn-16", "", "wrn-16-1x"]


@pytest.mark.parametrize("name", WRONG)
def test_bad_names_are_refused(name):
    with pytest.raises(ValueError, match="network"):
        build(name)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="num_classes is 1"):
        build("wrn-10-1", num_classes=1)


@pytest.mark.parametrize(
    ("name", "last"),
    [("wrn-10-1", "group0.0.conv1.weight"), ("resnet20", "group0.2.bn1.bias"), ("nin-thin", "group0.7.bias"),
     ("resnet18", "layer1.1.bn2.bias")],
)  # fmt: skip
def test_the_first_group_ends_where_the_second_begins(name, last):
    model = build(name)
    names = [n for n, _ in model.named_parameters()]
    first = first_groups(model, 1)
    assert first == names[: len(first)] and first[-1] == last and names[len(first)].startswith(model.GROUPS[1])
    assert first_groups(model, 0) == []
    rest = set(names) - set(first_groups(model, len(model.GROUPS)))
    assert not any(n.startswith(tuple(model.GROUPS)) for n in rest) and set(names[-2:]) <= rest


@pytest.mark.parametrize("name", ["wrn-10-1", "resnet8x4", "nin-thin"])
def test_pretrained_weights_are_all_taken_but_for_a_classifier_of_other_classes(name):
    pretrained, same, other = build(name, 6), build(name, 6), build(name, 4)
    classifier, fresh = list(other.state_dict())[-2:], other.state_dict()
    fresh = {n: fresh[n].clone() for n in classifier}
    start_from(same, pretrained.state_dict())
    start_from(other, pretrained.state_dict())
    for n, tensor in pretrained.state_dict().items():
        assert torch.equal(same.state_dict()[n], tensor)
        assert torch.equal(other.state_dict()[n], fresh[n] if n in classifier else tensor)


def test_another_networks_weights_are_refused_and_nothing_is_loaded():
    model = build("wrn-10-1")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for weights in (build("wrn-10-2").state_dict(), build("wrn-16-1").state_dict(), {}, build("resnet20").state_dict()):
        with pytest.raises(ValueError, match="not those of this network"):
            start_from(model, weights)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
