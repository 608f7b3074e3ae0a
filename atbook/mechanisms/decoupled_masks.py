"""The mask branch of Mask R-CNN: a mask for each class, without competition (He et al., ICCV 2017, arXiv 1703.06870).

Another branch names the class of what is in the box. The mask branch is left with one task: where in the box is it?
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy


class MaskBranch(nn.Module):
    """What is in a box -> a map of logits for each of K masks: convolutions at half the size, then up again.

    As in the paper, a transposed convolution of stride 2 doubles the size, and a 1x1 convolution makes the masks.

    Args:
        inputs: channels of what is in the box.
        masks: K. One for each class; one alone (class-agnostic); or, for `coupled_loss`, one more for the background.
        width: channels within; the paper takes 256.
    """

    def __init__(self, inputs: int, masks: int, width: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        for _ in range(2):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(width, width, 2, stride=2), nn.ReLU())
        self.predict = nn.Conv2d(width, masks, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, m, m)`, m even -> logits `(N, K, m, m)`."""
        return self.predict(self.layers(x))


def of_class(logits: Tensor, k: Tensor) -> Tensor:
    """The logits of mask k of each box: `(N, K, m, m)` and whole numbers `(N,)`, 0 to K-1 -> `(N, m, m)`."""
    return logits[torch.arange(len(k), device=k.device), k]


def decoupled_loss(logits: Tensor, k: Tensor, target: Tensor) -> Tensor:
    """L_mask: the mean binary cross-entropy of the sigmoids of mask k, k the true class. The others are not touched.

    Args:
        logits: `(N, K, m, m)`.
        k: whole numbers `(N,)`, 0 to K-1.
        target: `(N, m, m)`, 1 on the object and 0 elsewhere.
    """
    return binary_cross_entropy_with_logits(of_class(logits, k), target)


def coupled_loss(logits: Tensor, k: Tensor, target: Tensor) -> Tensor:
    """The usual loss of segmentation instead: a softmax over all K masks at each pixel, the last the background's.

    A pixel of the object has to be of class k and of no other, so that each mask pushes the others down.
    """
    labels = torch.where(target > 0.5, k[:, None, None], logits.shape[1] - 1)
    return cross_entropy(logits, labels)
