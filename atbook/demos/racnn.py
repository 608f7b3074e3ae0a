"""A digit too small to read once the image is shrunk: does a network learn where to look closer from being surer there?

It does: the rank loss alone moves the square towards the digit, from 8 pixels off to 3.5, and the digit is read better
than in the whole image. The cross-entropy of the closer look teaches it as well. Neither zooms in: the squares stay as
large as those of random weights. It works for a second reader that can read digits of all sizes to begin with, and with
views that are means of finer samples; before, the square ran to the border, or stayed wide.

Both readers see 16x16 pixels: one the whole image, shrunk; the other what the proposed square holds, enlarged. The
authors first teach the proposal to point at the strongest activation; here it starts from random weights.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn

from atbook.demos.toy import SIZE, accuracy, draw, fit, paste
from atbook.mechanisms.racnn import AttentionProposal, rank_loss, zoom
from atbook.names import choose

CHANCE = 10.0  # percent: ten digits
ARMS = ("whole image", "proposal not trained", "rank loss", "cross-entropy", "true square")
VIEW = 16  # pixels, height and width of what a network sees
DIGIT = 10  # pixels, height and width of a digit
LEAST, MOST = 6.0, 12.0  # half of the side of a proposed square, in pixels


def task(n: int, train: bool, seed: int, scraps: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Images `(n, 1, 32, 32)` of a small digit and scraps of others, labels `(n,)`, true squares `(n, 3)`."""
    generator = torch.Generator().manual_seed(seed)
    canvas = torch.zeros(n, SIZE, SIZE)
    for _ in range(scraps):
        scrap = draw(n, train, generator)[0][:, 6:10, 6:10]
        paste(canvas, scrap, *torch.randint(SIZE - 3, (2, n), generator=generator))
    digit, labels = draw(n, train, generator)
    digit = nn.functional.interpolate(digit[:, None], size=DIGIT, mode="area")[:, 0]
    low, high = int(LEAST) - DIGIT // 2, SIZE - int(LEAST) - DIGIT // 2
    left, top = torch.randint(low, high + 1, (2, n), generator=generator)
    paste(canvas, digit, top, left)
    squares = torch.stack([left + DIGIT / 2, top + DIGIT / 2, torch.full((n,), LEAST)], dim=1)
    return canvas[:, None], labels, squares


class Reader(nn.Module):
    """Reads a digit in a view of 16x16 pixels; a proposal can be made from its features."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.classify = nn.Linear(32 * (VIEW // 4) ** 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))


def view(x: Tensor, squares: Tensor) -> Tensor:
    """What the squares hold `(N, 1, 16, 16)`: every pixel is a mean of four. Of one, the gradient is mostly noise."""
    return nn.functional.avg_pool2d(zoom(x, squares, 2 * VIEW), 2)


class TwoScales(nn.Module):
    """A reader of the whole image, a proposal made from its features, and a reader of the square."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.readers = nn.ModuleList([deepcopy(reader), deepcopy(reader)])
        self.propose = AttentionProposal(reader.classify.in_features, SIZE, LEAST, MOST)

    def whole(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, SIZE // VIEW)

    def squares(self, x: Tensor) -> Tensor:
        """The proposed squares `(N, 3)`, learned without changing the reader whose features they are made from."""
        with torch.no_grad():
            features = self.readers[0].features(self.whole(x))
        return self.propose(features)

    def reading_loss(self, x: Tensor, y: Tensor, squares: Tensor) -> Tensor:
        """Cross-entropy of both readers, the second's on what the squares hold."""
        coarse, fine = self.readers[0](self.whole(x)), self.readers[1](view(x, squares))
        return nn.functional.cross_entropy(coarse, y) + nn.functional.cross_entropy(fine, y)

    def looking_loss(self, arm: str, x: Tensor, y: Tensor) -> Tensor:
        """What the proposal learns from: how the second reader does on what it proposes."""
        fine = self.readers[1](view(x, self.squares(x)))
        if arm == "cross-entropy":
            return nn.functional.cross_entropy(fine, y)
        with torch.no_grad():
            coarse = self.readers[0](self.whole(x))
        return rank_loss(*(logits.softmax(dim=1).gather(1, y[:, None])[:, 0] for logits in (coarse, fine)))


def around(squares: Tensor) -> Tensor:
    """Random squares `(N, 3)` that hold the digits of the true squares `(N, 3)`."""
    half = LEAST + (MOST - LEAST) * torch.rand(len(squares), 1)
    return torch.cat([squares[:, :2] + (half - DIGIT / 2) * (2 * torch.rand(len(squares), 2) - 1), half], dim=1)


def pretrained(seed: int, steps: int) -> Reader:
    """A reader that has seen digits of all sizes without scraps: it stands for the authors' that has seen ImageNet."""
    torch.manual_seed(seed)
    reader = Reader()

    def loss(x: Tensor, y: Tensor, true: Tensor) -> Tensor:
        return nn.functional.cross_entropy(reader(view(x, around(true))), y)

    fit(reader, loss, task(6000, True, 500 + seed, scraps=0), steps, seed, lr=5e-3, batch=32)
    return reader


def train(arm: str, seed: int, steps: int) -> TwoScales:
    """By turns, as the authors do: the readers learn to read, the proposal to look, then the readers again."""
    reader, data = pretrained(seed, steps), task(6000, True, seed)
    torch.manual_seed(seed)
    model = TwoScales(reader)

    def reading(x: Tensor, y: Tensor, true: Tensor) -> Tensor:
        with torch.no_grad():
            seen = true if arm == "true square" else model.squares(x)
        return model.reading_loss(x, y, seen)

    def looking(x: Tensor, y: Tensor, true: Tensor) -> Tensor:
        return model.looking_loss(arm, x, y)

    fit(model.readers, reading, data, steps // 2, seed, lr=5e-3, batch=32)
    if arm in ("rank loss", "cross-entropy"):
        fit(model.propose, looking, data, 2 * steps, seed, lr=2e-3, batch=32)
    fit(model.readers, reading, data, steps // 2, seed, lr=5e-3, batch=32)
    return model


def run(arm: str, seed: int, steps: int = 300) -> tuple[float, dict[str, Tensor]]:
    """Train one arm.

    Returns:
        Accuracy in percent, of the last network that the arm has, on 2,000 new images of digits not trained on; and,
        of the first six of them, ``images`` `(6, 1, 32, 32)` and, unless the arm sees the whole, its ``squares``
        `(6, 3)` and what they hold, ``views`` `(6, 1, 16, 16)`, and ``off``, the mean distance of a square's centre
        from that of the digit in pixels, over all 2,000.

    Raises:
        ValueError: if there is no such arm.
    """
    choose("arm", arm, ARMS)
    model = train(arm, seed, steps)
    images, labels, squares = task(2000, False, 1000 + seed)
    picture = {"images": images[:6]}
    with torch.no_grad():
        if arm == "whole image":
            return accuracy(model.readers[0](model.whole(images)), labels), picture
        t = squares if arm == "true square" else model.squares(images)
        views = view(images, t)
        logits = model.readers[1](views)
    picture |= {"squares": t[:6], "views": views[:6], "off": (t - squares)[:, :2].norm(dim=1).mean()}
    return accuracy(logits, labels), picture
