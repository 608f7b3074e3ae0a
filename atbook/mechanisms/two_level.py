"""Two-level attention: which windows hold the object, and which filters stand for its parts (Xiao et al., CVPR 2015).

arXiv 1411.6447. Only labels of whole images are needed to train the classifiers. One network (FilterNet) has learned
elsewhere what an object looks like; the other (DomainNet) learns the classes, from what the first keeps.
"""

import numpy as np
import torch
from sklearn.cluster import SpectralClustering
from torch import Tensor

ALPHA = 0.5  # of the part level, theirs


def keep(confidence: Tensor) -> Tensor:
    """Object level: the windows that FilterNet takes for an object, and always the one it is surest of.

    Confidence `(N, P)` in 0 to 1, of P windows -> bool `(N, P)`.
    """
    return (confidence > 0.5) | (confidence == confidence.amax(dim=1, keepdim=True))


def object_score(probabilities: Tensor, kept: Tensor) -> Tensor:
    """Mean of DomainNet's probabilities `(N, P, K)` over the kept windows `(N, P)`: `(N, K)`."""
    weights = kept / kept.sum(dim=1, keepdim=True)
    return (weights[:, :, None] * probabilities).sum(dim=1)


def similarity(weight: Tensor) -> Tensor:
    """S_ij, the cosine of the angle between the weights of filters i and j: `(C, ...)` -> `(C, C)` in -1 to 1."""
    unit = torch.nn.functional.normalize(weight.flatten(1), dim=1)
    return unit @ unit.T


def cluster_filters(weight: Tensor, parts: int) -> Tensor:
    """Part level: spectral clustering of the filters of a middle layer by their similarity; a cluster is a detector.

    The clustering wants no negative numbers, so that it is given (1 + S) / 2; the paper does not say what it does.

    Returns:
        The number of each filter's cluster, `(C,)`, 0 to parts - 1.
    """
    clustering = SpectralClustering(parts, affinity="precomputed", random_state=0)
    return torch.from_numpy(clustering.fit_predict(((1 + similarity(weight)) / 2).double().numpy()).astype(np.int64))


def part_places(activation: Tensor, clusters: Tensor, allowed: Tensor) -> Tensor:
    """Where each detector answers most, the answers of its filters added up.

    Args:
        activation: of the middle layer `(N, C, H, W)`.
        clusters: of its filters `(C,)`.
        allowed: places that may be chosen, bool `(N, H, W)`, at least one in each image.

    Returns:
        (row, column) of a place for each part `(N, parts, 2)`.
    """
    answers = torch.stack([activation[:, clusters == part].sum(dim=1) for part in clusters.unique()], dim=1)
    highest = answers.masked_fill(~allowed[:, None], -torch.inf).flatten(2).argmax(dim=2)
    return torch.stack([highest // activation.shape[3], highest % activation.shape[3]], dim=2)


def fuse(by_object: Tensor, by_parts: Tensor) -> Tensor:
    """Final score = object score + ALPHA part score, `(N, K)` all three."""
    return by_object + ALPHA * by_parts
