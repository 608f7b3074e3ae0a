"""Residual attention: masks from a branch that goes down and up (Wang et al., CVPR 2017, arXiv 1704.06904)."""

from torch import Tensor, nn


class Unit(nn.Module):
    """x + f(x), where f is a 3x3 convolution after batch norm and ReLU; the paper's units have three."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class DownUp(nn.Module):
    """y = before(pool(x)); below, y = DownUp(y) + skip(y), unless it is the lowest; then up(after(y)).

    ``pool`` halves height and width, ``up`` doubles them, bilinearly; the others are residual units. Down, a unit sees
    more and more of the image; up, that is brought back to each place.

    Args:
        channels: of input and output.
        depth: how often the size is halved; height and width must be multiples of 2^depth.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.pool, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")
        self.before, self.after = Unit(channels), Unit(channels)
        self.below = DownUp(channels, depth - 1) if depth > 1 else None
        self.skip = Unit(channels) if depth > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(self.pool(x))
        if self.below is not None:
            y = self.below(y) + self.skip(y)
        return self.up(self.after(y))


class ResidualAttention(nn.Module):
    """H = (1 + M(x)) T(x) for each place and channel (their equation 3), or naively H = M(x) T(x) (equation 1).

    M, between 0 and 1, is the sigmoid of two 1x1 convolutions on what comes down and up. One over another, naive masks
    make the features smaller and smaller, and none can let T pass as it is; with 1 + M a mask of zeros does.

    Args:
        trunk: T, keeps the shape.
        channels: C, of the input.
        depth: of the mask branch, see `DownUp`.
        residual: whether 1 is added to the masks.
    """

    def __init__(self, trunk: nn.Module, channels: int, depth: int, residual: bool = True) -> None:
        super().__init__()
        self.trunk, self.residual = trunk, residual
        self.mask = nn.Sequential(
            DownUp(channels, depth),
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1),
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` -> H, of the same shape."""
        M = self.mask(x)
        return (1 + M if self.residual else M) * self.trunk(x)
