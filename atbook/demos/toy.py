"""What all demonstrations share: handwritten digits, canvases to paste them on, and one small training loop."""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

SIZE = 32  # pixels, height and width of a canvas
TRAINED_ON = 1200  # of scikit-learn's 1,797 digits; the others are only tested on


@cache
def digits(train: bool) -> tuple[Tensor, Tensor]:
    """Scikit-learn's handwritten digits, enlarged from 8x8 to 16x16: float32 `(N, 16, 16)` in 0 to 1, labels `(N,)`."""
    data = load_digits()
    part = slice(None, TRAINED_ON) if train else slice(TRAINED_ON, None)
    images = torch.from_numpy(data.images[part]).float()[:, None] / 16
    images = nn.functional.interpolate(images, size=16, mode="bilinear", align_corners=False)
    return images[:, 0], torch.from_numpy(data.target[part].astype(np.int64))


def draw(n: int, train: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``n`` random digits of the training or the test part: images `(n, 16, 16)` and labels `(n,)`."""
    images, labels = digits(train)
    chosen = torch.randint(len(images), (n,), generator=generator)
    return images[chosen], labels[chosen]


def paste(canvas: Tensor, patches: Tensor, top: Tensor, left: Tensor) -> None:
    """Write a patch onto each canvas, in place, where it is the brighter of the two.

    Args:
        canvas: `(N, H, W)`.
        patches: `(N, h, w)`.
        top, left: whole numbers `(N,)`; the patch lies within the canvas.
    """
    n, h, w = patches.shape
    rows = (top[:, None] + torch.arange(h))[:, :, None]
    columns = (left[:, None] + torch.arange(w))[:, None, :]
    at = torch.arange(n)[:, None, None], rows, columns
    canvas[at] = torch.maximum(canvas[at], patches)


def fit(
    model: nn.Module,
    loss: Callable[..., Tensor],
    data: tuple[Tensor, ...],
    steps: int,
    seed: int,
    lr: float = 2e-3,
    batch: int = 64,
) -> None:
    """Train with Adam on random batches; the rate falls to zero along half a cosine.

    Args:
        model: whose parameters are trained, in place; it is in evaluation mode afterwards.
        loss: takes the batch's part of each tensor of ``data``, returns a scalar.
        data: tensors of equal length.
        steps: batches.
        seed: of the order of the examples, and of random numbers that the loss draws.
    """
    torch.manual_seed(seed)
    model.train()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        chosen = torch.randint(len(data[0]), (batch,))
        value = loss(*(part[chosen] for part in data))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
    model.eval()


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of right answers, in percent: logits `(N, K)`, labels `(N,)`."""
    return 100 * (logits.argmax(dim=1) == labels).float().mean().item()
