"""Stacked hourglass: down to a few cells and up again, repeatedly (Newell et al., ECCV 2016, arXiv 1603.06937)."""

from torch import Tensor, nn


class Residual(nn.Module):
    """x + f(x), where f is a 1x1, a 3x3 and a 1x1 convolution, each after batch norm and ReLU; keeps the shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.f = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, half, 1),
            nn.BatchNorm2d(half), nn.ReLU(), nn.Conv2d(half, half, 3, padding=1),
            nn.BatchNorm2d(half), nn.ReLU(), nn.Conv2d(half, channels, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class Hourglass(nn.Module):
    """H_d(x) = skip(x) + up(after(H_{d-1}(before(pool(x))))), and H_0 is one residual module.

    ``pool`` halves height and width, ``up`` repeats each cell 2x2. On every scale the skip keeps what is known of
    places, while the way through the waist sees the whole image.

    Args:
        channels: of input and output, an even number.
        depth: d, how often the size is halved; height and width must be multiples of 2^d.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.skip, self.before, self.after = (Residual(channels) for _ in range(3))
        self.inner = Hourglass(channels, depth - 1) if depth > 1 else Residual(channels)
        self.pool, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` -> the same shape."""
        return self.skip(x) + self.up(self.after(self.inner(self.before(self.pool(x)))))


class StackedHourglass(nn.Module):
    """Hourglasses in a row, each of which gives its own heatmaps, and the next corrects them.

    z_n are the features after hourglass n, p_n = out_n(z_n) its heatmaps, and the next one is fed
    f_{n+1} = f_n + W_n z_n + W'_n p_n (all 1x1 convolutions). A loss on every p_n is the intermediate supervision.

    Args:
        stem: images to features `(N, channels, H, W)`.
        channels: an even number.
        points: K, heatmaps of each stack.
        stacks: number of hourglasses.
        depth: of each, see `Hourglass`.
    """

    def __init__(self, stem: nn.Module, channels: int, points: int, stacks: int, depth: int) -> None:
        super().__init__()
        self.stem = stem
        self.hourglasses = nn.ModuleList(
            nn.Sequential(Hourglass(channels, depth), Residual(channels), nn.Conv2d(channels, channels, 1))
            for _ in range(stacks)
        )
        self.out = nn.ModuleList(nn.Conv2d(channels, points, 1) for _ in range(stacks))
        self.W = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(stacks - 1))
        self.W_p = nn.ModuleList(nn.Conv2d(points, channels, 1) for _ in range(stacks - 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images -> the heatmaps `(N, K, H, W)` of each stack, the last of which is the answer."""
        f, heatmaps = self.stem(x), []
        for n, hourglass in enumerate(self.hourglasses):
            z = hourglass(f)
            heatmaps.append(self.out[n](z))
            if n < len(self.W):
                f = f + self.W[n](z) + self.W_p[n](heatmaps[n])
        return heatmaps
