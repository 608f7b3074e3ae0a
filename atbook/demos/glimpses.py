"""A digit among pieces of others, seen through a small window: can a reward teach where the window should be?

A little, in so few steps: both policies stay far from the right window. With the mean reward of the batch as baseline
the policy is better than without in the mean of the recorded seeds, but not with every seed. A baseline lowers the
variance of a gradient (the tests count this out), which need not show in one short training.

Five glimpses of a smaller window do better than five random ones and still read few digits. They come hardly nearer to
the digit than random ones; five fixed places were not tried.
"""

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn.functional import avg_pool2d, cross_entropy

from atbook.demos.toy import SIZE, accuracy, draw, fit, paste
from atbook.mechanisms.glimpses import RecurrentAttention, glimpse, score_function_loss
from atbook.names import choose

CHANCE = 10.0  # percent: ten digits
ONE = ("random window", "no baseline", "baseline", "right window")
FIVE = ("five random glimpses", "five glimpses")
ARMS = ONE + FIVE
WINDOW, STRIDE = 16, 4  # pixels
PIECES, PIECE = 3, 6  # of clutter; pixels, height and width


def windows() -> Tensor:
    """Middles of the 25 windows, row by row: (x, y) from -1 to 1, `(25, 2)`."""
    middles = (torch.arange(0, SIZE - WINDOW + 1, STRIDE) + WINDOW / 2) * 2 / SIZE - 1
    return torch.cartesian_prod(middles, middles).flip(1)


def task(n: int, train: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images `(n, 1, 32, 32)`, the whole digit's label `(n,)` and its middle `(n, 2)`, (x, y) from -1 to 1.

    A digit of 16x16 pixels and three pieces of 6x6, each cut out of another digit, lie anywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(n, SIZE, SIZE)
    for _ in range(PIECES):
        other, _ = draw(n, train, generator)
        cut = torch.randint(WINDOW - PIECE + 1, (2, n, 1), generator=generator) + torch.arange(PIECE)
        pieces = other[torch.arange(n)[:, None, None], cut[0][:, :, None], cut[1][:, None, :]]
        paste(images, pieces, *torch.randint(SIZE - PIECE + 1, (2, n), generator=generator))
    digit, labels = draw(n, train, generator)
    top, left = torch.randint(SIZE - WINDOW + 1, (2, n), generator=generator)
    paste(images, digit, top, left)
    return images[:, None], labels, (torch.stack([left, top], dim=1) + WINDOW / 2) * 2 / SIZE - 1


class OneWindow(nn.Module):
    """A reader that sees one of 25 windows, and a policy that chooses it from the whole image at half its size."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * (SIZE // 4) ** 2, 64), nn.ReLU(),
        )  # fmt: skip
        self.policy = nn.Linear(64, len(windows()))
        self.reader = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * (WINDOW // 4) ** 2, 10),
        )  # fmt: skip

    def read(self, x: Tensor, window: Tensor) -> Tensor:
        """Images and numbers of windows `(n,)` -> logits `(n, 10)`."""
        return self.reader(glimpse(x, windows()[window], WINDOW))

    def choice(self, x: Tensor) -> Categorical:
        """The policy pi over windows."""
        return Categorical(logits=self.policy(self.features(avg_pool2d(x, 2))))


def nearest(middles: Tensor) -> Tensor:
    """The window whose middle is nearest to a point: `(n, 2)` -> `(n,)`."""
    return (middles[:, None] - windows()).norm(dim=2).argmin(dim=1)


def others(reward: Tensor) -> Tensor:
    """Mean reward of the batch's other images, which does not depend on the choice in this one: `(n,)` -> `(n,)`."""
    return (reward.sum() - reward) / (len(reward) - 1)


def one_window_loss(model: OneWindow, arm: str, x: Tensor, y: Tensor, middles: Tensor) -> Tensor:
    """Loss of the reader, and for a policy that of the policy: reward is minus the reader's cross-entropy."""
    if arm == "random window":
        return cross_entropy(model.read(x, torch.randint(len(windows()), (len(x),))), y)
    if arm == "right window":
        return cross_entropy(model.read(x, nearest(middles)), y)
    pi = model.choice(x)
    window = pi.sample()
    wrong = cross_entropy(model.read(x, window), y, reduction="none")
    reward = -wrong.detach()
    baseline = others(reward) if arm == "baseline" else 0.0
    return wrong.mean() + score_function_loss(pi.log_prob(window), reward, baseline)


def look_once(model: OneWindow, arm: str, x: Tensor, middles: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `(n, 10)` and the place looked at `(n, 1, 2)`; of a policy, the likeliest."""
    if arm in ("random window", "right window"):
        window = nearest(middles) if arm == "right window" else torch.randint(len(windows()), (len(x),))
    else:
        window = model.choice(x).probs.argmax(dim=1)
    return model.read(x, window), windows()[window][:, None]


class Anywhere(nn.Module):
    """Stands in for the layer that says where to look next."""

    def forward(self, h: Tensor) -> Tensor:
        return 2 * torch.rand(len(h), 2) - 1


def five_glimpses_loss(model: RecurrentAttention, x: Tensor, y: Tensor) -> Tensor:
    """Loss of the answer, of the places (reward 1 for a right answer, 0 otherwise) and of the baseline."""
    logits, _, log_pi, b = model(x)
    reward = (logits.argmax(dim=1) == y).float()[:, None]
    return cross_entropy(logits, y) + score_function_loss(log_pi, reward, b) + (reward - b).square().mean()


def run(arm: str, seed: int, steps: int = 1100) -> tuple[float, dict[str, Tensor]]:
    """Train one arm.

    Returns:
        Accuracy in percent on 2,000 new images of digits not trained on; and, of the first six of them, ``images``
        `(6, 1, 32, 32)`, ``middles`` of the digits `(6, 2)` and ``places`` that were looked at `(6, T, 2)`, all (x, y)
        from -1 to 1; and ``off``, how far in pixels the nearest place looked at is from the digit's middle, on average.

    Raises:
        ValueError: for an unknown arm.
    """
    choose("arm", arm, ARMS)
    torch.manual_seed(seed)
    model = OneWindow() if arm in ONE else RecurrentAttention(8, 2, classes=10, hidden=128, glimpses=5, sigma=0.15)
    if arm == "five random glimpses":
        model.locate = Anywhere()

    def loss(x: Tensor, y: Tensor, middles: Tensor) -> Tensor:
        return one_window_loss(model, arm, x, y, middles) if arm in ONE else five_glimpses_loss(model, x, y)

    fit(model, loss, task(6000, True, seed), steps, seed, lr=3e-3)
    images, labels, middles = task(2000, False, 1000 + seed)
    with torch.no_grad():
        logits, places = look_once(model, arm, images, middles) if arm in ONE else model(images)[:2]
    off = (places - middles[:, None]).norm(dim=2).amin(dim=1).mean() * SIZE / 2
    picture = {"images": images[:6], "middles": middles[:6], "places": places[:6], "off": off}
    return accuracy(logits, labels), picture
