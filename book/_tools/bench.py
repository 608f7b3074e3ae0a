"""How fast training is: ``make bench``. Prints images per second and ratios, all from one run, and keeps them for
the status page; asserts nothing.

The plain way is how public implementations train: images transformed one by one in a DataLoader, memory in torch's
default layout, float32, nothing compiled. All variants take turns, so that a busy moment hits each of them alike.
"""

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from record import record
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from atbook import runs
from atbook import train as training
from atbook.compat import torchvision
from atbook.data import Images, load, standardize
from atbook.models import build
from atbook.recipes import Recipe
from atbook.runs import Run
from atbook.train import train

ROUNDS, STEPS = 7, 3
PAIRS = (("wrn-16-2", "wrn-16-1"), ("wrn-40-1", "wrn-16-1"), ("wrn-40-2", "wrn-16-2"))  # of the paper's Table 1


class OneByOne(Dataset):
    """Images as PIL pictures, each padded, flipped, cropped and standardised alone."""

    def __init__(self, images: Images) -> None:
        t = torchvision.transforms
        self.pictures = [t.functional.to_pil_image(image) for image in images.images]
        self.labels = images.labels.tolist()
        steps = [t.Pad(4, padding_mode="reflect"), t.RandomHorizontalFlip(), t.RandomCrop(32), t.ToTensor()]
        self.transform = t.Compose([*steps, t.Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pictures[i]), self.labels[i]


def plain(
    images: Images, teacher: nn.Module, batch: int, workers: int, student: str = "wrn-16-1"
) -> Callable[[], None]:
    """A step of attention transfer the plain way."""
    student = build(student, 10)
    optimizer = torch.optim.SGD(student.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(OneByOne(images), batch, shuffle=True, drop_last=True, num_workers=workers)
    batches = forever(loader)

    def at(A: torch.Tensor) -> torch.Tensor:
        return F.normalize(A.pow(2).mean(1).flatten(1))

    def step() -> None:
        x, y = next(batches)
        with torch.no_grad():
            _, groups_T = teacher.groups(x)
        logits, groups_S = student.groups(x)
        loss = F.cross_entropy(logits, y)
        for A_S, A_T in zip(groups_S, groups_T, strict=True):
            loss = loss + 1000 * (at(A_S) - at(A_T)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def forever(loader: DataLoader) -> Iterator:
    while True:
        yield from loader


def ours(
    images: Images, teacher: Run | None, folder: Path, compile: bool = False, **fields: object
) -> Callable[[], None]:
    """A step of the package's own loop."""
    recipe = Recipe(lr=0.01, **fields)
    run = training._open(recipe, folder, images, images, teacher, None, ExitStack())
    return steps_of(training._Cohort([run], images, images, teacher, compile, None))


def steps_of(cohort: training._Cohort) -> Callable[[], None]:
    """A step of all students of a cohort, on the next whole batch."""
    for student in cohort.students:
        student.begin()
    size = cohort.recipe.batch
    batches = (batch for epoch in range(10**6) for batch in cohort._batches(epoch) if len(batch[0]) == size)

    def step() -> None:
        pictures, labels, share = next(batches)
        x = standardize(pictures)
        with cohort._precision():
            taught = cohort._teach(x) if cohort.teacher else (None, None)
        for student in cohort.students:
            student.step(x, labels, share, taught, cohort._precision, epochs=3.0)

    return step


def teacher_forward(teacher: Run, batch: int, precision: str, compile: bool) -> Callable[[], None]:
    """The teacher alone, as the loop runs it."""
    model = teacher.model().to(memory_format=torch.channels_last)
    forward = torch.compile(model.groups) if compile else model.groups
    x = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            forward(x)

    return step


def take_turns(variants: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Seconds of one step of each variant, the median over rounds."""
    for step in variants.values():
        step(), step()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, step in variants.items():
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            seconds[name].append((time.perf_counter() - start) / STEPS)
    return {name: statistics.median(values) for name, values in seconds.items()}


def operations(name: str) -> float:
    """Of one image passing forward; a multiply-add counts two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build(name).eval()(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops()


def peak() -> float:
    """Operations per second of one large 3x3 convolution in float32: what the machine can do at best."""
    x = torch.randn(64, 128, 16, 16).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(128, 128, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    with torch.no_grad():
        seconds = take_turns({"conv": lambda: conv(x)})["conv"]
    return 2 * 9 * 128 * 128 * 16 * 16 * 64 / seconds


def speed(images: Images, T: Run, folder: Path, threads: int, batch: int = 128) -> list[dict]:
    """A row for each way to take a step of a WRN-16-1, alone and with attention transfer from a WRN-16-2."""
    torch.set_num_threads(threads)
    torch.compiler.reset()
    variants = {"plain at": plain(images, T.model().requires_grad_(False), batch, threads - 1)}
    for precision in ("float32", "bfloat16"):
        for compile in (False, True):
            name = precision + (" compiled" if compile else "")
            fields = {"student": "wrn-16-1", "batch": batch, "precision": precision}
            place = folder / f"{threads}{name}"
            variants[f"{name} student"] = ours(images, None, place / "student", compile, **fields)
            variants[f"{name} teacher"] = teacher_forward(T, batch, precision, compile)
            variants[f"{name} at"] = ours(images, T, place / "at", compile, method="at", **fields)
    seconds, best = take_turns(variants), peak()
    work = {"student": 3 * operations("wrn-16-1"), "teacher": operations("wrn-16-2")}
    work["at"] = work["student"] + work["teacher"]
    rows = []
    for name, value in seconds.items():
        kind = name.split()[-1]
        row = {"threads": threads, "step": name, "images/s": batch / value}
        row["% of peak"] = 100 * work[kind] * batch / value / best
        if kind == "at":
            row["times plain"] = seconds["plain at"] / value
            parts = [seconds.get(name.removesuffix("at") + part) for part in ("student", "teacher")]
            row["to student + teacher"] = value / sum(parts) if all(parts) else None
        rows.append(row)
    return rows


def memory(what: str) -> float:
    """This process's memory in MiB, as Linux counts it: ``VmRSS`` now, ``VmHWM`` at the peak.

    Not `resource.getrusage`: the peak it tells starts with that of the process which this one was started from.
    """
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what + ":")]
    return int(line.split()[1]) / 1024


def forget_peak() -> float:
    """Let the peak start anew from what the process holds now; returns that, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def pair(teacher: str, student: str, way: str, batch: int = 128) -> dict:
    """A step of attention transfer for one of the paper's pairs, on one thread: speed, memory, and the floor.

    Memory is what the process held at its peak beyond what it held before networks were built, in MiB; so each way
    needs a process of its own.
    """
    torch.set_num_threads(1)
    images, best = load("shapes", "train").take(2000), peak()
    before = forget_peak()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        T = train(Recipe(student=teacher, train_images=20, epochs=1, batch=10), folder / "teacher", progress=False)
        if way == "plain":
            step = plain(images, T.model().requires_grad_(False), batch, 0, student)
        else:
            step = ours(images, T, folder / "at", student=student, batch=batch, method="at", precision=way)
        seconds = take_turns({way: step})[way]
    taken = memory("VmHWM") - before
    work = 3 * operations(student) + operations(teacher)
    row = {"teacher": teacher, "student": student, "way": way, "images/s": batch / seconds, "MiB": taken}
    return row | {"million operations": work / 2e6, "% of peak": 100 * work * batch / seconds / best}


def all_pairs() -> list[dict]:
    """The paper's pairs, the plain way and the package's, one process each."""
    jobs = [(*names, way) for names in PAIRS for way in ("plain", "float32", "bfloat16")]
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as pool:
        return list(pool.map(pair, *zip(*jobs, strict=True)))


def side_by_side(images: Images, T: Run, folder: Path, batch: int = 128) -> dict[str, float]:
    """Seconds of a step of three students one by one, and side by side with one pass of the teacher, on one thread."""
    torch.set_num_threads(1)
    fields = {"student": "wrn-16-1", "batch": batch, "precision": "bfloat16"}
    methods = ("at", "kd", "at+kd")
    variants = {m: ours(images, T, folder / m, method=m, **fields) for m in methods}
    recipes = {m: Recipe(lr=0.01, method=m, **fields) for m in methods}
    places, locks = folder / "cohort", ExitStack()
    cohort = [training._open(recipe, places / m, images, images, T, None, locks) for m, recipe in recipes.items()]
    variants["together"] = steps_of(training._Cohort(cohort, images, images, T, False, None))
    seconds = take_turns(variants)
    together = seconds.pop("together")
    return {"one by one": sum(seconds.values()), "side by side": together}


def gradient_methods(images: Images, T: Run, folder: Path, batch: int = 64) -> list[dict]:
    """A row for each student: the cost of a step of each method relative to attention transfer, on one thread."""
    torch.set_num_threads(1)
    rows = []
    for student in ("nin-thin-nobn", "nin-thin"):
        variants = {}
        for method in ("student", "at", "min-l2", "grad-at", "symmetry"):
            used = T if method in ("at", "grad-at") else None
            fields = {"student": student, "batch": batch, "method": method}
            variants[method] = ours(images, used, folder / student / method, **fields)
        seconds = take_turns(variants)
        rows.append({"network": student} | {name: value / seconds["at"] for name, value in seconds.items()})
    return rows


def main() -> None:
    images = load("shapes", "train").take(2000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = {"train_images": 20, "epochs": 1, "batch": 10}
        T = train(Recipe(student="wrn-16-2", **small), folder / "teacher", progress=False)
        steps = [row for threads in (1, 2) for row in speed(images, T, folder, threads)]
        together = side_by_side(images, T, folder / "together")
        NIN = train(Recipe(student="nin-wide", **small), folder / "nin", progress=False)
        gradients = gradient_methods(images, NIN, folder / "gradients")
    about = {"device": runs._processor(), "torch": torch.__version__}
    pairs = all_pairs()
    print(f"three students side by side: {together['side by side'] / together['one by one']:.2f} of one by one\n")
    for rows in (steps, gradients, pairs):
        print(pd.DataFrame(rows).to_string(index=False, na_rep="", float_format="{:.3f}".format), end="\n\n")
    record("bench", about | {"steps": steps, "gradients": gradients})
    record("pairs", about | {"rows": pairs, "together": together})


if __name__ == "__main__":
    sys.exit(main())
