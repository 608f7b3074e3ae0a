"""A digit among scraps of others: do masks on the features help, and is it better to add 1 to them?

Neither shows in what is read: all arms are alike. Even to take away all that lies outside the digit's box hardly helps,
so masks have little to win here. The learned ones are about as high on the digit as beside it. What shows, and without
training, is why the paper adds 1: naive masks, one over another, make the features vanish. Batch norm before every
convolution of a block may make up for that here; this was not tested.
"""

import torch
from torch import Tensor, nn

from atbook.demos import spatial_transformer
from atbook.demos.toy import SIZE, accuracy, fit
from atbook.mechanisms.residual_attention import ResidualAttention, Unit
from atbook.names import choose

CHANCE = 10.0  # percent: ten digits
ARMS = ("no masks", "naive", "residual", "true mask")
USES = ("mechanisms/residual_attention", "demos/spatial_transformer")  # what the record depends on
PIXELS = torch.arange(SIZE) + 0.5  # the middles
DIGIT = 16  # pixels, height and width
CHANNELS, BLOCKS, DEPTH = 16, 3, 2  # of the network; its features have half the height and width of the image


def task(n: int, train: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The scenes of `atbook.demos.spatial_transformer`, with the box around the digit as a mask.

    Images `(n, 1, 32, 32)`, the digit in each `(n,)`, and the mask `(n, 1, 32, 32)`, 1 inside.
    """
    images, labels, middles = spatial_transformer.task(n, train, seed)
    from_middle = (PIXELS - SIZE / 2 * (1 + middles[:, :, None])).abs()  # `(n, 2, 32)`
    within = (from_middle < DIGIT / 2).float()
    return images, labels, (within[:, 1, :, None] * within[:, 0, None, :])[:, None]


class Reader(nn.Module):
    """A network that reads a digit; its blocks are residual units, with or without masks."""

    def __init__(self, arm: str) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, CHANNELS, 3, padding=1), nn.MaxPool2d(2))
        self.blocks = nn.Sequential(*(self.block(arm) for _ in range(BLOCKS)))
        self.head = nn.Sequential(
            nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(CHANNELS, 64, 3, padding=1),
            nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip

    @staticmethod
    def block(arm: str) -> nn.Module:
        unit = Unit(CHANNELS)
        return ResidualAttention(unit, CHANNELS, DEPTH, arm == "residual") if arm in ("naive", "residual") else unit

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))

    def masks(self, x: Tensor) -> Tensor:
        """The masks of all blocks, the mean over channels: `(N, blocks, 16, 16)`, each in (0, 1)."""
        y, made = self.stem(x), []
        for block in self.blocks:
            made.append(block.mask(y).mean(dim=1))
            y = block(y)
        return torch.stack(made, dim=1)


def sizes(residual: bool, seed: int, blocks: int = 6) -> Tensor:
    """Root mean square of features before the first and after each of some blocks, over that before: `(blocks + 1,)`.

    Nothing is trained, and T is the identity, so all that changes is due to the masks. These are near 1/2 at first:
    about (1/2)^k is left after k naive blocks, and (3/2)^k after residual ones.
    """
    torch.manual_seed(seed)
    stack = [ResidualAttention(nn.Identity(), CHANNELS, DEPTH, residual) for _ in range(blocks)]
    made = [torch.randn(16, CHANNELS, 16, 16)]
    with torch.no_grad():
        for block in stack:
            made.append(block(made[-1]))
    rms = torch.stack([x.square().mean().sqrt() for x in made])
    return rms / rms[0]


def run(arm: str, seed: int, steps: int = 300) -> tuple[float, dict[str, Tensor]]:
    """Train one arm.

    Returns:
        Accuracy in percent on 2,000 new images of digits not trained on; of the first six of them ``images``
        `(6, 1, 32, 32)`, for the true mask without what is outside the digit's box, and ``boxes``, of the same shape;
        with learned masks also ``masks`` `(6, 3, 16, 16)`; for each block ``inside`` and ``outside`` `(3,)`, their mean
        over the digit's box and over the rest of all images; and `sizes` `(7,)`, without training.

    Raises:
        ValueError: for an unknown arm.
    """
    choose("arm", arm, ARMS)
    torch.manual_seed(seed)
    model = Reader(arm)

    def data(n: int, train: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        images, labels, boxes = task(n, train, seed)
        return images * boxes if arm == "true mask" else images, labels, boxes

    fit(model, lambda x, y, _: nn.functional.cross_entropy(model(x), y), data(4000, True, seed), steps, seed, 5e-3, 32)
    images, labels, boxes = data(2000, False, 1000 + seed)
    picture = {"images": images[:6], "boxes": boxes[:6]}
    with torch.no_grad():
        score = accuracy(model(images), labels)
        if arm in ("naive", "residual"):
            masks, box = model.masks(images), nn.functional.avg_pool2d(boxes, 2)
            picture["masks"], picture["sizes"] = masks[:6], sizes(arm == "residual", seed)
            for name, part in (("inside", box), ("outside", 1 - box)):
                picture[name] = (masks * part).sum(dim=(0, 2, 3)) / part.sum()
    return score, picture
