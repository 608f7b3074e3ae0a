"""Trains recorded runs once more, as their receipts say: ``python book/_tools/again.py RUNS OUT [IMAGES]``.

The receipts are the plan: every finished run below RUNS is trained anew into a folder of the same name below OUT, its
teacher first, on as many threads, and its error is compared with the recorded one. Images are needed only for
``dataset="folder"``. An interrupted call goes on when it is repeated.
"""

import argparse
import os
import sys
from pathlib import Path

from campaign import Unit, go

from atbook.runs import Run, load_runs


def plan(runs: list[Run], folder: Path) -> list[Unit]:
    """One unit for each run, those without a teacher first.

    Raises:
        ValueError: if a run's teacher is not among them, or a run began with other weights than random ones.
    """
    names, units = {run.weights: str(run.folder.relative_to(folder)) for run in runs}, []
    for run in sorted(runs, key=lambda run: run.teacher is not None):
        taught = run.teacher and names.get(run.teacher.weights)
        if run.teacher and not taught:
            raise ValueError(f"the teacher of {run.folder.name!r} is not in {str(folder)!r}: put its receipt there")
        if run.start:
            raise ValueError(f"{run.folder.name!r} began with given weights: train it again with atbook train --from")
        threads, compiled = run.provenance["threads"], run.provenance["compiled"]
        units.append(Unit({names[run.weights]: run.recipe}, taught, threads, compiled))
    return units


def compare(runs: list[Run], folder: Path, out: Path) -> int:
    """Print both errors of every run; returns how many differ."""
    different = 0
    for run in runs:
        name = run.folder.relative_to(folder)
        now = Run.load(out / name).test_error
        different += now != run.test_error
        print(f"{name}: recorded {run.test_error:.2f} %, now {now:.2f} %")
    return different


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of recorded runs, for example book/runs/shapes")
    parser.add_argument("out", type=Path, help="folder of the new runs")
    parser.add_argument("images", type=Path, nargs="?", help="folder of train/<class>/* and test/<class>/*")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at once")
    chosen = parser.parse_args(arguments)
    try:
        runs = [run for run in load_runs(chosen.runs) if run.status == "finished"]
        units = plan(runs, chosen.runs)
        if not go(units, chosen.images, chosen.out, chosen.workers, float("inf")):
            return 1
        different = compare(runs, chosen.runs, chosen.out)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{len(runs)} runs, {different} with another error: machine, threads or versions may change the last digits")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
