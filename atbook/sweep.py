"""Many runs out of one short file: what to train, over which grid, with which seeds. Imports torch when planning.

::

    recipe: {dataset: shapes, train_images: 2000, student: wrn-10-1, epochs: 10}
    grid:                              # every combination; or a list of such grids, one after the other
      method: [student, at]
    seeds: 5                           # 0 to 4; or a list of seeds
    teacher: ../runs/shapes/teacher    # seen from this file, like root, the folder of the images
    baseline: {method: student}        # what the others are compared with, seed by seed
    gpus: 0.25                         # of a GPU for each run, on a Ray cluster
"""

import itertools
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from atbook.names import TEACHERLESS, choose
from atbook.recipes import Recipe, _value

KEYS = ("recipe", "grid", "seeds", "teacher", "root", "baseline", "gpus")
MOST = 100_000  # runs of one sweep: more is a slip of the pen

Cell = dict[str, object]  # one combination of the grid: field to value


class Sweep(NamedTuple):
    """A sweep as its file describes it, every combination checked.

    Attributes:
        cells: the combinations of the grid.
        recipes: one for each cell and seed, cell by cell.
        teacher, root: folders, or None.
        baseline: the fields that make a cell the one to compare with; empty for no comparison.
        gpus: the part of a GPU that one run takes on a Ray cluster.
    """

    cells: list[Cell]
    seeds: list[int]
    recipes: list[Recipe]
    teacher: Path | None
    root: Path | None
    baseline: Cell
    gpus: float


class State(NamedTuple):
    """How far a run is: ``missing``, ``running`` (also after a kill), ``finished`` or ``failed``, and why."""

    status: str
    reason: str = ""
    epochs: str = ""
    error: float = math.nan


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep: a folder named after what makes the run what it is, and the recipe to fill it."""

    folder: Path
    cell: Cell
    seed: int
    recipe: Recipe
    root: Path | None
    teacher: Path | None

    def go(self) -> None:
        """Train, or go on from the last epoch, on one thread: two runs side by side beat two threads on one."""
        import torch

        from atbook.train import train

        torch.set_num_threads(1)
        train(self.recipe, self.folder, self.root, self.teacher, progress=False)

    def state(self) -> State:
        """How far it is, as its receipt says."""
        from atbook.runs import Run

        try:
            run = Run.load(self.folder)
        except FileNotFoundError:
            return State("missing")
        except ValueError as error:
            return State("failed", str(error))
        error = run.test_error if run.history else math.nan
        return State(run.status, run.reason or "", f"{len(run.history)}/{run.recipe.epochs}", error)

    def errors(self) -> dict[str, float]:
        """Test error in % of each of its runs by name; the only run of a recipe has the empty name."""
        return {"": self.state().error}


def read(path: str | Path) -> Sweep:
    """Read a sweep's file and check all that can be checked without images.

    Raises:
        ValueError, OSError: one sentence naming what is wrong.
    """
    path = Path(path)
    try:
        return _checked(_yaml(path), path.parent)
    except ValueError as error:
        raise ValueError(f"sweep {str(path)!r}: {error}") from None


def _yaml(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"no sweep file {str(path)!r}: name a YAML file")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"it is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError("it is no list of keys: begin with recipe: {epochs: 3}")
    return content


class _Loader(yaml.SafeLoader):
    """YAML's plain data, no objects; a key that is there twice is refused, where PyYAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} is there twice: leave one out")
        return super().construct_mapping(node, deep)


def _checked(content: dict, folder: Path) -> Sweep:
    for key in content:
        choose("sweep key", str(key), KEYS)
    fields, seeds = _fields(content, "recipe"), _seeds(content.get("seeds", 1))
    grids = content.get("grid", {})
    grids = [_grid(grid, fields) for grid in (grids if isinstance(grids, list) else [grids])]
    if (size := len(seeds) * sum(math.prod(map(len, grid.values())) for grid in grids)) > MOST:
        raise ValueError(f"it has {size} runs, more than {MOST}: make the grid smaller")
    cells = [dict(zip(grid, values, strict=True)) for grid in grids for values in itertools.product(*grid.values())]
    recipes = [_recipe(fields | cell | {"seed": seed}) for cell in cells for seed in seeds]
    if len({*recipes}) < len(recipes):
        ((twice, _),) = Counter(recipes).most_common(1)
        raise ValueError(f"two runs are the same, {_words(cells[recipes.index(twice) // len(seeds)])}: leave one out")
    teacher, root = (_folder(content, key, folder) for key in ("teacher", "root"))
    if teacher is None and (taught := [r.method for r in recipes if r.method not in TEACHERLESS]):
        raise ValueError(f"method {taught[0]!r} needs a teacher: add teacher: FOLDER, a finished run")
    typed = zip(cells, recipes[:: len(seeds)], strict=True)
    cells = [{name: getattr(recipe, name) for name in cell} for cell, recipe in typed]
    return Sweep(cells, seeds, recipes, teacher, root, _baseline(content, cells), _gpus(content.get("gpus", 0)))


def _fields(content: dict, key: str) -> Cell:
    fields = content.get(key, {})
    if not isinstance(fields, dict):
        raise ValueError(f"{key} is {fields!r}, not fields and values: write {key}: {{method: student}}")
    if "seed" in fields:
        raise ValueError(f"seed is in {key}: write seeds: [0, 1, 2] beside it instead")
    return {str(name): value for name, value in fields.items()}


def _grid(grid: object, fields: Cell) -> dict[str, list]:
    grid = _fields({"grid": grid}, "grid")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid field {name!r} is {values!r}: write a list of its values, [first, second]")
        if name in fields:
            raise ValueError(f"{name!r} is in recipe and in grid: leave one out")
    return grid


def _seeds(seeds: object) -> list[int]:
    if type(seeds) is int and 1 <= seeds <= MOST:
        return list(range(seeds))
    if isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds) and len({*seeds}) == len(seeds):
        return seeds
    raise ValueError(f"seeds is {seeds!r}: write how many (1 or more), or a list of different whole numbers")


def _recipe(fields: Cell) -> Recipe:
    """A recipe of values as the command line reads them: YAML takes 1e-3 for text, here it is a number."""
    try:
        return Recipe.from_strings({n: v if isinstance(v, str) else json.dumps(v) for n, v in fields.items()})
    except TypeError as error:
        raise ValueError(f"a value is neither number, text nor list ({error}): put text in quotes") from None


def _folder(content: dict, key: str, start: Path) -> Path | None:
    value = content.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not (folder := (start / value).expanduser().resolve()).is_dir():
        raise ValueError(f"{key} {value!r} is no folder: name one, as seen from {str(start)!r}")
    return folder


def _gpus(gpus: object) -> float:
    if type(gpus) not in (int, float) or not 0 <= gpus <= 64:
        raise ValueError(f"gpus is {gpus!r}: write a number from 0, for example 0.25 for four runs on one GPU")
    return float(gpus)


def _baseline(content: dict, cells: list[Cell]) -> Cell:
    baseline = {name: _frozen(value) for name, value in _fields(content, "baseline").items()}
    for name in baseline:
        choose("baseline field", name, tuple({name: None for cell in cells for name in cell}))
    if baseline and not any(baseline.items() <= cell.items() for cell in cells):
        raise ValueError(f"the baseline, {_words(baseline)}, is not in the grid: add it, or name another")
    for cell in cells:
        if len(found := partners(cell, cells, baseline)) > 1:
            both = " and ".join(map(_words, found[:2]))
            raise ValueError(f"{_words(cell)} has more than one baseline ({both}): name more fields")
    return baseline


def partners(cell: Cell, cells: list[Cell], baseline: Cell) -> list[Cell]:
    """What a cell is compared with: those of the baseline's values that agree with it in every other common field."""
    if not baseline or baseline.items() <= cell.items():
        return []
    rest = {name: value for name, value in cell.items() if name not in baseline}
    return [
        other
        for other in cells
        if baseline.items() <= other.items() and all(other.get(name, value) == value for name, value in rest.items())
    ]


def _frozen(value: object) -> object:
    """A value as a recipe holds it."""
    value = _value(value) if isinstance(value, str) else value
    return tuple(value) if isinstance(value, list) else value


def _words(cell: Cell) -> str:
    return ", ".join(f"{name} {value}" for name, value in cell.items()) or "the recipe alone"


def plan(sweep: Sweep, out: str | Path) -> list[Job]:
    """The runs of a sweep, each with its folder ``OUT/<readable>-<key>``, in the order of the file.

    The key is the receipt's (`atbook.runs.run_key`): recipe, images, teacher's weights and the package's code. So a
    folder holds the run that its name says, and what was trained under another grid is found again.

    Raises:
        ValueError, OSError: if images or teacher cannot be used.
    """
    from atbook.runs import Run, code_hash, run_key

    out = Path(out).expanduser().resolve()
    teacher, code, describe = sweep.teacher and Run.load(sweep.teacher), code_hash(), _describer()
    known = {path.name.rpartition("-")[2]: path for path in out.glob("*-*")}
    jobs = []
    for recipe, (cell, seed) in zip(sweep.recipes, itertools.product(sweep.cells, sweep.seeds), strict=True):
        run = describe(recipe, sweep.root, teacher)
        if run.teacher:
            recipe = Recipe(**recipe.model_dump() | {"teacher": run.teacher.network})
        key = run_key(recipe, run.data, run.teacher, code)
        folder = known.get(key, out / f"{_readable(cell, seed)}-{key}")
        jobs.append(Job(folder, cell, seed, recipe, sweep.root, sweep.teacher if run.teacher else None))
    return jobs


def _describer() -> Callable:
    """A function that tells images and teacher of a recipe as `atbook.train` would write them into its receipt."""
    from atbook import train as training

    described = {}

    def describe(recipe: Recipe, root: Path | None, teacher):
        taught = training._teacher(recipe, teacher) if recipe.method not in TEACHERLESS else None
        what = recipe.dataset, recipe.train_images, bool(taught)
        if what not in described:
            train_set, test_set = (training.load(recipe.dataset, split, root) for split in ("train", "test"))
            if recipe.train_images is not None:
                train_set = train_set.take(recipe.train_images)
            with tempfile.TemporaryDirectory() as folder:
                described[what] = training._open(recipe, Path(folder), train_set, test_set, taught)
        return described[what]

    return describe


def _readable(cell: Cell, seed: int) -> str:
    """A folder's name out of letters, digits, points and hyphens only, whatever the file said."""
    text = "_".join(f"{name}-{value}" for name, value in {**cell, "seed": seed}.items())
    return re.sub(r"[^A-Za-z0-9._]+", "-", text)[-80:].strip("-._")
