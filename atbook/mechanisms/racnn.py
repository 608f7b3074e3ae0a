"""RA-CNN: a network proposes where to look closer, and learns it from doing better there (Fu et al., CVPR 2017).

The paper is not on arXiv: "Look closer to see better: recurrent attention convolutional neural network for
fine-grained image recognition", doi 10.1109/CVPR.2017.476.
"""

import torch
from torch import Tensor, nn

K = 1.0  # steepness of h, per pixel; a steeper edge is more like a box and has its gradient on fewer pixels
MARGIN = 0.05  # of the rank loss, theirs


class AttentionProposal(nn.Module):
    """Two linear layers propose a square: `t = (t_x, t_y, t_l)`, its centre and half of its side in pixels.

    The square lies within the image: t_l is between ``least`` and ``most``, t_x and t_y between t_l and size - t_l.

    Args:
        features: D, of the vector that the proposal is made from.
        size: height and width of the image, in pixels.
        least, most: bounds on half of the side, in pixels; ``most`` is at most half of ``size``.

    Raises:
        ValueError: if the bounds are not so.
    """

    def __init__(self, features: int, size: int, least: float, most: float) -> None:
        super().__init__()
        if not 0 < least <= most <= size / 2:
            raise ValueError(f"half sides must have 0 < least <= most <= {size / 2}, not {least} and {most}")
        self.layers = nn.Sequential(nn.Linear(features, 64), nn.Tanh(), nn.Linear(64, 3))
        self.size, self.least, self.most = size, least, most

    def forward(self, z: Tensor) -> Tensor:
        """Features `(N, D)` -> squares t `(N, 3)`."""
        x, y, length = torch.sigmoid(self.layers(z)).unbind(dim=1)
        half = self.least + (self.most - self.least) * length
        return torch.stack([half + (self.size - 2 * half) * x, half + (self.size - 2 * half) * y, half], dim=1)


def boxcar(t: Tensor, size: int) -> Tensor:
    """The mask M of squares t `(N, 3)`: `(N, size, size)` in 0 to 1, near 1 inside and near 0 outside.

    With h(x) = 1 / (1 + exp(-K x)), M = [h(x - t_x + t_l) - h(x - t_x - t_l)] [h(y - t_y + t_l) - h(y - t_y - t_l)].
    A true box would have no gradient in t. Pixel i has its centre at i + 1/2.
    """
    place = torch.arange(size) + 0.5
    low, high = t[:, :2] - t[:, 2:], t[:, :2] + t[:, 2:]
    edges = torch.sigmoid(K * (place - low[:, :, None])) - torch.sigmoid(K * (place - high[:, :, None]))
    return edges[:, 1, :, None] * edges[:, 0, None, :]


def zoom(images: Tensor, t: Tensor, size: int) -> Tensor:
    """Mask the images, cut out the squares and enlarge them, bilinearly: `(N, C, H, H)` -> `(N, C, size, size)`.

    The gradient reaches t through the mask and through the places of the samples.
    """
    height = images.shape[-1]
    attended = images * boxcar(t, height)[:, None]
    steps = (2 * torch.arange(size) + 1) / size - 1
    x, y = (t[:, i, None] + steps * t[:, 2, None] for i in (0, 1))
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=3)
    return nn.functional.grid_sample(attended, 2 * grid / height - 1, align_corners=False)


def rank_loss(coarse: Tensor, fine: Tensor) -> Tensor:
    """Mean of max(0, p_coarse - p_fine + MARGIN), of probabilities of the true class `(N,)`: a scalar.

    It is zero where the closer look is better by the margin: nothing is then learned, however poor both are.
    """
    return torch.relu(coarse - fine + MARGIN).mean()
