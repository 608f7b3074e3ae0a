"""Wide residual networks for 32x32 images, with their three groups as outputs.

Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016 (arXiv 1605.07146), in the pre-activation form
that the authors' attention-transfer code uses. Depth 6n+4 means three groups of n blocks of two 3x3
convolutions; width k multiplies the channels 16, 32, 64.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from atbook.names import wrn_shape


class Block(nn.Module):
    """Pre-activation residual block: batch norm, ReLU, convolution, twice, beside a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(channels_in)
        self.conv0 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        # The 1x1 convolution stands only where the shape changes; elsewhere the shortcut is the input itself.
        same = channels_in == channels and stride == 1
        self.shortcut = None if same else nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        o = F.relu(self.bn0(x))
        y = self.conv1(F.relu(self.bn1(self.conv0(o))))
        return y + (x if self.shortcut is None else self.shortcut(o))


class WideResNet(nn.Module):
    """A wide residual network whose groups' outputs can be read.

    Args:
        depth: 6n+4 with n >= 1.
        width: multiplies the channels 16, 32, 64 of the three groups.
        num_classes: number of logits.
    """

    def __init__(self, depth: int, width: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.conv0 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        for j, stride in enumerate((1, 2, 2)):
            group = [Block(widths[j], widths[j + 1], stride)]
            group += [Block(widths[j + 1], widths[j + 1], 1) for _ in range(blocks - 1)]
            setattr(self, f"group{j}", nn.Sequential(*group))
        self.bn = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        self.apply(_initialise)

    def groups(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits and the outputs of the three groups.

        Args:
            x: standardised images `(N, 3, H, W)`; 32x32 in the paper, any multiple of 4 works.

        Returns:
            Logits `(N, num_classes)` and ``[g0, g1, g2]``: residual sums before batch norm and ReLU, hence signed,
            of shape `(N, 16k, H, W)`, `(N, 32k, H/2, W/2)`, `(N, 64k, H/4, W/4)`.
        """
        g0 = self.group0(self.conv0(x))
        g1 = self.group1(g0)
        g2 = self.group2(g1)
        pooled = F.relu(self.bn(g2)).mean(dim=(2, 3))
        return self.fc(pooled), [g0, g1, g2]

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, num_classes)` of images `(N, 3, H, W)`."""
        return self.groups(x)[0]


def _initialise(module: nn.Module) -> None:
    """The authors' initial weights: He normal, zero biases, and batch norm scales uniform in [0, 1)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)
    if isinstance(module, nn.BatchNorm2d):
        nn.init.uniform_(module.weight)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


def build(name: str, num_classes: int = 10) -> WideResNet:
    """A freshly initialised network by its name, e.g. ``"wrn-16-1"``; seed torch before for the same weights.

    Raises:
        ValueError: if the name or the depth is wrong (see `atbook.names.wrn_shape`), or ``num_classes`` is below 2.
    """
    depth, width = wrn_shape(name)
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}: a classifier needs 2 or more")
    return WideResNet(depth, width, num_classes)
