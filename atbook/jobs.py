"""The runs of a sweep as jobs: the folder of each, what is to be done there, and how far it is.

Torch is imported when it is needed, so that a file with a slip in it is refused at once.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from atbook.names import TEACHERLESS
from atbook.recipes import Recipe
from atbook.sweep import Cell, Sweep


class State(NamedTuple):
    """How far a run is: ``missing``, ``running`` (also after a kill), ``finished`` or ``failed``, and why."""

    status: str
    reason: str = ""
    epochs: str = ""
    error: float = math.nan


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep, in a folder named after what makes the run what it is."""

    folder: Path
    cell: Cell
    seed: int

    def go(self) -> None:
        """Do it, or go on where it was stopped; raises what went wrong."""
        raise NotImplementedError

    def state(self) -> State:
        """How far it is, as its folder says."""
        try:
            return self._state()
        except FileNotFoundError:
            return State("missing")
        except ValueError as error:
            return State("failed", str(error))

    def _state(self) -> State:
        raise NotImplementedError

    def errors(self) -> dict[str, float]:
        """Test error in % of each training in it by name."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Training(Job):
    """A recipe to train."""

    recipe: Recipe
    root: Path | None
    teacher: Path | None

    def go(self) -> None:
        """On one thread: two runs side by side beat two threads on one."""
        import torch

        from atbook.train import train

        torch.set_num_threads(1)
        train(self.recipe, self.folder, self.root, self.teacher, progress=False)

    def _state(self) -> State:
        from atbook.runs import Run

        run = Run.load(self.folder)
        error = run.test_error if run.history else math.nan
        return State(run.status, run.reason or "", f"{len(run.history)}/{run.recipe.epochs}", error)

    def errors(self) -> dict[str, float]:
        """Its only one has the empty name."""
        return {"": self.state().error}


@dataclass(frozen=True, eq=False)
class Rerun(Job):
    """A chapter to run with all its parameters."""

    chapter: Path
    values: Cell
    place: Path  # where relative paths among the values start: a cluster's workers are elsewhere

    def go(self) -> None:
        from atbook.rerun import rerun

        with chdir(self.place):
            record = rerun(self.chapter, self.values, self.folder, resume=True, progress=False)
        if record.status != "finished":
            raise RuntimeError(record.reason)

    def _state(self) -> State:
        from atbook.rerun import Record

        record = Record.load(self.folder)
        return State("running" if record.status == "killed" else record.status, record.reason or "")

    def errors(self) -> dict[str, float]:
        """Of the receipts in its folder ``runs``; a name loses the seed at its end."""
        from atbook.runs import load_runs

        folder = self.folder / "runs"
        found = load_runs(folder) if folder.is_dir() else []
        names = [str(run.folder.relative_to(folder)).removesuffix(f"-{self.seed}") for run in found]
        return {name: run.test_error for name, run in zip(names, found, strict=True) if run.status == "finished"}


def plan(sweep: Sweep, out: str | Path) -> list[Job]:
    """The runs of a sweep, each with its folder ``OUT/<readable>-<key>``, in the order of the file.

    The key is the receipt's (`atbook.runs.run_key`: recipe, images, teacher's weights and the package's code) or the
    rerun's (`atbook.rerun.Record`: the chapter's code, its parameters, the package's code). So a folder holds the run
    that its name says, and what was done under another grid is found again.

    Raises:
        ValueError, OSError: if images or teacher cannot be used.
    """
    out = Path(out).expanduser().resolve()
    known = {path.name.rpartition("-")[2]: path for path in out.glob("*-*")}
    points = itertools.product(sweep.cells, sweep.seeds)
    jobs = []
    for (cell, seed), (key, kind, rest) in zip(points, (_reruns if sweep.chapter else _trainings)(sweep), strict=True):
        folder = known.get(key, out / f"{_readable(cell, seed)}-{key}")
        jobs.append(kind(folder, cell, seed, *rest))
    return jobs


def _trainings(sweep: Sweep) -> Iterator[tuple[str, type, tuple]]:
    """Of each run its key, the class of its job, and what that holds."""
    from atbook.runs import Run, code_hash, run_key

    teacher, code, describe = sweep.teacher and Run.load(sweep.teacher), code_hash(), _describer()
    for recipe in sweep.runs:
        run = describe(recipe, sweep.root, teacher)
        if run.teacher:
            recipe = Recipe(**recipe.model_dump() | {"teacher": run.teacher.network})
        key = run_key(recipe, run.data, run.teacher, code=code)
        yield key, Training, (recipe, sweep.root, sweep.teacher if run.teacher else None)


def _reruns(sweep: Sweep) -> Iterator[tuple[str, type, tuple]]:
    from atbook.rerun import _new

    for values in sweep.runs:
        yield _new(sweep.chapter, values, Path()).key, Rerun, (sweep.chapter, values, Path.cwd())


def _describer() -> Callable:
    """A function that tells images and teacher of a recipe as `atbook.train` would write them into its receipt."""
    from atbook import train as training

    described = {}

    def describe(recipe: Recipe, root: Path | None, teacher):
        taught = training._teacher(recipe, teacher) if recipe.method not in TEACHERLESS else None
        what = recipe.dataset, recipe.train_images, recipe.image_size, bool(taught)
        if what not in described:
            train_set, test_set = (training.load(recipe.dataset, s, root, recipe.image_size) for s in ("train", "test"))
            if recipe.train_images is not None:
                train_set = train_set.take(recipe.train_images)
            described[what] = training.describe(recipe, Path(), train_set, test_set, taught)
        return described[what]

    return describe


def _readable(cell: Cell, seed: int) -> str:
    """A folder's name out of letters, digits, points and hyphens only, whatever the file said."""
    text = "_".join(f"{name}-{value}" for name, value in {**cell, "seed": seed}.items())
    return re.sub(r"[^A-Za-z0-9._]+", "-", text)[-80:].strip("-._")
