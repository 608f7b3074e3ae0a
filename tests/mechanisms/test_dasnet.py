import math

import pytest
import torch
from torch import nn

from atbook.mechanisms.dasnet import SNES, DasNet, utilities


def model(passes=3):
    torch.manual_seed(0)
    after = nn.Sequential(nn.Flatten(), nn.Linear(4 * 6, 3))
    return DasNet(nn.Conv2d(1, 4, 3), after, channels=4, classes=3, passes=passes)


def test_passes_are_the_papers_equations_coded_anew():
    net, x, theta = model(), torch.rand(2, 1, 4, 5), torch.randn(4, 8)
    U = net.before(x)
    logits, gains = net.passes_of(U, theta)
    for n in range(2):
        a = torch.ones(4)
        for t in range(3):
            torch.testing.assert_close(gains[n, t], a)
            gated = torch.stack([a[c] * U[n, c] for c in range(4)])
            y = net.after(gated[None])[0]
            torch.testing.assert_close(logits[n, t], y)
            o = torch.cat([gated.flatten(1).sum(dim=1) / 6, torch.exp(y) / torch.exp(y).sum(), torch.ones(1)])
            e = torch.exp(torch.stack([theta[c] @ o for c in range(4)]))
            a = 4 * e / e.sum()


def test_gains_are_positive_and_sum_to_the_number_of_channels():
    net = model()
    gains = net.passes_of(torch.randn(50, 4, 2, 3), torch.randn(4, 8))[1]
    torch.testing.assert_close(gains.sum(dim=2), torch.full((50, 3), 4.0))
    assert gains.min() > 0 and gains[:, 1:].std(dim=0).min() > 0.01  # and differ between images


def test_it_begins_as_the_frozen_network():
    net, x = model(), torch.rand(2, 1, 4, 5)
    torch.testing.assert_close(net(x), net.after(net.before(x)))
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["theta"]
    net.theta.data.normal_()
    torch.testing.assert_close(net(x), net.passes_of(net.before(x), net.theta)[0][:, 2])
    assert not torch.allclose(net(x), net.after(net.before(x)))


def test_utilities_by_hand():
    raw = [math.log(3), math.log(3 / 2), 0, 0]  # ln(4/2 + 1) - ln k
    expected = torch.tensor([r / sum(raw) - 1 / 4 for r in raw], dtype=torch.float64)
    torch.testing.assert_close(utilities(4), expected)
    assert utilities(24).sum().abs() < 1e-12


def test_a_generation_by_hand():
    search = SNES(torch.tensor([1.0, -2.0]), sigma=0.5, population=4, rate=0.7, seed=3)
    points = search.ask()
    z = (points - torch.tensor([1.0, -2.0])) / 0.5
    torch.testing.assert_close(z[:2], -z[2:])
    search.tell(torch.tensor([0.1, 5.0, -3.0, 2.0]))  # ranks: 1, 3, 0, 2
    u = utilities(4).float()
    step = u[0] * z[1] + u[1] * z[3] + u[2] * z[0] + u[3] * z[2]
    torch.testing.assert_close(search.mu, torch.tensor([1.0, -2.0]) + 0.7 * 0.5 * step)
    wider = u[0] * (z[1] ** 2 - 1) + u[1] * (z[3] ** 2 - 1) + u[2] * (z[0] ** 2 - 1) + u[3] * (z[2] ** 2 - 1)
    eta = (3 + math.log(2)) / (5 * math.sqrt(2))
    torch.testing.assert_close(search.sigma, 0.5 * torch.exp(eta / 2 * wider))


def test_snes_finds_the_optimum_of_a_quadratic_of_unequal_axes():
    best, scale = torch.tensor([3.0, -1.0, 0.5, 2.0]), torch.tensor([1.0, 10.0, 100.0, 0.1])
    search = SNES(torch.zeros(4), sigma=1.0, population=12, rate=1.0, seed=0)
    for _ in range(200):
        search.tell(-(scale * (search.ask() - best).square()).sum(dim=1))
    torch.testing.assert_close(search.mu, best, atol=1e-3, rtol=0)
    assert search.sigma.max() < 1e-2


def test_only_ranks_count():
    def after(change):
        search = SNES(torch.zeros(3), sigma=1.0, population=8, rate=0.5, seed=0)
        for _ in range(5):
            search.tell(change(search.ask().sum(dim=1)))
        return search.mu

    torch.testing.assert_close(after(lambda f: f), after(lambda f: torch.exp(3 * f)))


def test_an_odd_population_is_refused():
    with pytest.raises(ValueError, match="population 7 cannot be drawn in pairs"):
        SNES(torch.zeros(3), sigma=1.0, population=7, rate=1.0, seed=0)
