"""Three colour planes, each with a digit; a bright frame names the plane to read. Are gates on channels enough?"""

import torch
from torch import Tensor, nn

from atbook.demos.toy import SIZE, accuracy, draw, fit, paste
from atbook.mechanisms.squeeze_excitation import SqueezeExcitation

CHANCE = 10.0  # percent: ten digits
ARMS = ("no gate", "gate", "gate, no cue")


def task(n: int, train: bool, seed: int, cue: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Images `(n, 3, 32, 32)`, the digit in the named plane `(n,)`, the plane's number `(n,)`.

    Without the cue no plane has a frame, and a third is all that can be read, beside lucky guesses.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.zeros(3, n, SIZE, SIZE), torch.zeros(3, n, dtype=torch.int64)
    for plane in range(3):
        digit, labels[plane] = draw(n, train, generator)
        top, left = torch.randint(4, SIZE - 19, (2, n), generator=generator)
        paste(images[plane], digit, top, left)
    named = torch.randint(3, (n,), generator=generator)
    if cue:
        framed = images[named, torch.arange(n)]
        framed[:, [0, -1], :] = framed[:, :, [0, -1]] = 1.0
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
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveMaxPool2d(2),
            nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.gate(x))


def run(arm: str, seed: int, steps: int = 600) -> tuple[float, dict[str, Tensor]]:
    """Train one arm.

    Returns:
        Accuracy in percent on 2,000 new images of digits not trained on; and, of the first six of them, ``images``
        `(6, 3, 32, 32)`, ``named`` `(6,)` and, with a gate, ``gates`` `(6, 3)`.
    """
    torch.manual_seed(seed)
    model = Reader(gate=arm != "no gate")
    images, labels, _ = task(4000, True, seed, cue=arm != "gate, no cue")
    fit(model, lambda x, y: nn.functional.cross_entropy(model(x), y), (images, labels), steps, seed)
    images, labels, named = task(2000, False, 1000 + seed, cue=arm != "gate, no cue")
    with torch.no_grad():
        score = accuracy(model(images), labels)
        picture = {"images": images[:6], "named": named[:6]}
        if arm != "no gate":
            picture["gates"] = model.gate.gates(images[:6])
    return score, picture
