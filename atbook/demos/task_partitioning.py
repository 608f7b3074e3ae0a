"""Thin ships side by side, and the like of them on land: does it help that deep layers detect and shallow ones outline?

Both depths are needed: the deep layer alone cannot outline ships so thin, the shallow one alone takes those on land for
ships at sea. To give each a task of its own is not: if the two are added up and learn one task together, the outlines
are as good, and ships are miscounted less often.
"""

import torch
from scipy.ndimage import label
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from atbook.demos.toy import fit
from atbook.mechanisms.task_partitioning import TaskPartitioning, enlarge, partitioned, partitioned_loss, smooth
from atbook.names import choose

CHANCE = 2.8  # percent: every pixel
ARMS = ("deep", "shallow", "both, one task", "partitioned")
SIZE = 48  # pixels, height and width of an image
LENGTH, WIDTH, GAP = 8.0, 2.0, 1.5  # pixels, of a ship and between two; wider than a diagonal, so that no pixels touch
PIXELS = torch.cartesian_prod(torch.arange(SIZE), torch.arange(SIZE)).flip(1) + 0.5  # (x, y) of the middles, row by row
YARD = 4.5  # pixels around the ships on land that look like the sea; from a ship a shallow layer sees no further
GROUPS = ((-1, -1), (-1, 1), (1, 0))  # on which side of the coast, the sea's or the land's, and where along it


def group(n: int, centre: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One to three ships side by side at a random angle, their middle at ``centre`` `(n, 2)`, (x, y) in pixels.

    Returns:
        Distance of all pixels from the nearest ship, negative within, and from the rectangle around all of them,
        `(n, 48 * 48)` each; and how many ships these are `(n,)`.
    """
    count, angle = torch.randint(1, 4, (n, 1), generator=generator), torch.pi * torch.rand(n, 1, generator=generator)
    x, y = (PIXELS - centre[:, None]).unbind(dim=2)
    along, across = (x * angle.cos() + y * angle.sin()).abs(), y * angle.cos() - x * angle.sin()
    pitch, last = WIDTH + GAP, count - 1
    nearest = (across / pitch + last / 2).round().clamp(min=0).minimum(last)
    ship = torch.stack([along - LENGTH / 2, (across - pitch * (nearest - last / 2)).abs() - WIDTH / 2])
    box = torch.stack([along - LENGTH / 2, across.abs() - (WIDTH + pitch * last) / 2])
    ship, box = (beyond.clamp(min=0).norm(dim=0) + beyond.amax(dim=0).clamp(max=0) for beyond in (ship, box))
    return ship, box, count[:, 0]


def task(n: int, train: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images `(n, 1, 48, 48)`, ships at sea `(n, 48, 48)`, 0 or 1, and how many these are `(n,)`.

    A coast at any angle parts sea and land. Two groups of ships are at sea. One is on land and not to be found; it lies
    in a yard that looks like the sea, so that what is nearest to it does not tell. Nothing depends on ``train``: new
    images are of new scenes.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, generator=generator)

    angle = uniform(0.0, 2 * torch.pi)
    inland, along = torch.cat([angle.cos(), angle.sin()], dim=1), torch.cat([-angle.sin(), angle.cos()], dim=1)
    sea, land, yard = (torch.full((n, SIZE**2), float(SIZE)) for _ in range(3))  # distances
    ships = torch.zeros(n, dtype=torch.int64)
    for side, place in GROUPS:
        centre = SIZE / 2 + side * uniform(12.5, 14.0) * inland + (9 * place + uniform(-1.0, 1.0)) * along
        ship, box, count = group(n, centre, generator)
        if side > 0:
            land, yard = ship, box
        else:
            sea, ships = sea.minimum(ship), ships + count
    ground = (((PIXELS - SIZE / 2) * inland[:, None]).sum(dim=2) > 0) & (yard > YARD)
    images = ground * (0.4 + 0.4 * torch.rand(n, SIZE**2, generator=generator))
    images = images.maximum((0.5 - sea.minimum(land)).clamp(0, 1)) + 0.1 * torch.randn(n, SIZE**2, generator=generator)
    return images.view(n, 1, SIZE, SIZE), (sea < 0).float().view(n, SIZE, SIZE), ships


def iou(made: Tensor, target: Tensor) -> float:
    """Intersection over union, the mean over images in percent: bool `(n, H, W)` and 0 or 1 `(n, H, W)`."""
    both, either = made & (target > 0.5), made | (target > 0.5)
    return 100 * (both.sum(dim=(1, 2)) / either.sum(dim=(1, 2))).mean().item()


def miscounted(made: Tensor, ships: Tensor) -> Tensor:
    """By how many the connected parts of an answer are more or fewer than the ships, the mean over images: a scalar.

    A pixel is connected to the eight around it.
    """
    parts = torch.tensor([label(image, structure=torch.ones(3, 3))[1] for image in made.numpy()])
    return (parts - ships).abs().float().mean()


def scores(arm: str, precise: Tensor, coarse: Tensor) -> Tensor:
    """Logits of all pixels `(n, 48, 48)`, of an arm with one task."""
    if arm == "both, one task":
        return precise + smooth(coarse)
    return smooth(coarse) if arm == "deep" else precise


def run(arm: str, seed: int, steps: int = 250) -> tuple[float, dict[str, Tensor]]:
    """Train one arm.

    Returns:
        Intersection over union in percent, the mean over 500 new images; and, of the first six of them, ``images``
        `(6, 1, 48, 48)`, ``targets`` and ``answers`` `(6, 48, 48)`, ``deep`` and ``shallow``, what the two layers give,
        `(6, 48, 48)` in 0 to 1; and ``miscounted``, by how many ships the answers are wrong, the mean over all 500.

    Raises:
        ValueError: for an unknown arm.
    """
    choose("arm", arm, ARMS)
    torch.manual_seed(seed)
    model = TaskPartitioning(width=12)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        precise, coarse = model(x)
        if arm == "partitioned":
            return partitioned_loss(precise, coarse, y)
        return binary_cross_entropy_with_logits(scores(arm, precise, coarse), y)

    images, targets, _ = task(2000, True, seed)
    fit(model, loss, (images, targets), steps, seed, lr=1e-2, batch=16)
    images, targets, ships = task(500, False, 1000 + seed)
    with torch.no_grad():
        precise, coarse = model(images)
    answers = partitioned(precise, coarse) if arm == "partitioned" else scores(arm, precise, coarse) > 0
    picture = {"images": images[:6], "targets": targets[:6], "answers": answers[:6]}
    picture |= {"deep": enlarge(coarse)[:6].sigmoid(), "shallow": precise[:6].sigmoid()}
    return iou(answers, targets), picture | {"miscounted": miscounted(answers, ships)}
