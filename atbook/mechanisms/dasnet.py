"""dasNet: a trained network sets its channels anew and looks again (Stollenga et al., NeurIPS 2014, arXiv 1407.3068).

The rule that sets them is found without gradients, by SNES (Schaul et al., GECCO 2011; Wierstra et al., JMLR 2014).
"""

import math

import torch
from torch import Tensor, nn


class DasNet(nn.Module):
    """Passes an image several times; the gains on C channels depend on what the last pass showed.

    o_t: the means of the C channels after their gains, the class probabilities, and a constant 1. The gains of the next
    pass are a_t = C softmax(theta o_t): they sum to C. All are 1 in the first pass, and in all if theta is 0.

    Args:
        before: images to the activation `(N, C, H, W)` whose channels get gains.
        after: from there to the logits `(N, K)`. The parameters of both are frozen here.
        channels, classes: C and K.
        passes: T, 1 or more.
    """

    def __init__(self, before: nn.Module, after: nn.Module, channels: int, classes: int, passes: int) -> None:
        super().__init__()
        self.before, self.after, self.passes = before.requires_grad_(False), after.requires_grad_(False), passes
        self.theta = nn.Parameter(torch.zeros(channels, channels + classes + 1))

    def gains(self, U: Tensor, logits: Tensor, theta: Tensor) -> Tensor:
        """a `(N, C)`, positive, of an activation after its gains, the logits made of it, and a rule theta."""
        o = torch.cat([U.mean(dim=(2, 3)), logits.softmax(dim=1), torch.ones_like(logits[:, :1])], dim=1)
        return U.shape[1] * (o @ theta.T).softmax(dim=1)

    def passes_of(self, U: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """All T passes: activation `(N, C, H, W)` -> logits `(N, T, K)` and gains `(N, T, C)`."""
        a, made = torch.ones_like(U[:, :, 0, 0]), []
        for _ in range(self.passes):
            gated = a[:, :, None, None] * U
            logits = self.after(gated)
            made.append((logits, a))
            a = self.gains(gated, logits, theta)
        return tuple(torch.stack(part, dim=1) for part in zip(*made, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Images -> logits of the last pass `(N, K)`."""
        return self.passes_of(self.before(x), self.theta)[0][:, -1]


class SNES:
    """Separable natural evolution strategy: a normal distribution, one width an axis, moves to where fitness is high.

    Each generation draws z_k, is told the fitness of mu + sigma z_k, and takes utilities u_k of their ranks:
    mu += rate sigma sum u_k z_k, and sigma *= exp(eta / 2 sum u_k (z_k^2 - 1)) with eta = (3 + ln d) / (5 sqrt d).
    The z_k come in pairs of opposite signs.

    Args:
        mu: where to begin `(d,)`.
        sigma: the width to begin with.
        population: how many are drawn, an even number.
        rate: eta_mu; 1 in the papers.
        seed: of what is drawn.
    """

    def __init__(self, mu: Tensor, sigma: float, population: int, rate: float, seed: int) -> None:
        if population < 2 or population % 2:
            raise ValueError(f"population {population} cannot be drawn in pairs: take an even number of 2 or more")
        self.mu, self.sigma, self.rate = mu, torch.full_like(mu, sigma), rate
        self.eta = (3 + math.log(len(mu))) / (5 * math.sqrt(len(mu)))
        self.population, self.generator = population, torch.Generator().manual_seed(seed)

    def ask(self) -> Tensor:
        """The next generation: points `(population, d)`."""
        half = torch.randn(self.population // 2, len(self.mu), generator=self.generator, dtype=self.mu.dtype)
        self.z = torch.cat([half, -half])
        return self.mu + self.sigma * self.z

    def tell(self, fitness: Tensor) -> None:
        """Move, given the fitness `(population,)` of the points asked for last; more is better."""
        z = self.z[fitness.argsort(descending=True)]
        u = utilities(self.population).to(z.dtype)
        self.mu = self.mu + self.rate * self.sigma * (u @ z)
        self.sigma = self.sigma * torch.exp(self.eta / 2 * (u @ (z.square() - 1)))


def utilities(population: int) -> Tensor:
    """u_k of the k-th best: max(0, ln(P/2 + 1) - ln k), scaled to sum 1, minus 1/P; so they sum to 0."""
    k = torch.arange(1, population + 1, dtype=torch.float64)
    u = (math.log(population / 2 + 1) - k.log()).clamp(min=0)
    return u / u.sum() - 1 / population
