"""Attention against the truth: does a map look at the object? For data with object masks.

`Q` is an attention map `(N, H, W)`, a mask is True on the object, `(N, H', W')`. Maps smaller than the masks are
enlarged bilinearly first, as when they are drawn over the image.
"""

import torch.nn.functional as F
from torch import Tensor


def pointing_game(Q: Tensor, masks: Tensor) -> Tensor:
    """Does the map's highest point lie on the object? (Zhang et al., "Top-down Neural Attention", ECCV 2016)

    Args:
        Q: maps `(N, H, W)`.
        masks: bool `(N, H', W')`.

    Returns:
        Bool `(N,)`; its mean is the score, to be read against ``chance(masks).mean()``.

    Raises:
        ValueError: if the shapes do not fit.
    """
    peak = _enlarge(Q, masks).flatten(1).argmax(dim=1, keepdim=True)
    return masks.flatten(1).gather(1, peak).squeeze(1)


def energy(Q: Tensor, masks: Tensor) -> Tensor:
    """The share of the map's sum that lies on the object.

    Args:
        Q: maps `(N, H, W)`, zero or more.
        masks: bool `(N, H', W')`.

    Returns:
        `(N,)` in [0, 1]; a constant map gives ``chance(masks)``, an all-zero map NaN.

    Raises:
        ValueError: if the shapes do not fit, or a map has negative values.
    """
    if (Q < 0).any():
        raise ValueError(
            f"the map has a negative value ({Q.min().item():.3g}): energy is defined for maps of zero or more"
        )
    Q = _enlarge(Q, masks)
    return (Q * masks).sum(dim=(1, 2)) / Q.sum(dim=(1, 2))


def chance(masks: Tensor) -> Tensor:
    """What a map that knows nothing scores: each object's share of the image area, `(N,)`."""
    return masks.float().mean(dim=(1, 2))


def _enlarge(Q: Tensor, masks: Tensor) -> Tensor:
    if Q.ndim != 3 or masks.ndim != 3 or len(Q) != len(masks):
        raise ValueError(
            f"maps and masks must be (N, H, W) of the same N; got {tuple(Q.shape)} and {tuple(masks.shape)}"
        )
    return F.interpolate(Q[:, None].float(), size=masks.shape[1:], mode="bilinear", align_corners=False)[:, 0]
