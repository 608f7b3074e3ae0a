"""Three colour planes, each with a digit; a bright frame names the plane to read. Are gates on channels enough?

They are: with them, almost as much is read as when the other two planes are taken away beforehand. The mean over all
places has to show the cue, so the frame is thick. Without gates the same network, which also sees the frame, reads less
than half as much; twice as many steps help it a little.
"""

import torch
from torch import Tensor, nn

from atbook.demos.toy import SIZE, accuracy, draw, fit, paste
from atbook.mechanisms.squeeze_excitation import SqueezeExcitation
from atbook.names import choose

CHANCE = 10.0  # percent: ten digits
ARMS = ("no gate", "gate", "gate, no cue", "named plane alone")
FRAME = 3  # pixels, thickness of the frame; it adds a third to the mean of the named plane


def task(n: int, train: bool, seed: int, cue: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Images `(n, 3, 32, 32)`, the digit in the named plane `(n,)`, the plane's number `(n,)`.

    Without the cue no plane has a frame, and a third is all that can be read, beside lucky guesses.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.zeros(3, n, SIZE, SIZE), torch.zeros(3, n, dtype=torch.int64)
    for plane in range(3):
        digit, labels[plane] = draw(n, train, generator)
        top, left = torch.randint(FRAME + 2, SIZE - FRAME - 17, (2, n), generator=generator)
        paste(images[plane], digit, top, left)
    named = torch.randint(3, (n,), generator=generator)
    if cue:
        framed = images[named, torch.arange(n)]
        framed[:, :FRAME] = framed[:, -FRAME:] = framed[:, :, :FRAME] = framed[:, :, -FRAME:] = 1.0
        images[named, torch.arange(n)] = framed
    return images.transpose(0, 1), labels[named, torch.arange(n)], named


class Reader(nn.Module):
    """A small network that reads a digit; with ``gate``, its three input planes pass a gate first."""

    def __init__(self, gate: bool) -> None:
        super().__init__()
        self.gate = SqueezeExcitation(3, hidden=16) if gate else nn.Identity()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(512, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.gate(x))


def run(arm: str, seed: int, steps: int = 600) -> tuple[float, dict[str, Tensor]]:
    """Train one arm.

    Returns:
        Accuracy in percent on 2,000 new images of digits not trained on; and, of the first six of them, ``images``
        `(6, 3, 32, 32)`, ``named`` `(6,)` and, with a gate, ``gates`` `(6, 3)`.

    Raises:
        ValueError: for an unknown arm.
    """
    choose("arm", arm, ARMS)
    torch.manual_seed(seed)
    model = Reader(gate=arm.startswith("gate"))

    def data(n: int, train: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        images, labels, named = task(n, train, seed, cue=arm != "gate, no cue")
        if arm == "named plane alone":
            images = images * nn.functional.one_hot(named, 3)[:, :, None, None]
        return images, labels, named

    fit(model, lambda x, y, _: nn.functional.cross_entropy(model(x), y), data(4000, True, seed), steps, seed, 5e-3, 32)
    images, labels, named = data(2000, False, 1000 + seed)
    with torch.no_grad():
        score = accuracy(model(images), labels)
        picture = {"images": images[:6], "named": named[:6]}
        if arm.startswith("gate"):
            picture["gates"] = model.gate.gates(images[:6])
    return score, picture
