"""Two colour planes of two digits each; a frame names the plane, light the half. Which gates find the digit?

Both: with every seed the two together read more than one kind alone, which reads about the half of the digits that it
names, or fewer. Gates on places alone are hardly better than none. But this is so only because the network ends in a
mean over all places, to which the other half adds its digit. With a maximum there, gates on channels find most digits
without gates on places, and these added nothing in one seed that was tried: perhaps the layers in between put out what
is not lit.
"""

import torch
from torch import Tensor, nn

from atbook.demos.toy import SIZE, accuracy, draw, fit, paste
from atbook.mechanisms.cbam import CBAM
from atbook.names import choose

CHANCE = 10.0  # percent: ten digits
ARMS = ("no gates", "channels", "places", "channels and places", "no cue", "channels, maximum at the end")
CHANNELS = ("channels", "channels and places", "no cue", "channels, maximum at the end")  # arms with these gates
PLACES = ("places", "channels and places", "no cue")
PLANES, HALVES = 2, 2
LIGHT = 0.4  # of the named half, in all planes; strokes go up to 1
FEATURES = 8  # channels of each plane


def task(n: int, train: bool, seed: int, cue: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images `(n, 2, 32, 32)`, the named digit `(n,)`, the number of its plane `(n,)` and of its half `(n,)`.

    The frame tells of the plane alone, the light of the half alone: left or right, in which the height of a digit is
    random. Who knows one of them can read a half, and who knows neither, as without the cue, a quarter, beside lucky
    guesses.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.zeros(PLANES, n, SIZE, SIZE), torch.zeros(n, PLANES, HALVES, dtype=torch.int64)
    for plane in range(PLANES):
        for half in range(HALVES):
            digit, labels[:, plane, half] = draw(n, train, generator)
            top, left = torch.randint(SIZE - 15, (n,), generator=generator), torch.full((n,), 16 * half)
            paste(images[plane], digit, top, left)
    plane = torch.randint(PLANES, (n,), generator=generator)
    half = torch.randint(HALVES, (n,), generator=generator)
    if cue:
        lit = (torch.arange(SIZE) // 16 == half[:, None])[:, None]
        images = images.maximum(LIGHT * lit)
        framed = images[plane, torch.arange(n)]
        framed[:, [0, -1], :] = framed[:, :, [0, -1]] = 1.0
        images[plane, torch.arange(n)] = framed
    return images.transpose(0, 1), labels[torch.arange(n), plane, half], plane, half


class Reader(nn.Module):
    """A small network that reads a digit. Its first layer keeps the planes apart; the gates follow.

    At the end comes the mean over all places, as in residual networks, or in one arm the maximum.
    """

    def __init__(self, arm: str) -> None:
        super().__init__()
        width = PLANES * FEATURES
        self.first = nn.Sequential(
            nn.Conv2d(PLANES, width, 3, padding=1, groups=PLANES), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.cbam = CBAM(width, hidden=width // 2)
        if arm not in CHANNELS:
            self.cbam.channel = nn.Identity()
        if arm not in PLACES:
            self.cbam.space = nn.Identity()
        pool = nn.AdaptiveMaxPool2d if arm == "channels, maximum at the end" else nn.AdaptiveAvgPool2d
        self.last = nn.Sequential(
            nn.Conv2d(width, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), pool(1),
            nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cbam(self.first(x)))


def run(arm: str, seed: int, steps: int = 600) -> tuple[float, dict[str, Tensor]]:
    """Train one arm.

    Returns:
        Accuracy in percent on 2,000 new images of digits not trained on; and, of the first six of them, ``images``
        `(6, 2, 32, 32)`, ``plane`` and ``half`` `(6,)`; with gates on channels ``gates`` `(6, 16)`, eight for each
        plane, with gates on places ``mask`` `(6, 16, 16)`.

    Raises:
        ValueError: for an unknown arm.
    """
    choose("arm", arm, ARMS)
    torch.manual_seed(seed)
    model, cue = Reader(arm), arm != "no cue"
    images, labels, _, _ = task(4000, True, seed, cue)
    fit(model, lambda x, y: nn.functional.cross_entropy(model(x), y), (images, labels), steps, seed, lr=3e-3, batch=32)
    images, labels, plane, half = task(2000, False, 1000 + seed, cue)
    picture = {"images": images[:6], "plane": plane[:6], "half": half[:6]}
    with torch.no_grad():
        score, F = accuracy(model(images), labels), model.first(images[:6])
        if arm in CHANNELS:
            picture["gates"] = model.cbam.channel.gates(F)
        if arm in PLACES:
            picture["mask"] = model.cbam.space.gates(model.cbam.channel(F))
    return score, picture
