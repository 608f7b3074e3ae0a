"""A box and the class of what is in it are given: which pixels are the object? Should the masks of classes compete?

They should not. A pixel within the object looks the same in many classes; a softmax makes it choose one, a sigmoid does
not. In so short a training the coupled masks remain below the score of the whole box. But the class is no help either:
one mask for all does as well as ten, which is near to what the paper found, and of the ten, the mask of a wrong class
does nearly as well as that of the right one.
"""

import torch
from torch import Tensor, nn

from atbook.data import load
from atbook.demos.toy import fit
from atbook.mechanisms.decoupled_masks import MaskBranch, coupled_loss, decoupled_loss, of_class
from atbook.names import choose

CHANCE = 57.9  # percent: the whole box
ARMS = ("softmax", "softmax, any class", "one mask", "mask of another class", "decoupled")
CLASSES = 10
BOX = 24  # pixels, height and width that a box is brought to


def around(masks: Tensor) -> Tensor:
    """Boxes that hold the objects of masks bool `(n, H, W)`: their (left, top, right, bottom) in pixels `(n, 4)`."""
    sides = []
    for covered in (masks.any(dim=1), masks.any(dim=2)):
        places = torch.arange(covered.shape[1])
        sides.append((places.where(covered, covered.shape[1]).amin(dim=1), places.where(covered, -1).amax(dim=1) + 1))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], dim=1).float()


def cut(images: Tensor, boxes: Tensor, mode: str) -> Tensor:
    """What is in the boxes, brought to one size: `(n, C, H, W)`, `(n, 4)` -> `(n, C, BOX, BOX)`."""
    size = torch.tensor([images.shape[3], images.shape[2]])
    theta = torch.zeros(len(images), 2, 3)
    low, high = 2 * boxes[:, :2] / size - 1, 2 * boxes[:, 2:] / size - 1
    theta[:, 0, 0], theta[:, 1, 1] = ((high - low) / 2).unbind(dim=1)
    theta[:, :, 2] = (high + low) / 2
    grid = nn.functional.affine_grid(theta, [len(images), 1, BOX, BOX], align_corners=False)
    return nn.functional.grid_sample(images, grid, mode=mode, align_corners=False)


def task(n: int, train: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of the shapes data set `(n, 3, 24, 24)` in 0 to 1, their classes `(n,)` and masks `(n, 24, 24)`, 0 or 1."""
    data = load("shapes", "train" if train else "test")
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:n]
    images, masks = data.images[chosen].float() / 255, data.masks[chosen]
    boxes = around(masks)
    return cut(images, boxes, "bilinear"), data.labels[chosen], cut(masks[:, None].float(), boxes, "nearest")[:, 0]


def iou(made: Tensor, target: Tensor) -> float:
    """Intersection over union, the mean over boxes in percent: bool `(n, m, m)` and 0 or 1 `(n, m, m)`."""
    both, either = made & (target > 0.5), made | (target > 0.5)
    return 100 * (both.sum(dim=(1, 2)) / either.sum(dim=(1, 2))).mean().item()


def answer(arm: str, logits: Tensor, k: Tensor) -> Tensor:
    """The pixels that an arm takes for the object, bool `(n, m, m)`, from the logits of its masks."""
    if arm == "softmax":
        return of_class(logits, k) > logits[:, CLASSES]
    if arm == "softmax, any class":
        return logits.argmax(dim=1) != CLASSES
    return of_class(logits, k) > 0


def run(arm: str, seed: int, steps: int = 350) -> tuple[float, dict[str, Tensor]]:
    """Train one arm.

    Returns:
        Intersection over union in percent, the mean over 1,000 new boxes; and, of the first six of them, ``images``
        `(6, 3, 24, 24)`, ``classes`` `(6,)`, ``targets`` and ``answers`` `(6, 24, 24)`, and ``masks``, what the
        branch gives for every mask, `(6, K, 24, 24)` in 0 to 1.

    Raises:
        ValueError: for an unknown arm.
    """
    choose("arm", arm, ARMS)
    torch.manual_seed(seed)
    coupled = arm.startswith("softmax")
    model = MaskBranch(3, {"one mask": 1}.get(arm, CLASSES + coupled), width=16)

    def named(k: Tensor) -> Tensor:
        return torch.zeros_like(k) if arm == "one mask" else k

    loss = coupled_loss if coupled else decoupled_loss
    fit(model, lambda x, k, y: loss(model(x), named(k), y), task(4000, True, seed), steps, seed, lr=5e-3, batch=32)
    x, k, y = task(1000, False, 1000 + seed)
    with torch.no_grad():
        logits = model(x)
    asked = (k + 1) % CLASSES if arm == "mask of another class" else named(k)
    answers = answer(arm, logits, asked)
    masks = logits.softmax(dim=1) if coupled else logits.sigmoid()
    picture = {"images": x[:6], "classes": k[:6], "targets": y[:6], "answers": answers[:6], "masks": masks[:6]}
    return iou(answers, y), picture
