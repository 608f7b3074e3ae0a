"""Networks with the outputs of their groups of layers: three for 32x32 images, four in torchvision's for larger ones.

``model(x)`` gives the logits, ``model.groups(x)`` the logits and a list of activations. In every network here weights
are registered in the order of the layers: groups by the names in ``GROUPS``, the classifier last.

Wide residual networks: Zagoruyko and Komodakis, BMVC 2016 (arXiv 1605.07146), in the pre-activation form that the
authors' attention-transfer code uses. Residual networks: He et al., CVPR 2016, section 4.2, in the form of the common
CIFAR-100 benchmark (Tian et al., 2020). Network in network: Lin, Chen and Yan, ICLR 2014.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from atbook.names import IMAGENET, network, wrn_shape

GROUPS = ("group0", "group1", "group2")


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

    GROUPS = GROUPS

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
            Logits `(N, num_classes)` and ``[g0, g1, g2]``, residual sums before batch norm and ReLU, hence signed,
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


class BasicBlock(nn.Module):
    """Residual block of the first ResNets: convolution, batch norm, ReLU, twice, the sum before the last ReLU."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        same = channels_in == channels and stride == 1
        projection = [nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)]
        self.shortcut = None if same else nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(F.relu(self.bn0(self.conv0(x)))))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    """A residual network for CIFAR: ``resnet20`` has the widths 16, 32, 64, ``resnet8x4`` four times as many.

    Args:
        depth: 6n+2 with n >= 1.
        width: multiplies the channels of the three groups; above 1 those of the first convolution are doubled, as in
            the benchmark.
        num_classes: number of logits.
    """

    GROUPS = GROUPS

    def __init__(self, depth: int, width: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        widths = [16 if width == 1 else 32, 16 * width, 32 * width, 64 * width]
        self.conv0 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(widths[0])
        for j, stride in enumerate((1, 2, 2)):
            group = [BasicBlock(widths[j], widths[j + 1], stride)]
            group += [BasicBlock(widths[j + 1], widths[j + 1], 1) for _ in range(blocks - 1)]
            setattr(self, f"group{j}", nn.Sequential(*group))
        self.fc = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def groups(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As `WideResNet.groups`; these outputs come after a ReLU, hence are zero or more."""
        g0 = self.group0(F.relu(self.bn0(self.conv0(x))))
        g1 = self.group1(g0)
        g2 = self.group2(g1)
        return self.fc(g2.mean(dim=(2, 3))), [g0, g1, g2]

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, num_classes)` of images `(N, 3, H, W)`."""
        return self.groups(x)[0]


class NIN(nn.Module):
    """Network in network: three groups of a spatial and two 1x1 convolutions, and a mean over places at the end.

    The paper says only "0.2M" and "1M parameters". Its wide network is the original, without dropout; the thin one has
    half as many channels.

    Args:
        width: multiplies the channels: 1.0 wide, 0.5 thin.
        batch_norm: after each convolution; the paper's gradient experiments use none.
        num_classes: number of logits.
    """

    GROUPS = GROUPS
    CHANNELS = ((192, 160, 96), (192, 192, 192), (192, 192))

    def __init__(self, width: float, batch_norm: bool, num_classes: int = 10) -> None:
        super().__init__()
        channels, kernels = 3, (5, 5, 3)
        for j, outs in enumerate(self.CHANNELS):
            layers = []
            for i, out in enumerate(int(width * out) for out in outs):
                kernel = kernels[j] if i == 0 else 1
                layers += [nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=not batch_norm)]
                layers += [nn.BatchNorm2d(out)] * batch_norm + [nn.ReLU()]
                channels = out
            setattr(self, f"group{j}", nn.Sequential(*layers[:-1]))  # read before the last ReLU
        self.classes = nn.Conv2d(channels, num_classes, 1)
        self.apply(_initialise)

    def groups(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As `WideResNet.groups`; these outputs come before a ReLU, hence are signed."""
        g0 = self.group0(x)
        g1 = self.group1(F.max_pool2d(F.relu(g0), 3, stride=2, padding=1))
        g2 = self.group2(F.avg_pool2d(F.relu(g1), 3, stride=2, padding=1))
        return self.classes(F.relu(g2)).mean(dim=(2, 3)), [g0, g1, g2]

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


Network = WideResNet | ResNet | NIN


def build(name: str, num_classes: int = 10) -> Network:
    """A freshly initialised network by its name, e.g. ``"wrn-16-1"``; seed torch before for the same weights.

    Args:
        name: ``wrn-DEPTH-WIDTH``, or one of `atbook.names.NIN`, `atbook.names.RESNETS` and `atbook.names.IMAGENET`.
        num_classes: 2 or more.

    Raises:
        ValueError: if the name or the depth is wrong (see `atbook.names.network`), or ``num_classes`` is below 2.
    """
    network(name)
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}: a classifier needs 2 or more")
    if name.startswith("nin"):
        return NIN(0.5 if "thin" in name else 1.0, not name.endswith("-nobn"), num_classes)
    if name in IMAGENET:
        from atbook.imagenet import ImageNetResNet  # torchvision takes a second to import

        return ImageNetResNet(name, num_classes)
    if name.startswith("resnet"):
        depth, _, width = name.removeprefix("resnet").partition("x")
        return ResNet(int(depth), int(width or 1), num_classes)
    return WideResNet(*wrn_shape(name), num_classes)


def first_groups(model: Network, count: int) -> list[str]:
    """Names of all weights from the input to the end of the first ``count`` groups, in order; none for 0."""
    names = [name for name, _ in model.named_parameters()]
    ends = [i for i, name in enumerate(names) if name.startswith(tuple(f"{g}." for g in model.GROUPS[:count]))]
    return names[: ends[-1] + 1] if ends else []


def start_from(model: Network, weights: Mapping[str, Tensor]) -> None:
    """Load pretrained weights; a classifier of another number of classes keeps the model's own, new weights.

    Args:
        model: one that `build` made.
        weights: a state dict of the same network: all tensors, and no others.

    Raises:
        ValueError: if a tensor is missing, unknown or, the classifier's aside, of another shape.
    """
    own, given = model.state_dict(), dict(weights)
    for name in list(own)[-2:]:
        if name in given and given[name].shape != own[name].shape:
            given[name] = own[name]
    unlike = sorted(own.keys() ^ given.keys()) or [n for n in own if own[n].shape != given[n].shape]
    if unlike:
        raise ValueError(f"the weights are not those of this network (tensor {unlike[0]!r}): use the same network's")
    model.load_state_dict(given)
