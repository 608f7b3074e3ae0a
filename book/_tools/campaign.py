"""Trains the runs behind chapter 11, as many at once as asked for, until all are done or the time is up.

    python book/_tools/campaign.py IMAGES OUT --protocol paper --seeds 5 --workers 5 --minutes 9 --pack receipts.tar

First the teacher, beside it the plain students; then, for each seed, the taught students side by side; then, for
seed 0, the other methods, single groups and mapping functions; last, for each seed, students with a tenth and a quarter
of the labels. The same command goes on where an earlier one stopped.
"""

import argparse
import itertools
import lzma
import os
import sys
import tarfile
import tempfile
import time
import zlib
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch
from evidence import collect

from atbook import protocols
from atbook.recipes import Recipe
from atbook.runs import Run, load_runs
from atbook.train import train_together

TAUGHT: dict[str, dict[str, object]] = {"at": {"method": "at"}, "kd": {"method": "kd"}, "at+kd": {"method": "at+kd"}}
OTHERS: dict[str, dict[str, object]] = {"f-act": {"method": "f-act"}, "fitnet": {"method": "fitnet"}}
MAPPINGS: dict[str, dict[str, object]] = {
    "at-f_sum-1": {"method": "at", "p": 1.0},
    "at-f_sum-4": {"method": "at", "p": 4.0},
    "at-f_max-1": {"method": "at", "mapping": "f_max", "p": 1.0},
}
GROUPS: dict[str, dict[str, object]] = {f"at-g{j}": {"method": "at", "groups": (j,)} for j in (0, 1, 2)}
FEWER = (5_000, 12_500)  # a tenth and a quarter of CIFAR-10


class Unit(NamedTuple):
    """Runs that one process trains side by side: the folder of each below the output, its recipe, their teacher's.

    Threads and compilation change last digits; None leaves them to `go`.
    """

    recipes: dict[str, Recipe]
    teacher: str | None
    threads: int | None = None
    compile: bool | None = None


def plan(teacher: str, student: str, common: dict[str, object], seeds: int) -> list[Unit]:
    """What is to be trained, the most important first."""

    def students(seed: int, kinds: dict[str, dict[str, object]], taught: str | None) -> Unit:
        fields = common | {"student": student, "seed": seed}
        return Unit({f"{name}-{seed}": Recipe(**fields | kind) for name, kind in kinds.items()}, taught)

    units = [Unit({"teacher": Recipe(**common, student=teacher)}, None)]
    units += [students(seed, {"student": {}}, None) for seed in range(seeds)]
    units += [students(seed, TAUGHT, "teacher") for seed in range(seeds)]
    units += [students(0, kinds, "teacher") for kinds in (OTHERS, GROUPS, MAPPINGS)]
    for n, seed in itertools.product(FEWER, range(seeds)):
        kinds = {f"{method}-{n}": {"method": method, "train_images": n} for method in ("student", "at", "kd")}
        units.append(students(seed, kinds, "teacher"))
    return units


def images(path: Path, out: Path) -> Path:
    """The folder of images; an archive is unpacked first, beside the runs.

    Raises:
        ValueError: if the archive is damaged.
    """
    if path.is_dir():
        return path
    folder = out.with_name(out.name + "-images")
    if not folder.is_dir():
        try:
            with tarfile.open(path) as archive:
                folder.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as part:
                    archive.extractall(f"{part}/images", filter="data")  # nothing outside that folder, no devices
                    check_end(archive)
                    Path(part, "images").rename(folder)
        except (EOFError, lzma.LZMAError, zlib.error, tarfile.ReadError) as error:
            why = str(error).splitlines()[0].rstrip(":")
            raise ValueError(f"archive {str(path)!r} is damaged ({why}): fetch it again") from None
    return folder


def check_end(archive: tarfile.TarFile) -> None:
    """Refuse an archive that ends too soon: tarfile takes a damaged name for the end, and leaves checksums unread."""
    archive.fileobj.seek(archive.offset)
    rest = archive.fileobj.read()
    if not rest or rest.strip(b"\0"):
        raise tarfile.ReadError("it does not end as a tar file does")


def work(unit: Unit, root: Path, out: Path, threads: int, compile: bool) -> None:
    """Train one unit, in a process of its own."""
    torch.set_num_threads(unit.threads or threads)
    compile = compile if unit.compile is None else unit.compile
    teacher = unit.teacher and out / unit.teacher
    for run in train_together({out / name: r for name, r in unit.recipes.items()}, root, teacher, compile, False):
        print(f"{run.folder.name}: {run.test_error:.2f} %", flush=True)


def finished(folder: Path) -> bool:
    return (folder / "receipt.json").exists() and Run.load(folder).status == "finished"


def go(units: list[Unit], root: Path, out: Path, workers: int, seconds: float, compile: bool = True) -> bool:
    """Keep the workers busy; at the deadline stop them, which costs no more than the epochs in hand.

    Returns:
        Whether everything is finished.

    Raises:
        ValueError: if there is no worker.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}: give 1 or more")
    deadline, running = time.monotonic() + seconds, []
    threads = max(1, (os.cpu_count() or 1) // workers)
    waiting = [unit for unit in units if not all(finished(out / name) for name in unit.recipes)]
    while time.monotonic() < deadline:
        running = [process for process in running if process.is_alive()]
        ready = [unit for unit in waiting if unit.teacher is None or finished(out / unit.teacher)]
        if not running and not ready:
            break
        if ready and len(running) < workers:
            waiting.remove(ready[0])
            running.append(start(ready[0], root, out, threads, compile))
        else:
            time.sleep(0.5)
    for process in running:
        process.kill()
        process.join()
    return all(finished(out / name) for unit in units for name in unit.recipes)


def start(*arguments: object) -> BaseProcess:
    """`work` in a fresh process, not a fork: CUDA and OpenMP do not survive one."""
    process = get_context("spawn").Process(target=work, args=arguments)
    process.start()
    return process


def ships(run: Run) -> bool:
    """Whether the book ships a run's weights: the teacher's, of every seed of Table 1, and one of each other method."""
    kind = run.folder.name.rpartition("-")[0]
    return kind in ("", "student", *TAUGHT) or (run.recipe.seed == 0 and kind in OTHERS)


def pack(out: Path, root: Path, archive: Path) -> None:
    """What the book ships: every receipt, weights as `ships` says, and the evidence."""
    if finished(out / "teacher"):
        collect(out, root)
    with tarfile.open(archive, "w") as tar:
        for path in out.glob("evidence.safetensors"):
            tar.add(path, path.name)
        for run in load_runs(out):
            tar.add(run.folder / "receipt.json", f"{run.folder.name}/receipt.json")
            weights = run.folder / "weights.safetensors"
            if ships(run) and weights.exists():
                tar.add(weights, f"{run.folder.name}/weights.safetensors")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of train/<class>/* and test/<class>/*, or a tar file of it")
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--protocol", choices=protocols.PROTOCOLS, default="paper")
    parser.add_argument("--teacher", default="wrn-16-2", help="network")
    parser.add_argument("--student", default="wrn-16-1", help="network")
    parser.add_argument("--seeds", type=int, default=3, help="0 to this, less one")
    parser.add_argument("--workers", type=int, default=1, help="processes at once")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then stop, to be resumed")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="a tar file for what the book ships")
    chosen = parser.parse_args(arguments)
    try:
        units = plan(
            chosen.teacher, chosen.student, {"dataset": "folder"} | protocols.fields(chosen.protocol), chosen.seeds
        )
        root = images(chosen.images, chosen.out)
        done = go(units, root, chosen.out, chosen.workers, 60 * chosen.minutes)
        if chosen.pack:
            pack(chosen.out, root, chosen.pack)
    except (ValueError, OSError, tarfile.TarError) as error:
        parser.error(str(error))
    print("all finished" if done else "not finished: the same command goes on")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
