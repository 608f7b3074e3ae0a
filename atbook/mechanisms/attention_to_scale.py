"""Attention to scale: each place weighs what is seen of it at each size (Chen et al., CVPR 2016, arXiv 1511.03339)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing `(N, C, H, W)` -> `(N, C, *size)`, with the blur that shrinking needs."""
    return interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)


class AttentionToScale(nn.Module):
    """One network looks at the image at S sizes; weights that sum to one at each place merge its answers.

    g_i,c = sum_s w_i^s p_i,c^s with w_i^s = exp(h_i^s) / sum_t exp(h_i^t) (their equations 1 and 2). The scores p^s
    (f^s there) come from the same layers at every size and are resized to the image; h is computed from the features
    of all sizes by a 3x3 and a 1x1 convolution. The latter begins at zero, thus the weights at 1/S: training starts
    from the mean of the scales. That beginning is ours.

    Args:
        features: images to features `(N, channels, H, W)`, of the size of their input.
        channels: of the features.
        classes: K.
        scales: S sizes, as fractions of the image's.
        hidden: channels of the layer before the weights; the paper takes 512.
    """

    def __init__(
        self, features: nn.Module, channels: int, classes: int, scales: tuple[float, ...], hidden: int
    ) -> None:
        super().__init__()
        self.features, self.scales = features, scales
        self.score = nn.Conv2d(channels, classes, 1)
        last = nn.Conv2d(hidden, len(scales), 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.h = nn.Sequential(nn.Conv2d(len(scales) * channels, hidden, 3, padding=1), nn.ReLU(), last)

    def scores_and_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images `(N, C, H, W)` -> scores p `(N, S, K, H, W)` and weights w `(N, S, H, W)`, which sum to 1 over S.

        In training each p^s gets a loss of its own beside that of g: the paper's extra supervision.
        """
        full = x.shape[-2:]
        sizes = [(round(s * full[0]), round(s * full[1])) for s in self.scales]
        f = [self.features(resize(x, size)) for size in sizes]
        p = torch.stack([resize(self.score(part), full) for part in f], dim=1)
        return p, self.h(torch.cat([resize(part, full) for part in f], dim=1)).softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(N, C, H, W)` -> merged scores g `(N, K, H, W)`."""
        p, w = self.scores_and_weights(x)
        return (w[:, :, None] * p).sum(dim=1)
