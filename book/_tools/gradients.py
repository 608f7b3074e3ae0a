"""Trains what chapter 09 shows: gradient methods beside activation attention, in the setting of the paper's table 3.

The networks have no batch norm, and on the whole scenes of `shapes` they learn nothing in minutes on a CPU. So they are
taught on windows: the 16x16 pixels around each object. ``python book/_tools/gradients.py FOLDER`` makes the images and
all runs there; stopped, it goes on where it was.
"""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from atbook.data import Images, load
from atbook.recipes import Recipe
from atbook.runs import Run
from atbook.train import train_together

SIDE = 16
TRAIN = 2000  # scenes that teacher and students learn from; the next thousand are held out
PROTOCOL = {
    "dataset": "folder", "student": "nin-thin-nobn", "epochs": 3, "batch": 16, "lr": 0.06, "schedule": "one-cycle",
    "augment": "flip", "weight_decay": 0.0,
}  # fmt: skip
TEACHER = {"student": "nin-wide-nobn", "epochs": 8, "seed": 0}
RATES = (0.03, 0.06)
GRADIENT = (0.01, 0.1, 1.0, 10.0)
BETAS = {"at": (10.0, 30.0, 100.0, 300.0), "min-l2": GRADIENT, "grad-at": GRADIENT, "symmetry": GRADIENT}
WEIGHTS = BETAS | {"kd": (0.03, 0.1, 0.3, 0.9)}  # beta, for distillation alpha
LONGER = (6, 12)  # epochs of controls: plain students that are given about the time of the other methods
METHODS = ("student", "min-l2", "grad-at", "kd", "symmetry", "at")


def windows(split: str, first: int, count: int) -> Images:
    """Scenes, cut to 16x16 pixels around the middle of the object's box, with their masks; large objects lose edges.

    Args:
        split: of `shapes`.
        first, count: which scenes, by number; tens of them, since class after class comes in turn.

    Returns:
        The windows by class, then number: the order of a folder of images.
    """
    scenes = load("shapes", split)
    chosen = torch.arange(first, first + count)
    chosen = chosen[scenes.labels[chosen].argsort(stable=True)]
    masks = scenes.masks[chosen]
    at = _around(masks.any(dim=2))[:, :, None] * 32 + _around(masks.any(dim=1))[:, None, :]  # `(N, 16, 16)`
    pixels = at.flatten(1)[:, None].expand(-1, 3, -1)
    images = scenes.images[chosen].flatten(2).gather(2, pixels).unflatten(2, (SIDE, SIDE))
    masks = masks.flatten(1).gather(1, at.flatten(1)).unflatten(1, (SIDE, SIDE))
    return Images(images, scenes.labels[chosen], scenes.classes, masks, "windows")


def _around(used: Tensor) -> Tensor:
    """The 16 rows (or columns) around the middle of those that the object uses, `(N, 16)`."""
    first, last = used.int().argmax(dim=1), 31 - used.flip(1).int().argmax(dim=1)
    start = ((first + last + 1) // 2 - SIDE // 2).clamp(0, 32 - SIDE)
    return start[:, None] + torch.arange(SIDE)


def write_folder(folder: Path, parts: dict[str, Images]) -> None:
    """The images as PNG files, ``folder/train/<class>/<number>.png`` and the same for test."""
    for split, part in parts.items():
        for n, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
            path = folder / split / part.classes[label] / f"{n:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def pieces(folder: Path) -> Iterator[Callable[[], list[Run]]]:
    """The trainings, in order: teacher; search for lr and weights on held-out images; five seeds of each method.

    Controls: attention transfer from a teacher that has not learned, and plain students that are trained for longer.
    """
    images, held_out, searched = folder / "windows", folder / "held-out", folder / "search"
    if not images.exists():
        write_folder(images, {"train": windows("train", 0, TRAIN), "test": windows("test", 0, 1000)})
        write_folder(held_out, {"train": windows("train", 0, TRAIN), "test": windows("train", TRAIN, 1000)})

    def train(recipes: dict[Path, Recipe], root: Path) -> Callable[[], list[Run]]:
        left = {out: recipe for out, recipe in recipes.items() if not _failed(out)}
        return partial(train_together, left, root, folder / "teacher", progress=False)

    yield train({folder / "teacher": Recipe(**PROTOCOL | TEACHER)}, images)
    yield train({folder / "teacher-untrained": Recipe(**PROTOCOL | TEACHER | {"lr": 1e-9, "epochs": 1})}, images)
    rates = {searched / f"student-{lr}": Recipe(**PROTOCOL | {"lr": lr, "seed": 100}) for lr in RATES}
    yield train(rates, held_out)
    for method, values in WEIGHTS.items():
        common = PROTOCOL | {"method": method, "seed": 100}
        recipes = {searched / f"{method}-{v:g}": Recipe(**common | weighted(method, v)) for v in values}
        yield train(recipes, held_out)
    for seed in range(5):
        fields = {m: weighted(m, best(searched, m)) if m in WEIGHTS else {} for m in METHODS}
        recipes = {folder / f"{m}-{seed}": Recipe(**PROTOCOL, method=m, seed=seed, **fields[m]) for m in METHODS}
        yield train(recipes, images)
        control = Recipe(**PROTOCOL, method="at", seed=seed, **fields["at"])
        out = {folder / f"at-untrained-{seed}": control}
        yield partial(train_together, out, images, folder / "teacher-untrained", progress=False)
        plain = PROTOCOL | {"seed": seed}
        yield train({folder / f"student-{n}epochs-{seed}": Recipe(**plain | {"epochs": n}) for n in LONGER}, images)


def _failed(out: Path) -> bool:
    return (out / "receipt.json").exists() and Run.load(out).status == "failed"


def weighted(method: str, value: float) -> dict[str, float]:
    return {"alpha" if method == "kd" else "beta": value}


def best(searched: Path, method: str) -> float:
    """The weight with the lowest error on held-out training images; of equal ones the smallest."""
    found = [(value, Run.load(searched / f"{method}-{value:g}")) for value in WEIGHTS[method]]
    found = [(run.test_error, value) for value, run in found if run.status == "finished"]  # others diverged
    return min(found)[1]


def main(folder: str, seconds: str = "inf") -> int:
    """Do the trainings that are missing; start none after so many seconds. Returns 0 when all are done."""
    start = time.monotonic()
    for piece in pieces(Path(folder)):
        if time.monotonic() - start > float(seconds):
            return 1
        try:
            for run in piece():
                print(run.folder.name, run.test_error, round(run.seconds), flush=True)
        except FloatingPointError as error:
            print(error, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
