"""Attention against the truth, for data with object masks, and against another network's; confidence against accuracy.

`Q` is an attention map `(N, H, W)`, a mask is True on the object, `(N, H', W')`. Maps smaller than the masks are
enlarged bilinearly first, as when they are drawn over the image. Each score says what a map that knows nothing gets.
"""

import torch
import torch.nn.functional as F
from scipy.stats import rankdata
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


def iou(Q: Tensor, masks: Tensor, quantile: float = 0.8) -> Tensor:
    """Intersection over union of the object and the brightest part of the map.

    Args:
        Q: maps `(N, H, W)`.
        masks: bool `(N, H', W')`.
        quantile: the brightest part are the places above this quantile of the map: 0.8 takes a fifth of the image.

    Returns:
        `(N,)` in [0, 1]; for a random map about ``chance_iou(masks, quantile)``.

    Raises:
        ValueError: if the shapes do not fit, or the quantile is not between 0 and 1.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile is {quantile}: it must lie between 0 and 1")
    q = _enlarge(Q, masks)
    bright = q > q.flatten(1).quantile(quantile, dim=1)[:, None, None]
    return (bright & masks).sum(dim=(1, 2)) / (bright | masks).sum(dim=(1, 2))


def chance_iou(masks: Tensor, quantile: float = 0.8) -> Tensor:
    """What `iou` gives for a map whose bright places are drawn at random, `(N,)`: by its mean intersection."""
    bright, object_ = 1 - quantile, chance(masks)
    both = bright * object_
    return both / (bright + object_ - both)


def rank_correlation(Q: Tensor, other: Tensor) -> Tensor:
    """Do two maps order the places alike? Spearman's correlation, image by image; chance level 0.

    Unlike the cosine, it does not change with any increasing function of a map's values, such as a power.

    Args:
        Q: maps `(N, H, W)`.
        other: maps of the same images and size, for example the teacher's.

    Returns:
        `(N,)` in [-1, 1]; NaN where a map is constant.

    Raises:
        ValueError: if the shapes differ.
    """
    if Q.ndim != 3 or Q.shape != other.shape:
        raise ValueError(f"maps must be (N, H, W) of one shape, got {tuple(Q.shape)} and {tuple(other.shape)}")
    ranks = [torch.as_tensor(rankdata(maps.detach().cpu().flatten(1), axis=1)) for maps in (Q, other)]
    a, b = (r - r.mean(dim=1, keepdim=True) for r in ranks)
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))


def expected_calibration_error(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """How far confidence lies from accuracy: their gap in bins of equal width, averaged over images.

    Bin b of M holds the confidences in ((b-1)/M, b/M], the first one zero too (Naeini et al., 2015; Guo et al., 2017).

    Args:
        confidence: the probability that the network gives to its answer, `(N,)` in [0, 1].
        right: bool `(N,)`, whether the answer is right.
        bins: M, how many.

    Returns:
        A number in [0, 1], never below the difference of mean confidence and accuracy, and equal to it for one bin.

    Raises:
        ValueError: if the shapes do not fit, `right` is not bool, a confidence is not in [0, 1], or there is no bin.
    """
    if confidence.ndim != 1 or confidence.shape != right.shape or len(right) == 0 or right.dtype != torch.bool:
        got = f"{tuple(confidence.shape)} and {right.dtype} {tuple(right.shape)}"
        raise ValueError(f"confidence must be (N,) and right bool (N,), of the same N of at least one; got {got}")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("a confidence is not between 0 and 1: give the probability of each answer, not a logit")
    if bins < 1:
        raise ValueError(f"bins is {bins}: it must be 1 or more")
    edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins
    gap = right.double() - confidence.double()
    return torch.bincount(torch.bucketize(confidence.double(), edges), weights=gap).abs().sum().item() / len(gap)


def _enlarge(Q: Tensor, masks: Tensor) -> Tensor:
    if Q.ndim != 3 or masks.ndim != 3 or len(Q) != len(masks):
        raise ValueError(
            f"maps and masks must be (N, H, W) of the same N; got {tuple(Q.shape)} and {tuple(masks.shape)}"
        )
    return F.interpolate(Q[:, None].float(), size=masks.shape[1:], mode="bilinear", align_corners=False)[:, 0]
