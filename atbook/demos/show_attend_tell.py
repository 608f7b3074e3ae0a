"""Three digits to be written down from left to right: does it help to look at one place for each?

It does. The controls are given the same images and as many steps: an equal mean of all places, and one vector that may
depend on all of them. With one of five seeds it learned nothing; with the regulariser all
five did, though three words cannot look at 128 places for one step each.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from atbook.demos.toy import SIZE, draw, fit, paste
from atbook.mechanisms.show_attend_tell import ShowAttendTell, doubly_stochastic
from atbook.names import choose

CHANCE = 0.1  # percent: three digits, each guessed
ARMS = ("mean of all places", "one vector", "order unknown", "attention, doubly stochastic", "attention")
DIGITS = 3
WIDTH = 2 * SIZE  # pixels
CELL = 4  # pixels, height and width of the place of one annotation vector


def task(n: int, train: bool, seed: int, ordered: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Images `(n, 1, 32, 64)`, the digits to write `(n, 3)`, and the middles of these `(n, 3, 2)`, (x, y) in pixels.

    The digits do not overlap; gaps and heights are random. If not ``ordered``, the three are to be written in an order
    that was shuffled for each image, which can be right with probability 1/6, beside that of equal digits.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels, middles = torch.zeros(n, SIZE, WIDTH), [], []
    gaps = torch.rand(n, DIGITS, generator=generator).sort(dim=1).values * (WIDTH - DIGITS * 16 + 1)
    for k, gap in enumerate(gaps.long().unbind(dim=1)):
        digit, label = draw(n, train, generator)
        left, top = gap + 16 * k, torch.randint(SIZE - 15, (n,), generator=generator)
        paste(images, digit, top, left)
        labels.append(label)
        middles.append(torch.stack([left, top], dim=1) + 8.0)
    order = torch.arange(DIGITS).repeat(n, 1)
    if not ordered:
        order = torch.rand(n, DIGITS, generator=generator).argsort(dim=1)
    at = torch.arange(n)[:, None], order
    return images[:, None], torch.stack(labels, dim=1)[at], torch.stack(middles, dim=1)[at]


class Encoder(nn.Module):
    """Images `(N, 1, 32, 64)` -> annotation vectors `(N, 128, 32)`, row by row; or, for ``one``, `(N, 1, 128)`.

    The row and the column of each pixel are further planes of the input, so that a vector knows its place.
    """

    def __init__(self, one: bool) -> None:
        super().__init__()
        self.one = nn.Linear(32 * SIZE * WIDTH // CELL**2, 128) if one else None
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        )  # fmt: skip
        rows, columns = torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, WIDTH)
        self.register_buffer("places", torch.stack(torch.meshgrid(rows, columns, indexing="ij")))

    def forward(self, x: Tensor) -> Tensor:
        a = self.layers(torch.cat([x, self.places.expand(len(x), -1, -1, -1)], dim=1)).flatten(2)
        return a.mT if self.one is None else torch.relu(self.one(a.flatten(1)))[:, None]


class Everywhere(nn.Module):
    """Stands in for attention: looks at all places equally."""

    def forward(self, a: Tensor, h: Tensor) -> Tensor:
        return a.new_full(a.shape[:2], 1 / a.shape[1])


class Reader(nn.Module):
    """An encoder and a writer. ``one vector`` has a single annotation: a linear map of all that the encoder found."""

    def __init__(self, arm: str) -> None:
        super().__init__()
        self.encoder = Encoder(one=arm == "one vector")
        self.writer = ShowAttendTell(128 if arm == "one vector" else 32, words=10, hidden=64)
        if arm == "mean of all places":
            self.writer.attention = Everywhere()


def middle(alpha: Tensor) -> Tensor:
    """Centre of mass, (x, y) in pixels, of weights over all places, rows first: `(..., 128)` -> `(..., 2)`."""
    alpha = alpha.unflatten(-1, (SIZE // CELL, WIDTH // CELL))
    y, x = (CELL * (torch.arange(length) + 0.5) for length in alpha.shape[-2:])
    return torch.stack([(alpha.sum(dim=-2) * x).sum(dim=-1), (alpha.sum(dim=-1) * y).sum(dim=-1)], dim=-1)


def run(arm: str, seed: int, steps: int = 450) -> tuple[float, dict[str, Tensor]]:
    """Train one arm.

    Returns:
        Share of 1,000 new images, in percent, of which all three digits are written right, digits not trained on; and,
        of the first six of them, ``images`` `(6, 1, 32, 64)`, ``labels`` and what was ``written`` `(6, 3)`; with
        attention also ``alpha`` `(6, 3, 8, 16)`, and ``off``, how far in pixels the middle of the weights is from that
        of the digit, the mean over all 1,000.

    Raises:
        ValueError: for an unknown arm.
    """
    choose("arm", arm, ARMS)
    torch.manual_seed(seed)
    model = Reader(arm)
    images, labels, _ = task(6000, True, seed, ordered=arm != "order unknown")

    def loss(x: Tensor, y: Tensor) -> Tensor:
        logits, alpha = model.writer(model.encoder(x), y)
        extra = doubly_stochastic(alpha) if arm == "attention, doubly stochastic" else 0
        return cross_entropy(logits.flatten(0, 1), y.flatten()) + extra

    fit(model, loss, (images, labels), steps, seed, lr=5e-3, batch=32)
    images, labels, middles = task(1000, False, 1000 + seed, ordered=arm != "order unknown")
    with torch.no_grad():
        written, alpha = model.writer.write(model.encoder(images), DIGITS)
    picture = {"images": images[:6], "labels": labels[:6], "written": written[:6]}
    if arm not in ("mean of all places", "one vector"):
        picture["alpha"] = alpha[:6].unflatten(2, (SIZE // CELL, WIDTH // CELL))
        picture["off"] = (middle(alpha) - middles).norm(dim=2).mean()
    return 100 * (written == labels).all(dim=1).float().mean().item(), picture
