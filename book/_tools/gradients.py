"""Trains what chapter 09 shows: gradient methods beside activation attention, in the setting of the paper's table 3.

The networks have no batch norm, and on the whole scenes of `shapes` they learn nothing in minutes on a CPU. So they are
taught on windows: the 16x16 pixels around each object. ``python book/_tools/gradients.py FOLDER`` makes the images and
all runs there; stopped, it goes on where it was. With ``--photographs IMAGES`` it takes those of CIFAR-10, halved.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from atbook.data import Images, load, write_folder
from atbook.recipes import Recipe
from atbook.runs import Run
from atbook.train import train_together

SIDE = 16
PROTOCOL = {
    "dataset": "folder", "student": "nin-thin-nobn", "batch": 16, "schedule": "one-cycle", "augment": "flip",
    "weight_decay": 0.0,
}  # fmt: skip
GRADIENT = (0.01, 0.1, 1.0, 10.0)
BETAS = {"at": (10.0, 30.0, 100.0, 300.0), "min-l2": GRADIENT, "grad-at": GRADIENT, "symmetry": GRADIENT}
WEIGHTS = BETAS | {"kd": (0.03, 0.1, 0.3, 0.9)}  # beta, for distillation alpha
LONGER = (2, 4)  # controls: plain students that are trained so many times as long, about as other methods take
METHODS = ("student", "min-l2", "grad-at", "kd", "symmetry", "at")


class Setting(NamedTuple):
    """Images and what depends on them: ``images(split, first, count)`` gives some by number, tens of them."""

    images: Callable[[str, int, int], Images]
    train: int  # images that teacher and students learn from; the next ``held_out`` are for the search
    held_out: int
    test: int
    epochs: int
    teacher_epochs: int
    rates: tuple[float, ...]
    seeds: int


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


def halved(root: Path, split: str, first: int, count: int) -> Images:
    """Photographs of a folder of ten classes, a tenth of ``count`` from each; each 2x2 pixels become their mean."""
    photographs = load("folder", split, root)
    of_class = [(photographs.labels == label).nonzero()[:, 0] for label in range(10)]
    chosen = torch.cat([numbers[first // 10 : (first + count) // 10] for numbers in of_class])
    images = avg_pool2d(photographs.images[chosen].float(), 2).round().byte()
    return Images(images, photographs.labels[chosen], photographs.classes, None, "halved photographs")


def _around(used: Tensor) -> Tensor:
    """The 16 rows (or columns) around the middle of those that the object uses, `(N, 16)`."""
    first, last = used.int().argmax(dim=1), 31 - used.flip(1).int().argmax(dim=1)
    start = ((first + last + 1) // 2 - SIDE // 2).clamp(0, 32 - SIDE)
    return start[:, None] + torch.arange(SIDE)


WINDOWS = Setting(windows, 2000, 1000, 1000, epochs=3, teacher_epochs=8, rates=(0.03, 0.06), seeds=5)


def photographs(root: Path) -> Setting:
    return Setting(
        partial(halved, root), 10_000, 2_000, 5_000, epochs=5, teacher_epochs=15, rates=(0.015, 0.03, 0.06), seeds=3
    )


def pieces(folder: Path, setting: Setting) -> Iterator[Callable[[], list[Run]]]:
    """The trainings, in order: search for the rate on held-out images; teacher; search for weights; the seeds.

    Controls: attention transfer from a teacher that has not learned, and plain students that are trained for longer.
    """
    images, held_out, searched = folder / "images", folder / "held-out", folder / "search"
    tests = {held_out: ("train", setting.train, setting.held_out), images: ("test", 0, setting.test)}
    for place, test in tests.items():
        if not place.exists():
            part = place.with_name(f".{place.name}")
            write_folder(part, setting.images("train", 0, setting.train), setting.images(*test))
            part.rename(place)  # whole or not at all

    def train(recipes: dict[Path, Recipe], root: Path, teacher: str = "teacher") -> Callable[[], list[Run]]:
        left = {out: recipe for out, recipe in recipes.items() if not _failed(out)}
        return partial(train_together, left, root, folder / teacher, progress=False) if left else list

    searching = PROTOCOL | {"epochs": setting.epochs, "seed": 100}
    rates = {searched / f"student-{lr}": Recipe(**searching, lr=lr) for lr in setting.rates}
    yield train(rates, held_out)
    lr = min((Run.load(out).test_error, recipe.lr) for out, recipe in rates.items() if not _failed(out))[1]
    teacher = PROTOCOL | {"student": "nin-wide-nobn", "seed": 0}
    yield train({folder / "teacher": Recipe(**teacher, lr=lr, epochs=setting.teacher_epochs)}, images)
    yield train({folder / "teacher-untrained": Recipe(**teacher, lr=1e-9, epochs=1)}, images)
    for method, values in WEIGHTS.items():
        common = searching | {"lr": lr, "method": method}
        recipes = {searched / f"{method}-{v:g}": Recipe(**common | weighted(method, v)) for v in values}
        yield train(recipes, held_out)
    for seed in range(setting.seeds):
        plain = PROTOCOL | {"epochs": setting.epochs, "lr": lr, "seed": seed}
        fields = {m: weighted(m, best(searched, m)) if m in WEIGHTS else {} for m in METHODS}
        recipes = {folder / f"{m}-{seed}": Recipe(**plain | {"method": m} | fields[m]) for m in METHODS}
        yield train(recipes, images)
        control = {folder / f"at-untrained-{seed}": Recipe(**plain | {"method": "at"} | fields["at"])}
        yield train(control, images, "teacher-untrained")
        longer = [n * setting.epochs for n in LONGER]
        yield train({folder / f"student-{n}epochs-{seed}": Recipe(**plain | {"epochs": n}) for n in longer}, images)


def _failed(out: Path) -> bool:
    return (out / "receipt.json").exists() and Run.load(out).status == "failed"


def weighted(method: str, value: float) -> dict[str, float]:
    return {"alpha" if method == "kd" else "beta": value}


def best(searched: Path, method: str) -> float:
    """The weight with the lowest error on held-out training images; of equal ones the smallest."""
    found = [(value, Run.load(searched / f"{method}-{value:g}")) for value in WEIGHTS[method]]
    found = [(run.test_error, value) for value, run in found if run.status == "finished"]  # others diverged
    return min(found)[1]


def main(arguments: list[str]) -> int:
    """Do the trainings that are missing. Returns 0 when all are done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the images and the runs")
    parser.add_argument("--photographs", type=Path, metavar="IMAGES", help="folder of CIFAR-10's images by class")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no training after them")
    chosen = parser.parse_args(arguments)
    setting = photographs(chosen.photographs) if chosen.photographs else WINDOWS
    start = time.monotonic()
    for piece in pieces(chosen.folder, setting):
        if time.monotonic() - start > 60 * chosen.minutes:
            return 1
        try:
            for run in piece():
                print(run.folder.name, run.test_error, round(run.seconds), flush=True)
        except FloatingPointError as error:
            print(error, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
