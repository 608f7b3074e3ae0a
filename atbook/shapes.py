"""The embedded data set: textured shapes in clutter, with the true mask of each object.

The outline alone decides the class. Place, size, angle, texture and colour are random, and the background has
textures, gradients, noise and halves of the same outlines, so that a network does well by looking at the object.

Everything here is integer arithmetic on a counter-based hash: the bytes depend on no random stream of a library
and on no rounding, so they are the same on every machine. ``tests/test_shapes.py`` pins them.
"""

import math

import numpy as np

CLASSES = ("arrow", "crescent", "cross", "disc", "ell", "heart", "ring", "square", "star", "triangle")
SPLITS = {"train": range(0, 10_000), "test": range(10_000, 12_000)}  # the numbers of the images
SIZE = 32  # pixels, height and width
GRID = 64  # cells, height and width of an outline's drawing
FRAGMENTS = 5  # halves of outlines in each background
CHUNK = 128  # images at a time: the arrays of a chunk stay in the processor's cache

# Corners as (x, y) on the drawing, from -64 to 64, y pointing down.
POLYGONS = {
    "arrow": [(0, -62), (46, -4), (18, -4), (18, 60), (-18, 60), (-18, -4), (-46, -4)],
    "cross": [(-20, -60), (20, -60), (20, -20), (60, -20), (60, 20), (20, 20),
              (20, 60), (-20, 60), (-20, 20), (-60, 20), (-60, -20), (-20, -20)],
    "ell": [(-40, -54), (-2, -54), (-2, 16), (42, 16), (42, 54), (-40, 54)],
    "square": [(-44, -44), (44, -44), (44, 44), (-44, 44)],
    "star": [(0, -62), (16, -22), (59, -19), (26, 8), (36, 50), (0, 27), (-36, 50), (-26, 8), (-59, -19), (-16, -22)],
    "triangle": [(0, -62), (54, 32), (-54, 32)],
}


def make(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images of a split, made anew.

    Args:
        split: ``"train"`` (10,000 images) or ``"test"`` (2,000); every class has the same number.

    Returns:
        Images uint8 `(N, 3, 32, 32)`, labels int64 `(N,)` into `CLASSES`, object masks bool `(N, 32, 32)`.
    """
    numbers = np.array(SPLITS[split])
    chunks = [_scenes(numbers[i : i + CHUNK]) for i in range(0, len(numbers), CHUNK)]
    images, masks = (np.concatenate(part) for part in zip(*chunks, strict=True))
    return images, numbers % len(CLASSES), masks


class Dice:
    """Random integers for each of N images: splitmix64 (Steele et al., 2014) of image number and count of rolls."""

    def __init__(self, numbers: np.ndarray) -> None:
        self.next = numbers.astype(np.uint64) << np.uint64(32)

    def roll(self, low: int, high: int, *shape: int) -> np.ndarray:
        """Integers from ``low`` to ``high - 1``: int32 `(N, *shape)`."""
        count = math.prod(shape)
        z = self.next.reshape(-1, 1) + np.arange(count, dtype=np.uint64)
        self.next = self.next + np.uint64(count)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        span = ((z >> np.uint64(32)) * np.uint64(high - low)) >> np.uint64(32)
        return (span.astype(np.int32) + np.int32(low)).reshape(-1, *shape)


def outlines() -> np.ndarray:
    """The drawings of the ten classes: bool `(10, 64, 64)`, pointing up."""
    y, x = np.mgrid[1 - GRID : GRID : 2, 1 - GRID : GRID : 2]
    curved = {
        "crescent": (x * x + y * y < 60**2) & ((x - 28) ** 2 + y * y > 46**2),
        "disc": x * x + y * y < 56**2,
        "heart": ((abs(x) - 27) ** 2 + (y + 22) ** 2 < 31**2) | _polygon(x, y, [(-55, -9), (55, -9), (0, 60)])
        | _polygon(x, y, [(-27, -30), (27, -30), (27, -8), (-27, -8)]),
        "ring": (x * x + y * y < 60**2) & (x * x + y * y > 31**2),
    }
    return np.stack([curved[name] if name in curved else _polygon(x, y, POLYGONS[name]) for name in CLASSES])


def _polygon(x: np.ndarray, y: np.ndarray, corners: list[tuple[int, int]]) -> np.ndarray:
    """True inside: a ray to the left crosses an odd number of edges."""
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        side = (x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)
        inside ^= ((y0 > y) != (y1 > y)) & ((side < 0) == (y1 > y0))
    return inside


def _stencils() -> tuple[np.ndarray, np.ndarray]:
    """Soft drawings of ten whole and ten half outlines: int32 `(20, 64, 64)`, 0 to 256, and their areas in cells."""
    whole = outlines()
    half = whole.copy()
    half[:, :, : GRID // 2 - 4] = False
    hard = np.concatenate([whole, half]).astype(np.int32)
    # A mean over 4x4 cells, about one pixel of the image, smooths the edges.
    padded = np.pad(hard, ((0, 0), (2, 1), (2, 1)))
    soft = sum(padded[:, i : i + GRID, j : j + GRID] for i in range(4) for j in range(4)) * 16
    soft[:, [0, -1], :] = soft[:, :, [0, -1]] = 0  # so that everything off the drawing may read its border
    return soft.astype(np.int32), hard.sum(axis=(1, 2))


STENCILS, AREAS = _stencils()


def _scenes(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `(N, 3, 32, 32)` and object masks bool `(N, 32, 32)` of the given numbers."""
    dice = Dice(numbers)
    ground = dice.roll(0, 112, 3)
    ramp = np.arange(SIZE, dtype=np.int32) * 2 - SIZE
    slope = dice.roll(-1, 2, 3, 2) * dice.roll(0, 64, 3, 2)
    images = _texture(dice, ground)
    images += (slope[:, :, 0, None] * ramp >> 6)[:, :, None, :] + (slope[:, :, 1, None] * ramp >> 6)[:, :, :, None]
    for _ in range(FRAGMENTS):
        kind = len(CLASSES) + dice.roll(0, len(CLASSES), 1)[:, 0]
        _paste(dice, images, kind, dice.roll(14, 45, 1)[:, 0], ground)
    cover = _paste(dice, images, numbers % len(CLASSES), dice.roll(90, 221, 1)[:, 0], ground)
    images += dice.roll(-12, 13, 3, SIZE, SIZE)
    return images.clip(0, 255).astype(np.uint8), cover >= 128


def _texture(dice: Dice, colour: np.ndarray) -> np.ndarray:
    """Plain, stripes or checks of two near colours, at any angle: int32 `(N, 3, 32, 32)`, not yet clipped."""
    p, q = dice.roll(-14, 15, 2).T[:, :, None]
    kind = dice.roll(0, 4, 1, 1)
    at = np.arange(SIZE, dtype=np.int32)
    first = ((p * at)[:, None, :] + (q * at)[:, :, None]) >> 5
    second = ((p * at)[:, :, None] - (q * at)[:, None, :]) >> 5
    bit = (first & kind & 1) ^ (second & (kind >> 1) & 1)
    return colour[:, :, None, None] + bit[:, None] * dice.roll(-32, 33, 3, 1, 1)


def _paste(dice: Dice, images: np.ndarray, kind: np.ndarray, area: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Paint a stencil of ``area`` pixels onto each image, in place, at a random place and angle.

    It is brighter than the ground by 64 or more in every channel.

    Returns:
        How far the stencil covers each pixel, int32 `(N, 32, 32)`, 0 to 256.
    """
    step = np.array([math.isqrt((int(AREAS[k]) << 20) // int(a)) for k, a in zip(kind, area, strict=True)], np.int32)
    margin = (GRID << 9) // step + 1  # pixels; half the drawing, so that the whole of it fits into the image
    room = np.maximum(SIZE - 2 * margin, 1)[:, None]
    centre = margin[:, None] * 2 - SIZE + 1 + 2 * (dice.roll(0, 1 << 14, 2) * room >> 14)  # in half pixels
    u, v = _turned(dice, step, centre)
    cover = STENCILS.reshape(-1)[(kind.astype(np.int32) << 12)[:, None, None] + (v << 6) + u]
    paint = _texture(dice, ground + dice.roll(64, 145, 3))
    images += (paint - images) * cover[:, None] >> 8
    return cover


def _turned(dice: Dice, step: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cell (u, v) of the drawing under every pixel, `(N, 32, 32)` each, when it is turned by up to 30 degrees.

    The angle comes from the tangent of its half, t/64: cosine (1-t^2)/(1+t^2) and sine 2t/(1+t^2) are rational.
    """
    t = dice.roll(-17, 18, 1)
    norm = 64 * 64 + t * t
    cosine, sine = step[:, None] * (64 * 64 - t * t) // norm, step[:, None] * 128 * t // norm
    at = 2 * np.arange(SIZE, dtype=np.int32) + 1 - SIZE
    x, y = at - centre[:, :1], at - centre[:, 1:]
    u = ((cosine * x)[:, None, :] + (sine * y)[:, :, None] >> 11) + GRID // 2
    v = ((cosine * y)[:, :, None] - (sine * x)[:, None, :] >> 11) + GRID // 2
    return u.clip(0, GRID - 1), v.clip(0, GRID - 1)
