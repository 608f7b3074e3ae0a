"""Hollow squares to fill and tiny discs to hit: does it help to choose, at each place, the size to look at?

Two sizes are needed: fine alone cannot fill, coarse alone cannot hit. How they are merged matters little: maximum,
mean and attention end within a few percent of each other, attention differs as much from seed to seed, and it is not
better than the maximum. That its last layer begins at zero does not show either.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from atbook.demos.toy import SIZE, fit
from atbook.mechanisms.attention_to_scale import AttentionToScale
from atbook.names import choose

CHANCE = 24.4  # percent: background everywhere, which is 73 % of the pixels, right for one class of three
ARMS = ("fine alone", "coarse alone", "mean", "maximum", "attention, not zeroed", "attention")
SCALES = (1.0, 0.25)  # fine, coarse
CLASSES = 3  # background, square, disc


def task(n: int, train: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Images `(n, 1, 32, 32)` and the class of each pixel `(n, 32, 32)`: 0 background, 1 square, 2 disc.

    A square's outline is one pixel thin, but all within belongs to it: there a pixel looks like background unless seen
    from afar. Three discs of radius 1.5 lie anywhere. Nothing depends on ``train``: new images are of new things.
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.arange(SIZE) + 0.5

    def away(low: float, high: float) -> tuple[Tensor, Tensor]:
        """Horizontal and vertical distance of all pixels from a random point."""
        x, y = (low + (high - low) * torch.rand(2, n, 1, 1, generator=generator)).unbind()
        return (pixels[None, None, :] - x).abs(), (pixels[None, :, None] - y).abs()

    x, y = away(11.0, 21.0)
    half = 6 + 4 * torch.rand(n, 1, 1, generator=generator)
    distance = torch.maximum(x, y)
    labels = (distance < half).long()
    images = ((distance < half) & (distance >= half - 1)).float()
    for _ in range(3):
        x, y = away(2.0, SIZE - 2.0)
        disc = x.square() + y.square() < 1.5**2
        labels[disc], images[disc] = 2, 1.0
    return (images + 0.1 * torch.randn(images.shape, generator=generator))[:, None], labels


def mean_iou(logits: Tensor, labels: Tensor) -> float:
    """Intersection over union of each class, over all pixels; their mean in percent. `(n, K, H, W)`, `(n, H, W)`."""
    made, ious = logits.argmax(dim=1), []
    for k in range(logits.shape[1]):
        both, either = ((made == k) & (labels == k)).sum(), ((made == k) | (labels == k)).sum()
        ious.append(both / either)
    return 100 * torch.stack(ious).mean().item()


def merge(arm: str, p: Tensor, w: Tensor) -> Tensor:
    """Scores `(n, S, K, H, W)` and weights `(n, S, H, W)` -> merged scores `(n, K, H, W)`."""
    if arm == "mean" or arm.endswith("alone"):
        return p.mean(dim=1)
    return p.amax(dim=1) if arm == "maximum" else (w[:, :, None] * p).sum(dim=1)


def build(arm: str) -> AttentionToScale:
    """The model of an arm.

    No batch norm: its statistics would be of one scale in training and of a mixture after. Without it, and with torch's
    own beginning, some trainings never found the discs; He et al.'s is larger.
    """
    layers = []
    for width in (1, 16, 16, 16):
        layers += [nn.Conv2d(width, 16, 3, padding=1), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
    scales = {"fine alone": SCALES[:1], "coarse alone": SCALES[1:]}.get(arm, SCALES)
    model = AttentionToScale(nn.Sequential(*layers), 16, CLASSES, scales, hidden=8)
    if arm == "attention, not zeroed":
        model.h[-1].reset_parameters()
    return model


def run(arm: str, seed: int, steps: int = 400) -> tuple[float, dict[str, Tensor]]:
    """Train one arm, with a loss on each scale and on what they are merged to.

    Returns:
        Mean intersection over union in percent on 1,000 new images; and, of the first six of them, ``images``
        `(6, 1, 32, 32)`, ``labels`` and ``answers`` `(6, 32, 32)` and, with attention, ``weights`` `(6, 2, 32, 32)`.

    Raises:
        ValueError: for an unknown arm.
    """
    choose("arm", arm, ARMS)
    torch.manual_seed(seed)
    model = build(arm)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        p, w = model.scores_and_weights(x)
        return cross_entropy(merge(arm, p, w), y) + sum(cross_entropy(part, y) for part in p.unbind(dim=1))

    fit(model, loss, task(4000, True, seed), steps, seed, lr=5e-3, batch=16)
    images, labels = task(1000, False, 1000 + seed)
    with torch.no_grad():
        p, w = model.scores_and_weights(images)
    g = merge(arm, p, w)
    picture = {"images": images[:6], "labels": labels[:6], "answers": g[:6].argmax(dim=1)}
    if arm.startswith("attention"):
        picture["weights"] = w[:6]
    return mean_iou(g, labels), picture
