import torch

from atbook.mechanisms.cbam import CBAM, ChannelAttention, SpatialAttention


def test_channel_gates_are_the_papers_equation_coded_anew():
    torch.manual_seed(0)
    layer, F = ChannelAttention(4, hidden=3), torch.randn(2, 4, 5, 6)
    W0, b0, W1, b1 = layer.parameters()
    for n in range(2):
        logits = torch.zeros(4)
        for pool in (torch.mean, torch.max):
            pooled = torch.stack([pool(F[n, c]) for c in range(4)])
            logits = logits + W1 @ (W0 @ pooled + b0).clamp(min=0) + b1
        for c in range(4):
            torch.testing.assert_close(layer(F)[n, c], F[n, c] / (1 + torch.exp(-logits[c])))


def test_spatial_gates_are_the_papers_equation_coded_anew():
    torch.manual_seed(0)
    layer, F = SpatialAttention(), torch.randn(2, 4, 9, 8)
    (W,), bias = layer.f.weight, layer.f.bias
    for n in range(2):
        padded = torch.zeros(2, 9 + 6, 8 + 6)
        padded[0, 3:-3, 3:-3] = sum(F[n]) / 4
        padded[1, 3:-3, 3:-3] = F[n].sort(dim=0).values[-1]
        for y in range(9):
            for x in range(8):
                logit = (W * padded[:, y : y + 7, x : x + 7]).sum() + bias[0]
                torch.testing.assert_close(layer(F)[n, :, y, x], F[n, :, y, x] / (1 + torch.exp(-logit)))


def test_places_are_judged_by_the_gated_channels():
    torch.manual_seed(0)
    layer, F = CBAM(4, hidden=3), torch.randn(2, 4, 9, 8)
    gated = layer.channel.gates(F).view(2, 4, 1, 1) * F
    torch.testing.assert_close(layer(F), layer.space.gates(gated).view(2, 1, 9, 8) * gated)
    assert not torch.allclose(layer(F), layer.channel(layer.space(F)))


def test_gates_are_between_0_and_1():
    torch.manual_seed(0)
    layer, F = CBAM(4, hidden=3), 3 * torch.randn(100, 4, 8, 8)
    for gates, shape in ((layer.channel.gates(F), (100, 4)), (layer.space.gates(F), (100, 8, 8))):
        assert gates.shape == shape and 0 < gates.min() < gates.max() < 1


def test_a_channel_gate_cannot_tell_places_nor_a_spatial_gate_channels():
    torch.manual_seed(0)
    layer, F = CBAM(4, hidden=3), torch.randn(1, 4, 8, 8)
    elsewhere = F.flatten(2)[:, :, torch.randperm(64)].view_as(F)
    torch.testing.assert_close(layer.channel.gates(F), layer.channel.gates(elsewhere))
    torch.testing.assert_close(layer.space.gates(F), layer.space.gates(F[:, [2, 3, 1, 0]]))


def test_a_spatial_gate_sees_three_places_far_and_no_further():
    torch.manual_seed(0)
    layer, F = SpatialAttention(), torch.zeros(1, 4, 15, 15)
    changed = F.clone()
    changed[:, :, 7, 7] = 1.0
    assert ((layer.gates(F) != layer.gates(changed))[0].nonzero() - 7).abs().max() == 3
