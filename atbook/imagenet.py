"""For large images: torchvision's residual networks with their groups, and images that are decoded as they are needed.

Imported where it is used alone, since torchvision takes a second to import.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from atbook.attention import Taps
from atbook.compat import torchvision
from atbook.data import MEAN, STD, Part, balanced, read_image

transforms = torchvision.transforms

BLOCKS = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3]}
# What torchvision's pretrained weights expect, in units of bytes.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class ImageNetResNet(torchvision.models.ResNet):
    """torchvision's ResNet-18 or 34, with the names and shapes of its weights, so that its weight files fit.

    It takes images as `atbook.data.standardize` gives them, like every network here, and rescales them to the constants
    that those weights were trained with.

    Args:
        name: "resnet18" or "resnet34".
        num_classes: number of logits.
    """

    GROUPS = ("layer1", "layer2", "layer3", "layer4")

    def __init__(self, name: str, num_classes: int = 1000) -> None:
        super().__init__(torchvision.models.resnet.BasicBlock, BLOCKS[name], num_classes)
        del self.groups  # torchvision's number of groups of a convolution, needed while building alone
        constants = (torch.tensor(values)[:, None, None] for values in (MEAN, STD, IMAGENET_MEAN, IMAGENET_STD))
        mean, std, wanted_mean, wanted_std = constants
        self.register_buffer("scale", std / wanted_std, persistent=False)
        self.register_buffer("shift", (mean - wanted_mean) / wanted_std, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, num_classes)` of images `(N, 3, H, W)`."""
        return super().forward(x * self.scale + self.shift)

    def groups(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits and the outputs of the four groups, zero or more: 64, 128, 256 and 512 channels, of `H/4` to `H/32`.

        Args:
            x: standardised images `(N, 3, H, W)`; 224x224 in the paper, 32x32 or more.
        """
        with Taps(self, self.GROUPS) as taps:
            return self(x), list(taps)


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Labelled images on the disk, of any size, with the part of `atbook.data.Images` that training and testing use.

    Attributes:
        paths: the files.
        labels: int64 `(N,)`, indices into ``classes``.
        classes: the names of the classes.
        label: short text that names the data in tables.
        size: height and width that images are cropped to, in pixels.
        device: where batches are put.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]
    label: str
    size: int
    device: torch.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, n: int) -> Self:
        """As `atbook.data.Images.take`."""
        chosen = balanced(self, n)
        return replace(self, paths=tuple(self.paths[i] for i in chosen), labels=self.labels[chosen])

    def to(self, device: torch.device) -> Self:
        """The same files, their batches on a device."""
        return replace(self, device=device)

    def fingerprint(self) -> str:
        """SHA-256 of classes, labels, size, and each file's folder, name and length, in hexadecimal.

        The bytes are not read, which would take as long as an epoch: a file changed without a change of its length is
        not noticed.
        """
        files = [[*path.parts[-2:], path.stat().st_size] for path in self.paths]
        return hashlib.sha256(json.dumps([self.classes, self.labels.tolist(), self.size, files]).encode()).hexdigest()

    def views(
        self, batches: Sequence[Tensor], kind: str, generator: torch.Generator, part: Part = slice
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented batches; a view depends on the generator's state and on the image alone, not on who decodes it.

        Args:
            batches: numbers of the images of each batch.
            kind: "crop-flip" (a part of 8 to 100 % of the area, of an aspect from 3:4 to 4:3, enlarged or reduced to
                the size, and flipped with probability 1/2: the usual one for ImageNet), "flip" (the test's view,
                flipped with probability 1/2) or "none" (the test's view).
            generator: of the CPU.
            part: which of so many images this process wants; no others are decoded.

        Returns:
            Of each batch the images, uint8 `(N, 3, size, size)`, and labels.
        """
        seeds = torch.randint(2**32, (len(self),), generator=generator)  # torch's CPU generator takes 32 bits
        own = [batch[part(len(batch))] for batch in batches]
        return self._load(own, _Views(self.paths, self.size, kind, seeds))

    def batches(self, size: int, part: Part = slice) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order, or this process's part of them, as they are tested: the shorter side to 8/7 of
        ``self.size``, then the middle."""
        views, own = _Views(self.paths, self.size, "none", torch.zeros(len(self))), part(len(self))
        return self._load(torch.arange(len(self))[own].split(size), views)

    def _load(self, batches: Sequence[Tensor], views: "_Views") -> Iterator[tuple[Tensor, Tensor]]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # of Linux
        workers = 0 if len(self) < 1000 else min(8, cores)  # starting one takes a second
        order, generator = [batch.tolist() for batch in batches], torch.Generator()  # torch's own stream stays as it is
        loader = DataLoader(views, batch_sampler=order, num_workers=workers, generator=generator)
        try:
            for batch, images in zip(batches, loader, strict=True):
                yield images.to(self.device), self.labels[batch.cpu()].to(self.device)
        except ValueError as error:  # from a worker it comes with all of its traceback
            raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from None


@dataclass(frozen=True)
class _Views(Dataset):
    """Decodes and crops one image at a time, in whichever process."""

    paths: Sequence[Path]
    size: int
    kind: str
    seeds: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = read_image(self.paths[index])
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own stream
            torch.manual_seed(int(self.seeds[index]))
            if self.kind == "crop-flip":
                image = transforms.RandomResizedCrop(self.size)(image)
            else:
                image = transforms.CenterCrop(self.size)(transforms.Resize(round(self.size * 8 / 7))(image))
            if self.kind != "none":
                image = transforms.RandomHorizontalFlip()(image)
        return transforms.functional.pil_to_tensor(image)
