"""Glimpses: see small parts only, and learn from a reward where to look (Mnih et al., NeurIPS 2014, arXiv 1406.6247).

Choosing a part has no derivative, so where to look is learned by the score function. Ba et al. (ICLR 2015, arXiv
1412.7755) read several digits of one image so.
"""

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample


def glimpse(x: Tensor, places: Tensor, size: int, scales: int = 1) -> Tensor:
    """rho(x, l): squares around a place, each twice as wide as the one before, all shrunk to ``size`` pixels.

    Args:
        x: images `(N, C, H, W)`; beyond their edges all is 0.
        places: l `(N, 2)`, (x, y) of the middle, from -1 (left or upper edge) to 1.
        size: pixels, height and width of the first square.
        scales: number of squares.

    Returns:
        `(N, scales * C, size, size)`.
    """
    n, channels, height, width = x.shape
    seen = []
    for scale in (2**k for k in range(scales)):
        side = size * scale
        zoom = torch.tensor([side / width, side / height], device=x.device)
        theta = torch.cat([torch.diag(zoom).expand(n, 2, 2), places[:, :, None]], dim=2)
        patch = grid_sample(x, affine_grid(theta, [n, channels, side, side], align_corners=False), align_corners=False)
        seen.append(avg_pool2d(patch, scale))
    return torch.cat(seen, dim=1)


def score_function_loss(log_pi: Tensor, reward: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    """-mean of (R - b) log pi(a), whose gradient is on average that of -E[R] (REINFORCE; section 3.1 of Mnih et al.).

    A baseline b that does not depend on the action leaves that average as it is, and can lower the variance.
    Reward and baseline are taken as numbers: no gradient goes through them.

    Args:
        log_pi: log-probabilities of the actions taken, any shape.
        reward, baseline: of a shape that broadcasts to it.
    """
    return -((reward - baseline).detach() * log_pi).mean()


class RecurrentAttention(nn.Module):
    """Looks ``glimpses`` times, then answers: h_t = relu(W_h h_t-1 + W_g g_t), where g_t is what was seen, and where.

    Where to look next is drawn from a normal distribution of width ``sigma`` around tanh(W_l h_t-1); h_0 is 0. In
    evaluation mode its mean is taken. The loss of the answer trains all but the places and the baseline, which see h
    as a number: those are trained by `score_function_loss` and by regression on the reward.
    """

    def __init__(self, size: int, scales: int, classes: int, hidden: int, glimpses: int, sigma: float) -> None:
        super().__init__()
        self.size, self.scales, self.hidden, self.glimpses, self.sigma = size, scales, hidden, glimpses, sigma
        self.what, self.where = nn.Linear(scales * size**2, hidden), nn.Linear(2, hidden)
        self.g = nn.Linear(2 * hidden, hidden)
        self.W_h, self.W_g = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.locate, self.baseline = nn.Sequential(nn.Linear(hidden, 2), nn.Tanh()), nn.Linear(hidden, 1)
        self.answer = nn.Linear(hidden, classes)

    def look(self, x: Tensor, place: Tensor) -> Tensor:
        """g_t `(N, hidden)`: images of one channel and places `(N, 2)`, what is seen there, and where it is."""
        seen = glimpse(x, place, self.size, self.scales).flatten(1)
        return torch.relu(self.g(torch.relu(torch.cat([self.what(seen), self.where(place)], dim=1))))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images `(N, 1, H, W)` -> logits `(N, K)`, and of each glimpse place `(N, T, 2)`, log pi and b `(N, T)`."""
        h, made = x.new_zeros(len(x), self.hidden), []
        for _ in range(self.glimpses):
            around = Normal(self.locate(h.detach()), self.sigma)
            drawn = around.sample() if self.training else around.mean.detach()
            place = drawn.clamp(-1, 1)
            made.append((place, around.log_prob(drawn).sum(dim=1), self.baseline(h.detach())[:, 0]))
            h = torch.relu(self.W_h(h) + self.W_g(self.look(x, place)))
        return self.answer(h), *(torch.stack(part, dim=1) for part in zip(*made, strict=True))
