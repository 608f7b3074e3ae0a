"""A digit somewhere among scraps of others: can a network learn where to look from the label alone?

All arms read 16x16 pixels that are sampled from the image, with the same reader. The transformers have a second
network, which says from where; nobody tells it.

It can: the window comes to within about 2 pixels of the digit. Six free numbers do as well as a window that is only
moved and cannot leave the image, so the bound is not needed here. But a window without bounds, moved by a network
without batch norm on its hidden layer, was once seen to leave the image, and no gradient brings it back.
"""

import torch
from torch import Tensor, nn

from atbook.demos.toy import SIZE, accuracy, draw, fit, paste
from atbook.mechanisms.spatial_transformer import SpatialTransformer, affine_grid, attention, sample
from atbook.names import choose

CHANCE = 10.0  # percent: ten digits
ARMS = ("whole image", "middle", "random window", "six numbers", "transformer", "true window")
SCRAPS, SCRAP = 4, 6  # how many, and their height and width in pixels
WINDOW = 16  # pixels, height and width of what is read, and of a digit


def task(n: int, train: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images `(n, 1, 32, 32)`, the digit in each `(n,)`, and its middle `(n, 2)`, (x, y) in -1 to 1.

    The scraps are cut from other digits; like the digit, they lie anywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(n, SIZE, SIZE)
    for _ in range(SCRAPS):
        other, _ = draw(n, train, generator)
        row, column = torch.randint(3, WINDOW - SCRAP - 2, (2,), generator=generator).tolist()
        top, left = torch.randint(SIZE - SCRAP + 1, (2, n), generator=generator)
        paste(images, other[:, row : row + SCRAP, column : column + SCRAP], top, left)
    digit, labels = draw(n, train, generator)
    top, left = torch.randint(SIZE - WINDOW + 1, (2, n), generator=generator)
    paste(images, digit, top, left)
    middles = torch.stack([left, top], dim=1) + WINDOW / 2
    return images[:, None], labels, middles / (SIZE / 2) - 1


class Localisation(nn.Module):
    """Images, shrunk to half -> A `(N, 2, 3)`: six free numbers, or a window of 16x16 pixels that stays in the image.

    Both start in the middle.
    """

    def __init__(self, free: bool) -> None:
        super().__init__()
        self.free = free
        self.layers = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Flatten(), nn.Linear(2048, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 6 if free else 2),
        )  # fmt: skip
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        scale, made = WINDOW / SIZE, self.layers(x)
        if self.free:
            return attention(scale, torch.zeros(len(x), 2)) + made.view(-1, 2, 3)
        return attention(scale, (1 - scale) * torch.tanh(made))


def fixed(arm: str, middles: Tensor) -> Tensor:
    """A `(N, 2, 3)` of the arms in which nothing is to be learnt about the place."""
    if arm == "whole image":
        return attention(1.0, torch.zeros_like(middles))
    anywhere = (1 - WINDOW / SIZE) * (2 * torch.rand_like(middles) - 1)
    t = {"middle": torch.zeros_like(middles), "random window": anywhere, "true window": middles}[arm]
    return attention(WINDOW / SIZE, t)


class Reader(nn.Module):
    """Reads a digit of 16x16 pixels from where the arm looks."""

    def __init__(self, arm: str) -> None:
        super().__init__()
        self.arm = arm
        if arm in ("six numbers", "transformer"):
            self.transformer = SpatialTransformer(Localisation(free=arm == "six numbers"), WINDOW)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(512, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, x: Tensor, middles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images and, for the true window, the middles -> logits `(N, 10)`, the pixels that are read, and A."""
        if self.arm in ("six numbers", "transformer"):
            V, A = self.transformer(x)
        else:
            A = fixed(self.arm, middles)
            V = sample(x, affine_grid(A, WINDOW, WINDOW))
        return self.layers(V), V, A


def run(arm: str, seed: int, steps: int = 600) -> tuple[float, dict[str, Tensor]]:
    """Train one arm.

    Returns:
        Accuracy in percent on 2,000 new images of digits not trained on; of the first six of them ``images``
        `(6, 1, 32, 32)`, ``middles`` `(6, 2)`, what was ``read`` `(6, 1, 16, 16)` and ``A`` `(6, 2, 3)`; and ``off``,
        how far in pixels the middle of the window is from that of the digit, the mean over all.

    Raises:
        ValueError: for an unknown arm.
    """
    choose("arm", arm, ARMS)
    torch.manual_seed(seed)
    model = Reader(arm)

    def loss(x: Tensor, y: Tensor, middles: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x, middles)[0], y)

    fit(model, loss, task(4000, True, seed), steps, seed, batch=32)
    images, labels, middles = task(2000, False, 1000 + seed)
    with torch.no_grad():
        logits, V, A = model(images, middles)
    picture = {"images": images[:6], "middles": middles[:6], "read": V[:6], "A": A[:6]}
    picture["off"] = (A[:, :, 2] - middles).norm(dim=1).mean() * SIZE / 2
    return accuracy(logits, labels), picture
