import math

import pytest
import torch

from atbook.mechanisms.glimpses import RecurrentAttention, glimpse, score_function_loss


def bandit():
    """Logits of a policy over five actions and the reward of each."""
    torch.manual_seed(0)
    return torch.randn(5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64) - 3


def estimates(logits, rewards, baseline):
    """The gradient's estimate after each of the five actions `(5, 5)`, and their probabilities."""
    rows = []
    for action in range(5):
        loss = score_function_loss(logits.log_softmax(0)[action], rewards[action], baseline)
        rows.append(-torch.autograd.grad(loss, logits)[0])
    return torch.stack(rows), logits.softmax(0).detach()


@pytest.mark.parametrize("baseline", [0.0, -3.0, 7.0])
def test_the_estimate_is_unbiased_with_any_baseline(baseline):
    logits, rewards = bandit()
    exact = torch.autograd.grad((logits.softmax(0) * rewards).sum(), logits)[0]
    rows, pi = estimates(logits, rewards, baseline)
    torch.testing.assert_close(pi @ rows, exact)
    by_hand = pi * (rewards - pi @ rewards)  # d E[R] / d logit_a
    torch.testing.assert_close(exact, by_hand)


def test_the_expected_reward_as_baseline_lowers_the_variance():
    logits, rewards = bandit()

    def variance(baseline):
        rows, pi = estimates(logits, rewards, baseline)
        return pi @ (rows - pi @ rows).square().sum(dim=1)

    expected = (logits.softmax(0) * rewards).sum().detach()
    assert variance(expected) < 0.2 * variance(0.0) < variance(7.0)


def test_no_gradient_goes_through_reward_or_baseline():
    reward, baseline = (torch.randn(3, requires_grad=True) for _ in range(2))
    log_pi = torch.randn(3, requires_grad=True)
    score_function_loss(log_pi, reward, baseline).backward()
    assert reward.grad is None and baseline.grad is None
    torch.testing.assert_close(log_pi.grad, (baseline - reward).detach() / 3)


def test_a_glimpse_cuts_out_what_is_there_and_black_beyond():
    x = torch.rand(2, 1, 8, 12)
    # Rows 1 to 4 and columns 5 to 8 are around the pixel edge (7, 3); the second image is seen at its corner.
    places = torch.tensor([[7 / 6 - 1, 3 / 4 - 1], [-1.0, -1.0]])
    seen = glimpse(x, places, size=4)
    torch.testing.assert_close(seen[0], x[0, :, 1:5, 5:9])
    torch.testing.assert_close(seen[1, :, 2:, 2:], x[1, :, :2, :2])
    assert (seen[1, :, :2] == 0).all() and (seen[1, :, :, :2] == 0).all()


def test_further_squares_are_twice_as_wide_and_shrunk():
    x = torch.rand(1, 2, 16, 16)
    seen = glimpse(x, torch.zeros(1, 2), size=4, scales=3)
    assert seen.shape == (1, 6, 4, 4)
    torch.testing.assert_close(seen[0, :2], x[0, :, 6:10, 6:10])
    wider = x[0, :, 4:12, 4:12].unflatten(1, (4, 2)).unflatten(3, (4, 2)).mean(dim=(2, 4))
    torch.testing.assert_close(seen[0, 2:4], wider)
    torch.testing.assert_close(seen[0, 4:], x[0].unflatten(1, (4, 4)).unflatten(3, (4, 4)).mean(dim=(2, 4)))


def model():
    torch.manual_seed(0)
    return RecurrentAttention(size=4, scales=2, classes=3, hidden=6, glimpses=3, sigma=0.2)


def test_a_pass_is_the_papers_equations_coded_anew():
    net, x = model().eval(), torch.rand(1, 1, 16, 16)
    logits, places, log_pi, b = net(x)
    h = torch.zeros(6)
    for t in range(3):
        place = torch.tanh(net.locate[0].weight @ h + net.locate[0].bias)
        torch.testing.assert_close(places[0, t], place)
        torch.testing.assert_close(b[0, t], net.baseline.weight[0] @ h + net.baseline.bias[0])
        seen = glimpse(x, place[None], 4, 2).flatten()
        both = torch.cat([net.what.weight @ seen + net.what.bias, net.where.weight @ place + net.where.bias])
        g = (net.g.weight @ both.clamp(min=0) + net.g.bias).clamp(min=0)
        h = (net.W_h.weight @ h + net.W_h.bias + net.W_g.weight @ g + net.W_g.bias).clamp(min=0)
    torch.testing.assert_close(logits[0], net.answer.weight @ h + net.answer.bias)
    highest = -torch.log(torch.tensor(2 * torch.pi * 0.2**2))  # of a density over the plane, at its mean
    torch.testing.assert_close(log_pi[0], highest.expand(3))


def test_places_are_drawn_in_training_and_stay_in_the_image():
    net, x = model().train(), torch.rand(500, 1, 16, 16)
    _, places, log_pi, _ = net(x)
    assert places.abs().max() <= 1 and places[:, 0].std(dim=0).sub(0.2).abs().max() < 0.03
    # A draw is one squared width off along each of two axes, on average: that lowers log pi by 1.
    expected = -math.log(2 * math.pi * 0.2**2) - 1
    assert log_pi[:, 0].mean().item() == pytest.approx(expected, abs=0.15)
    net.locate[0].bias.data.fill_(5.0)  # the mean is in the corner, and half of all draws are beyond each edge
    assert net(x)[1].max() == 1


def test_the_answer_trains_the_reader_and_the_reward_the_places_alone():
    net, x = model().train(), torch.rand(4, 1, 16, 16)
    net(x)[0].sum().backward()
    assert all(p.grad is None for part in (net.locate, net.baseline) for p in part.parameters())
    assert all(p.grad is not None for part in (net.what, net.g, net.W_h, net.answer) for p in part.parameters())
    net.zero_grad(set_to_none=True)
    score_function_loss(net(x)[2], torch.rand(4, 1)).backward()
    moved = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None}
    assert moved == {"locate"}
    net.zero_grad(set_to_none=True)
    net(x)[3].sum().backward()
    moved = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None}
    assert moved == {"baseline"}
