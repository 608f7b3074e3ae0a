"""Spatial transformer: a network picks what it looks at in its input (Jaderberg et al., NIPS 2015, arXiv 1506.02025).

Coordinates go from -1 to 1, from edge to edge, x to the right, y down: pixel m of W has its middle at (2m + 1)/W - 1.
"""

import torch
from torch import Tensor, nn


def attention(s: float, t: Tensor) -> Tensor:
    """A = [[s, 0, t_x], [0, s, t_y]] `(N, 2, 3)`: an upright window, s times as wide as the input (equation 2).

    Args:
        s: side of the window, 1 for that of the whole input.
        t: `(N, 2)`, (x, y) of the middle of the window.
    """
    return torch.cat([s * torch.eye(2).expand(len(t), -1, -1), t[:, :, None]], dim=2)


def affine_grid(A: Tensor, height: int, width: int) -> Tensor:
    """Where each pixel of the output comes from: (x_s, y_s) = A (x_t, y_t, 1) (equation 1).

    Args:
        A: `(N, 2, 3)`.
        height, width: of the output, in pixels.

    Returns:
        Source points (x_s, y_s) `(N, height, width, 2)`.
    """
    y, x = ((2 * torch.arange(length) + 1) / length - 1 for length in (height, width))
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.einsum("nij,hwj->nhwi", A, torch.stack([x, y, torch.ones_like(x)], dim=2))


def sample(U: Tensor, points: Tensor) -> Tensor:
    """Bilinear: V = sum over the pixels (n, m) of U_nm max(0, 1 - |x - m|) max(0, 1 - |y - n|) (equation 5).

    Here x and y count pixels. Outside the input is zero. The gradient for a point is made of the at most four pixels
    around it, so a window that has lost its object does not find it again.

    Args:
        U: `(N, C, H, W)`.
        points: (x, y) in -1 to 1, `(N, h, w, 2)`.

    Returns:
        V `(N, C, h, w)`.
    """
    sizes = U.shape[:1:-1]  # W, H
    # On the middle of a pixel, where |x - m| is 0 or 1, the slope jumps. There clamp hands on the gradients for both
    # neighbours; relu would hand on none, and a window that starts on whole pixels would never move.
    k_x, k_y = (
        (1 - ((points[..., i, None] + 1) * sizes[i] / 2 - 0.5 - torch.arange(sizes[i])).abs()).clamp(min=0)
        for i in range(2)
    )
    return (torch.einsum("nchw,nijw->ncijh", U, k_x) * k_y[:, None]).sum(dim=4)


class SpatialTransformer(nn.Module):
    """V = sample(U, affine_grid(A)), A = localisation(U); trained by the loss of what is done with V, and by no other.

    Args:
        localisation: input `(N, C, H, W)` to A `(N, 2, 3)`.
        size: h and w of the output, in pixels.
    """

    def __init__(self, localisation: nn.Module, size: int) -> None:
        super().__init__()
        self.localisation, self.size = localisation, size

    def forward(self, U: Tensor) -> tuple[Tensor, Tensor]:
        """`(N, C, H, W)` -> V `(N, C, size, size)` and A `(N, 2, 3)`."""
        A = self.localisation(U)
        return sample(U, affine_grid(A, self.size, self.size)), A
