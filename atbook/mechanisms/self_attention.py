"""Self-attention: each place asks all others (Vaswani et al., NeurIPS 2017, arXiv 1706.03762), on patches of an image
(Dosovitskiy et al., ICLR 2021, arXiv 2010.11929), and its rollout over layers (Abnar & Zuidema, ACL 2020, 2005.00928).
"""

import torch
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V with Q, K and V linear in the tokens z, in several heads of width d = D / heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}: each head takes an equal part")
        self.heads = heads
        self.QKV, self.W_O = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def weights(self, Q: Tensor, K: Tensor) -> Tensor:
        """A: two `(..., L, d)` -> `(..., L, L)`, rows sum to 1; row i says how much token i takes from each token."""
        return (Q @ K.mT / Q.shape[-1] ** 0.5).softmax(dim=-1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `(N, L, D)` -> the same shape, and the maps A `(N, heads, L, L)`."""
        Q, K, V = self.QKV(z).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        A = self.weights(Q, K)
        return self.W_O((A @ V).transpose(1, 2).flatten(2)), A


class Block(nn.Module):
    """z' = MSA(LN(z)) + z, then MLP(LN(z')) + z' (equations 2 and 3 of Dosovitskiy et al.)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.MSA = nn.LayerNorm(width), SelfAttention(width, heads)
        self.norm_2 = nn.LayerNorm(width)
        self.MLP = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `(N, L, D)` -> the same shape, and the maps A `(N, heads, L, L)`."""
        made, A = self.MSA(self.norm_1(z))
        z = z + made
        return z + self.MLP(self.norm_2(z)), A


class VisionTransformer(nn.Module):
    """A small one: the image's patches, row by row, are tokens after a class token, from which the answer is read.

    Class token and positions begin about as large as the patches' tokens; in the paper's code they begin smaller.

    Args:
        channels: of the image.
        patch: pixels, height and width of a patch.
        patches: how many an image has.
        classes, width, depth, heads: K; D of a token; number of blocks; heads of each.
    """

    def __init__(
        self, channels: int, patch: int, patches: int, classes: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.E = nn.Conv2d(channels, width, patch, stride=patch)
        self.x_class = nn.Parameter(0.5 * torch.randn(width))
        self.E_pos = nn.Parameter(0.5 * torch.randn(patches + 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> tokens after the last block `(N, 1 + patches, D)`, and all maps."""
        patches = self.E(x).flatten(2).mT
        z, maps = torch.cat([self.x_class.expand(len(x), 1, -1), patches], dim=1) + self.E_pos, []
        for block in self.blocks:
            z, A = block(z)
            maps.append(A)
        return z, torch.stack(maps, dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images `(N, C, H, W)` -> logits `(N, K)` and all maps `(N, depth, heads, 1 + patches, 1 + patches)`."""
        z, maps = self.tokens(x)
        return self.head(z[:, 0]), maps


def rollout(maps: Tensor) -> Tensor:
    """How much of each input token is in each last one, if tokens mix as the maps say: the product of (A + I) / 2.

    A is the mean over heads; I stands for the skip connections; later blocks multiply from the left.

    Args:
        maps: `(N, depth, heads, L, L)`.

    Returns:
        `(N, L, L)`; rows sum to 1.
    """
    mixed = torch.eye(maps.shape[-1], dtype=maps.dtype, device=maps.device)
    identity = mixed
    for A in maps.mean(dim=2).unbind(dim=1):
        mixed = (A + identity) / 2 @ mixed
    return mixed
