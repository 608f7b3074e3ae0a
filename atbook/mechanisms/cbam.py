"""CBAM: gates on channels, then gates on places (Woo et al., ECCV 2018, arXiv 1807.06521)."""

import torch
from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """What: M_c(F) = sigmoid(MLP(AvgPool(F)) + MLP(MaxPool(F))), pooled over places (their equation 2).

    Both vectors go through the same MLP, W1 relu(W0 .). It differs from squeeze-and-excitation by the maximum.

    Args:
        channels: C, of the activation that is gated.
        hidden: width of the MLP's layer between; the paper takes C/16.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def gates(self, F: Tensor) -> Tensor:
        """The gates M_c `(N, C)`, each in (0, 1), of an activation `(N, C, H, W)`."""
        return torch.sigmoid(self.mlp(F.mean(dim=(2, 3))) + self.mlp(F.amax(dim=(2, 3))))

    def forward(self, F: Tensor) -> Tensor:
        """`(N, C, H, W)` -> the same shape, each channel scaled."""
        return self.gates(F)[:, :, None, None] * F


class SpatialAttention(nn.Module):
    """Where: M_s(F) = sigmoid(f([AvgPool(F); MaxPool(F)])), pooled over channels (their equation 3).

    f is a convolution of 7x7. A gate knows what is near its place, not what is elsewhere in the image. The authors'
    code has batch norm after f; the equation does not, nor is it here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Conv2d(2, 1, 7, padding=3)

    def gates(self, F: Tensor) -> Tensor:
        """The gates M_s `(N, H, W)`, each in (0, 1), of an activation `(N, C, H, W)`."""
        return torch.sigmoid(self.f(torch.stack([F.mean(dim=1), F.amax(dim=1)], dim=1)))[:, 0]

    def forward(self, F: Tensor) -> Tensor:
        """`(N, C, H, W)` -> the same shape, each place scaled."""
        return self.gates(F)[:, None] * F


class CBAM(nn.Module):
    """F' = M_c(F) F, then F'' = M_s(F') F' (their equation 1): the places are judged by the gated channels.

    Args:
        channels, hidden: as for `ChannelAttention`.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.channel, self.space = ChannelAttention(channels, hidden), SpatialAttention()

    def forward(self, F: Tensor) -> Tensor:
        """`(N, C, H, W)` -> the same shape."""
        return self.space(self.channel(F))
