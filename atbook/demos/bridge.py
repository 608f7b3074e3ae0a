"""A built-in map of a large network: can a small network without the mechanism learn from it where to look?

Not here. The teacher's activations help the student, and so does the true place of the digit, but CBAM's mask hardly,
if at all. It is no map of the digit: little more of it is on the digit's square than on any other. Perhaps a gate has
to be of use to the layers after it, and those can do without; this was not tested. Two other teachers were tried, with
one seed each. With batch norm before the sigmoid, as in the authors' code, the gates open on the empty ground, and
attention transfer loses most of its gain. On the last layer they stay open everywhere. Neither's mask helped the
student.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from atbook.attention import f_sum
from atbook.demos.toy import SIZE, accuracy, draw, fit, paste
from atbook.losses import F_SUM_2, attention_transfer
from atbook.mechanisms.cbam import SpatialAttention
from atbook.names import choose

CHANCE = 10.0  # percent: ten digits
ARMS = ("plain", "another image's mask", "teacher's mask", "true place", "attention transfer")
USES = ("mechanisms/cbam", "attention", "losses")
LABELLED = 500  # images, all that a student sees; the teacher has 4,000
PIECES = 4  # of other digits, in each image
BETA = 1000.0  # weight of the map, as in the authors' code
BATCH = 48  # images


def task(n: int, train: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images `(n, 1, 32, 32)`, the label of the one whole digit `(n,)`, and its place `(n, 32, 32)`, 1 on its square.

    The clutter is made of the middles, 8x8 pixels, of other digits, as bright as the digit itself.
    """
    generator = torch.Generator().manual_seed(seed)
    images, places = torch.zeros(2, n, SIZE, SIZE)
    digit, labels = draw(n, train, generator)
    top, left = torch.randint(SIZE - 15, (2, n), generator=generator)
    for canvas, patch in ((images, digit), (places, torch.ones_like(digit))):
        paste(canvas, patch, top, left)
    for _ in range(PIECES):
        piece = draw(n, train, generator)[0][:, 4:12, 4:12]
        paste(images, piece, *torch.randint(SIZE - 7, (2, n), generator=generator))
    return images[:, None], labels, places


class Network(nn.Module):
    """Reads a digit, and returns the logits `(N, 10)` and the activation A `(N, 2 width, 16, 16)` of its middle.

    With ``gate``, A has passed CBAM's gates on places.
    """

    def __init__(self, width: int, gate: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
        )  # fmt: skip
        self.gate = SpatialAttention() if gate else nn.Identity()
        self.last = nn.Sequential(
            nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.BatchNorm2d(4 * width), nn.ReLU(),
            nn.Conv2d(4 * width, 4 * width, 3, padding=1), nn.BatchNorm2d(4 * width), nn.ReLU(),
            nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        A = self.gate(self.first(x))
        return self.last(A), A


@cache
def teacher(seed: int, steps: int) -> Network:
    """A wide network with the mechanism, trained on 4,000 images; made once in a process."""
    torch.manual_seed(seed)
    model = Network(width=16, gate=True)
    images, labels, _ = task(4000, True, seed)
    fit(model, lambda x, y: cross_entropy(model(x)[0], y), (images, labels), steps, seed, batch=BATCH)
    return model


def wanted(arm: str, seed: int, steps: int, images: Tensor, places: Tensor) -> Tensor:
    """What the student's map is to resemble, as an activation `(N, C, H, W)`: of the last three arms, one channel.

    The mask of another image is that of the next one.
    """
    if arm == "true place":
        return places[:, None]
    model = teacher(seed, steps)
    with torch.no_grad():
        if arm == "attention transfer":
            return model(images)[1]
        masks = model.gate.gates(model.first(images))[:, None]
    return masks.roll(1, dims=0) if arm == "another image's mask" else masks


def inside(Q: Tensor, places: Tensor) -> Tensor:
    """How much of each map `(N, 16, 16)` is on the digit's square, in percent, the mean over images: a scalar."""
    Q = Q.flatten(1)
    return 100 * ((Q * nn.functional.avg_pool2d(places, 2).flatten(1)).sum(dim=1) / Q.sum(dim=1)).mean()


def run(arm: str, seed: int, steps: int = 300) -> tuple[float, dict[str, Tensor]]:
    """Train a small network, without the mechanism, to read and to look where it is told.

    The loss is cross-entropy and, but for ``plain``, `BETA` times the squared difference of normalized maps: F_sum^2 of
    both networks in ``attention transfer``, else F_sum of the student and the given mask itself.

    Returns:
        Accuracy in percent on 2,000 new images of digits not trained on; and, of the first six of them, ``images``
        `(6, 1, 32, 32)` and the student's ``map`` F_sum^2 `(6, 16, 16)`; ``inside``, how much of that map is on the
        digit's square, over all 2,000. With a teacher also its ``mask`` `(6, 16, 16)`, the same share of that,
        ``mask inside``, and the teacher's score, ``teacher``.

    Raises:
        ValueError: for an unknown arm.
    """
    choose("arm", arm, ARMS)
    images, labels, places = task(LABELLED, True, 500 + seed)
    data = (images, labels) if arm == "plain" else (images, labels, wanted(arm, seed, steps, images, places))
    mapping = F_SUM_2 if arm == "attention transfer" else f_sum
    torch.manual_seed(seed)
    student = Network(width=8, gate=False)

    def loss(x: Tensor, y: Tensor, *target: Tensor) -> Tensor:
        logits, A = student(x)
        return cross_entropy(logits, y) + (BETA * attention_transfer([A], target, mapping) if target else 0)

    fit(student, loss, data, steps, seed, batch=BATCH)
    images, labels, places = task(2000, False, 1000 + seed)
    with torch.no_grad():
        logits, A = student(images)
        Q = F_SUM_2(A)
        picture = {"images": images[:6], "map": Q[:6], "inside": inside(Q, places)}
        if arm not in ("plain", "true place"):
            model = teacher(seed, steps)
            masks = model.gate.gates(model.first(images))
            picture |= {"mask": masks[:6], "mask inside": inside(masks, places)}
            picture["teacher"] = torch.tensor(accuracy(model(images)[0], labels))
    return accuracy(logits, labels), picture
