"""Task partitioning: a deep layer detects, a shallow one finds the outline (Lin, Shi & Zou, IEEE GRSL 2017).

"Fully convolutional network with task partitioning for inshore ship detection in optical remote sensing images", doi
10.1109/LGRS.2017.2727515. The abstract says that layers of different depth get different tasks: the deep one detects,
the shallow one localises, as ships lie side by side. All details beyond that are ours.
"""

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate, max_pool2d

CELL = 4  # pixels, height and width of a cell of the deep map


class TaskPartitioning(nn.Module):
    """One network with two answers: a precise map of few layers, and a coarse one of more layers on top of these.

    A pixel of the precise map depends on 7x7 pixels of the image, a cell of the coarse one on more than 50x50.
    """

    def __init__(self, width: int) -> None:
        super().__init__()

        def layers(number: int, inputs: int, outputs: int, **options: int) -> list[nn.Module]:
            first = [nn.Conv2d(inputs, outputs, 3, **options), nn.BatchNorm2d(outputs), nn.ReLU()]
            return first + (layers(number - 1, outputs, outputs, **options) if number > 1 else [])

        down = layers(2, width, 2 * width, stride=2, padding=1)
        wide = layers(3, 2 * width, 2 * width, dilation=2, padding=2)
        self.shallow = nn.Sequential(*layers(3, 1, width, padding=1))
        self.deep = nn.Sequential(*down, *wide)
        self.locate, self.detect = nn.Conv2d(width, 1, 1), nn.Conv2d(2 * width, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images `(N, 1, H, W)` -> logits: precise `(N, H, W)`, and coarse `(N, H/4, W/4)`."""
        found = self.shallow(x)
        return self.locate(found)[:, 0], self.detect(self.deep(found))[:, 0]


def cells_near(target: Tensor) -> Tensor:
    """What the deep layer is to detect: the cells with a pixel of an object in them or in one of the eight around.

    `(N, H, W)`, 0 or 1 -> `(N, H/4, W/4)`. A missed cell would be missed for good, hence those around.
    """
    return max_pool2d(target[:, None], 3 * CELL, stride=CELL, padding=CELL)[:, 0]


def enlarge(cells: Tensor) -> Tensor:
    """Each cell's value at all of its pixels: `(N, H/4, W/4)` -> `(N, H, W)`."""
    return cells.repeat_interleave(CELL, dim=1).repeat_interleave(CELL, dim=2)


def smooth(cells: Tensor) -> Tensor:
    """The values of cells at all pixels, bilinear in between: `(N, H/4, W/4)` -> `(N, H, W)`."""
    return interpolate(cells[:, None], scale_factor=CELL, mode="bilinear", align_corners=False)[:, 0]


def partitioned_loss(precise: Tensor, coarse: Tensor, target: Tensor) -> Tensor:
    """Cross-entropies of both tasks; the shallow layer's is a mean over the pixels near an object alone.

    What is far from all objects is the deep layer's affair: there the shallow one may answer what it likes.

    Args:
        precise: logits `(N, H, W)`.
        coarse: logits `(N, H/4, W/4)`.
        target: `(N, H, W)`, 1 on objects and 0 elsewhere; at least one object.
    """
    near = cells_near(target)
    detection = binary_cross_entropy_with_logits(coarse, near)
    pixels = enlarge(near)
    each = binary_cross_entropy_with_logits(precise, target, reduction="none")
    return detection + (each * pixels).sum() / pixels.sum()


def partitioned(precise: Tensor, coarse: Tensor) -> Tensor:
    """The answer: pixels that the shallow layer takes for an object where the deep one has detected some. Bool."""
    return (precise > 0) & (enlarge(coarse) > 0)
