import torch

from atbook.mechanisms.squeeze_excitation import SqueezeExcitation


def test_gates_are_the_papers_equations_coded_anew():
    torch.manual_seed(0)
    layer, U = SqueezeExcitation(4, hidden=2), torch.randn(3, 4, 5, 6)
    (W1, b1, W2, b2) = layer.parameters()
    for n in range(3):
        z = torch.stack([U[n, c].sum() / 30 for c in range(4)])
        s = 1 / (1 + torch.exp(-(W2 @ (W1 @ z + b1).clamp(min=0) + b2)))
        for c in range(4):
            torch.testing.assert_close(layer(U)[n, c], s[c] * U[n, c])


def test_gates_are_between_0_and_1():
    gates = SqueezeExcitation(4, hidden=2).gates(10 * torch.randn(100, 4, 3, 3))
    assert gates.shape == (100, 4) and 0 < gates.min() and gates.max() < 1


def test_a_gate_cannot_tell_places():
    layer, U = SqueezeExcitation(4, hidden=2), torch.randn(1, 4, 8, 8)
    shuffled = U.flatten(2)[:, :, torch.randperm(64)].view_as(U)
    torch.testing.assert_close(layer.gates(U), layer.gates(shuffled))
