"""A digit among scraps of others: does it help to keep the windows that hold an object, and to look at parts of it?

To keep the windows that hold an object is what helps: all windows, or as many random ones, are worse than the whole
image. Parts add nothing, are even a little worse, and parts at random places do as well. To add the scores of both
levels changes nothing.
"""

from collections.abc import Callable

import torch
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, interpolate

from atbook.demos.toy import SIZE, accuracy, draw, fit, paste
from atbook.mechanisms.two_level import cluster_filters, fuse, keep, object_score, part_places
from atbook.names import choose

CHANCE = 10.0  # percent: ten digits
ARMS = ("whole image", "all windows", "random windows", "object level", "random parts", "part level", "both levels")
WINDOW, STRIDE = 16, 4  # pixels
GRID = (SIZE - WINDOW) // STRIDE + 1  # windows in a row
SCRAPS, SCRAP = 6, 8  # how many, and pixels, height and width of each
PARTS, PART = 3, 8  # how many, and pixels, height and width of each: what a filter of the second convolution sees


def task(n: int, train: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images `(n, 1, 32, 32)`, labels `(n,)`, and (top, left) of the digit `(n, 2)`, which no classifier is told."""
    generator = torch.Generator().manual_seed(seed)
    canvas = torch.zeros(n, SIZE, SIZE)
    for _ in range(SCRAPS):
        top, left = torch.randint(WINDOW - SCRAP + 1, (2,), generator=generator).tolist()
        scraps = draw(n, train, generator)[0][:, top : top + SCRAP, left : left + SCRAP]
        paste(canvas, scraps, *torch.randint(SIZE - SCRAP + 1, (2, n), generator=generator))
    digit, labels = draw(n, train, generator)
    corner = torch.randint(SIZE - WINDOW + 1, (2, n), generator=generator)
    paste(canvas, digit, *corner)
    return canvas[:, None], labels, corner.T


def windows(images: Tensor) -> Tensor:
    """All windows, row by row: `(n, 1, 32, 32)` -> `(n, 25, 16, 16)`."""
    return images[:, 0].unfold(1, WINDOW, STRIDE).unfold(2, WINDOW, STRIDE).flatten(1, 2)


def holds(corner: Tensor) -> Tensor:
    """Whether a window holds the digit, up to two pixels in each direction: `(n, 2)` -> bool `(n, 25)`."""
    at = STRIDE * torch.cartesian_prod(torch.arange(GRID), torch.arange(GRID))
    return (at - corner[:, None]).abs().amax(dim=2) <= STRIDE // 2


class Net(nn.Module):
    """A network that sees 16x16 pixels; FilterNet is narrow and has two classes, DomainNet ten."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        n = 8 if classes == 2 else 16
        self.middle = nn.Sequential(
            nn.Conv2d(1, n, 3, padding=1), nn.BatchNorm2d(n), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(n, 2 * n, 3, padding=1), nn.BatchNorm2d(2 * n), nn.ReLU(),
        )  # fmt: skip
        self.top = nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(2 * n, 2 * n, 3, padding=1), nn.BatchNorm2d(2 * n), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(8 * n, 64), nn.ReLU(),
        )  # fmt: skip
        self.classify = nn.Linear(64, classes)

    def features(self, x: Tensor) -> Tensor:
        """`(n, 16, 16)` -> `(n, 64)`."""
        return self.top(self.middle(x[:, None]))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))


def of_windows(function: Callable[[Tensor], Tensor], found: Tensor, kept: Tensor) -> Tensor:
    """What a function makes of the kept windows; zeros for the others, to save time: `(n, 25, ...)` -> `(n, 25, K)`."""
    made = function(found[kept])
    return made.new_zeros(*kept.shape, made.shape[1]).masked_scatter(kept[:, :, None], made)


def train_net(x: Tensor, y: Tensor, classes: int, steps: int, seed: int) -> Net:
    torch.manual_seed(seed)
    net = Net(classes)
    fit(net, lambda x, y: cross_entropy(net(x), y), (x, y), steps, seed, lr=4e-3)
    return net


def filter_net(seed: int, steps: int) -> Net:
    """Trained to tell windows that hold a digit from others, on images of its own, of which it knows the places.

    It stands for a network that has seen ImageNet.
    """
    images, _, corner = task(1000, True, 500 + seed)
    found, held = windows(images), holds(corner)
    others = torch.rand(held.shape, generator=torch.Generator().manual_seed(seed)) < held.float().mean()
    chosen = held | others  # as many of both
    return train_net(found[chosen], held[chosen].long(), 2, steps, seed)


@torch.no_grad()
def kept_windows(arm: str, found: Tensor, filterer: Net, seed: int) -> Tensor:
    """Which of the windows `(n, 25, 16, 16)` an arm keeps, bool `(n, 25)`."""
    if arm == "all windows":
        return torch.ones(found.shape[:2], dtype=torch.bool)
    kept = keep(filterer(found.flatten(0, 1)).softmax(dim=1)[:, 1].view(found.shape[:2]))
    if arm == "random windows":  # as many of each image
        order = torch.rand(kept.shape, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
        kept = kept.gather(1, order)
    return kept


def near_kept(kept: Tensor) -> Tensor:
    """Places of the middle layer whose part lies in a kept window: bool `(n, 25)` -> bool `(n, 16, 16)`."""
    at = 2 * torch.arange(SIZE // 2) + 1  # the middle of what is seen from a place
    start = STRIDE * torch.arange(GRID)
    within = ((at - start[:, None] >= PART // 2) & (start[:, None] + WINDOW - at >= PART // 2)).float()
    return torch.einsum("nij,iy,jx->nyx", kept.view(-1, GRID, GRID).float(), within, within) > 0


def cut(images: Tensor, places: Tensor) -> Tensor:
    """Parts, enlarged to windows: `(n, 1, 32, 32)`, places of the middle layer `(n, p, 2)` -> `(n, p, 16, 16)`."""
    start = 2 * places + 1 - PART // 2
    rows, columns = (start[:, :, axis, None] + torch.arange(PART) for axis in (0, 1))
    parts = images[torch.arange(len(images))[:, None, None, None], 0, rows[..., :, None], columns[..., None, :]]
    return interpolate(parts, size=WINDOW, mode="bilinear", align_corners=False)


class PartLevel:
    """Part detectors out of DomainNet, and a support vector machine on what DomainNet makes of object and parts.

    Args:
        net: DomainNet.
        look: for every part its place is drawn at random, if False; the detectors have found it, if True.
        seed: of the random places.
    """

    def __init__(self, net: Net, look: bool, seed: int) -> None:
        self.net, self.look = net, look
        self.clusters = cluster_filters(net.middle[4].weight.detach(), PARTS)
        self.machine = LinearSVC(dual=False, C=0.1)
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def places(self, images: Tensor, kept: Tensor) -> Tensor:
        """`(n, 1, 32, 32)`, kept windows `(n, 25)` -> places of the parts `(n, PARTS, 2)`."""
        allowed = near_kept(kept)
        if self.look:
            return part_places(self.net.middle(images), self.clusters, allowed)
        chance = torch.rand(len(images), PARTS, *allowed.shape[1:], generator=self.generator) * allowed[:, None]
        highest = chance.flatten(2).argmax(dim=2)
        return torch.stack([highest // allowed.shape[2], highest % allowed.shape[2]], dim=2)

    @torch.no_grad()
    def features(self, images: Tensor, kept: Tensor, places: Tensor) -> Tensor:
        """Of the object, a mean over the kept windows, and of each part: `(n, 64 * (1 + PARTS))`."""
        every = of_windows(self.net.features, windows(images), kept)
        parts = self.net.features(cut(images, places).flatten(0, 1)).unflatten(0, places.shape[:2])
        return torch.cat([object_score(every, kept), parts.flatten(1)], dim=1)


def run(arm: str, seed: int, steps: int = 400) -> tuple[float, dict[str, Tensor]]:
    """Train one arm.

    Returns:
        Accuracy in percent on 1,000 new images of digits not trained on; and, of the first six of them, ``images``
        `(6, 1, 32, 32)`, ``labels`` `(6,)`; unless the whole image is shrunk, the windows ``kept`` `(6, 5, 5)`;
        and, of an arm with parts, their middles ``parts`` `(6, 3, 2)`, (x, y) in pixels.

    Raises:
        ValueError: for an unknown arm.
    """
    choose("arm", arm, ARMS)
    images, labels, _ = task(2000, True, seed)
    new, answers, _ = task(1000, False, 1000 + seed)
    picture = {"images": new[:6], "labels": answers[:6]}
    if arm == "whole image":
        net = train_net(adaptive_avg_pool2d(images, WINDOW)[:, 0], labels, 10, steps, seed)
        with torch.no_grad():
            return accuracy(net(adaptive_avg_pool2d(new, WINDOW)[:, 0]), answers), picture
    filterer = filter_net(seed, steps // 2)
    kept, kept_new = (kept_windows(arm, windows(x), filterer, seed) for x in (images, new))
    named = labels[:, None].expand(kept.shape)
    net = train_net(windows(images)[kept], named[kept], 10, steps, seed)
    with torch.no_grad():
        scores = object_score(of_windows(lambda x: net(x).softmax(dim=1), windows(new), kept_new), kept_new)
    picture["kept"] = kept_new[:6].view(6, GRID, GRID)
    if arm in ("random parts", "part level", "both levels"):
        level = PartLevel(net, look=arm != "random parts", seed=seed)
        level.machine.fit(level.features(images, kept, level.places(images, kept)).numpy(), labels.numpy())
        places = level.places(new, kept_new)
        made = level.machine.decision_function(level.features(new, kept_new, places).numpy())
        by_parts = torch.from_numpy(made).float()
        scores = fuse(scores, by_parts) if arm == "both levels" else by_parts
        picture["parts"] = 2.0 * places[:6].flip(2) + 1
    return accuracy(scores, answers), picture
