"""Squeeze-and-excitation: gates on channels, computed from the whole image (Hu et al., CVPR 2018, arXiv 1709.01507)."""

import torch
from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """Multiplies every channel by a gate between 0 and 1 (their equations 2 to 4).

    Squeeze: z_c is the mean of channel c over all places. Excite: s = sigmoid(W2 relu(W1 z)). Scale: s_c U_c.
    A gate knows what is in the image but not where: two images whose channels have equal means get equal gates.

    Args:
        channels: C, of the activation that is gated.
        hidden: width of the layer between; the paper takes C/16.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, hidden)
        self.expand = nn.Linear(hidden, channels)

    def gates(self, U: Tensor) -> Tensor:
        """The gates s `(N, C)`, each in (0, 1), of an activation `(N, C, H, W)`."""
        z = U.mean(dim=(2, 3))
        return torch.sigmoid(self.expand(torch.relu(self.reduce(z))))

    def forward(self, U: Tensor) -> Tensor:
        """`(N, C, H, W)` -> the same shape, each channel scaled."""
        return self.gates(U)[:, :, None, None] * U
