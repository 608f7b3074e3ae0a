"""Many runs out of one short file: what to train, over which grid, with which seeds. Imports no torch.

::

    recipe: {dataset: shapes, train_images: 2000, student: wrn-10-1, epochs: 10}
    grid:                              # every combination; or a list of such grids, one after the other
      method: [student, at]
    seeds: 5                           # 0 to 4; or a list of seeds
    teacher: ../runs/shapes/teacher    # seen from this file, like root, the folder of the images
    baseline: {method: student}        # what the others are compared with, seed by seed
    gpus: 0.25                         # of a GPU for each run, on a Ray cluster

Or a chapter again and again (see `atbook.rerun`); it must have a parameter ``seed``, or ``seeds`` that is a list::

    chapter: 11-cifar-wrn              # its number, its name, or a notebook seen from this file
    parameters: {epochs: 20}
    grid: {beta: [100, 1000]}
    seeds: 3
"""

import itertools
import json
import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import yaml

from atbook.names import TEACHERLESS, choose
from atbook.parameters import checked, find, parameters
from atbook.recipes import Recipe, _value

KEYS = ("recipe", "chapter", "grid", "seeds", "teacher", "root", "baseline", "gpus")
CHAPTER_KEYS = ("chapter", "parameters", "grid", "seeds", "baseline", "gpus")
COLUMNS = ("run", "n", "unfinished", "failed", "low", "high", "pairs", "change", "verdict")  # of the report
MOST = 100_000  # runs of one sweep: more is a slip of the pen

Cell = dict[str, object]  # one combination of the grid: field to value


class Sweep(NamedTuple):
    """A sweep as its file describes it, every combination checked."""

    cells: list[Cell]  # the combinations of the grid
    seeds: list[int]
    runs: list[Recipe] | list[Cell]  # the recipe, or the chapter's parameters, of each cell and seed, cell by cell
    baseline: Cell = {}  # the fields that make a cell the one to compare with; empty for no comparison
    gpus: float = 0.0  # the part of a GPU that one run takes on a Ray cluster
    chapter: Path | None = None
    teacher: Path | None = None  # a finished run's folder
    root: Path | None = None  # the folder of the images


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
        choose("sweep key", str(key), CHAPTER_KEYS if "chapter" in content else KEYS)
    chapter, fields, seeds = _chapter(content, folder), _fields(content), _seeds(content.get("seeds", 1))
    grids = [_grid(grid, fields) for grid in _grids(content)]
    if (size := len(seeds) * sum(math.prod(map(len, grid.values())) for grid in grids)) > MOST:
        raise ValueError(f"it has {size} runs, more than {MOST}: make the grid smaller")
    cells = [dict(zip(grid, values, strict=True)) for grid in grids for values in itertools.product(*grid.values())]
    one = partial(_rerun, chapter, "seeds" in content) if chapter else _recipe
    runs = [one(fields | cell, seed) for cell in cells for seed in seeds]
    twice, times = Counter(map(repr, runs)).most_common(1)[0]
    if times > 1:
        cell = cells[[*map(repr, runs)].index(twice) // len(seeds)]
        raise ValueError(f"two runs are the same, {_words(cell)}: leave one out")
    typed = zip(cells, map(dict, runs[:: len(seeds)]), strict=True)
    cells = [{name: _frozen(run[name]) for name in cell} for cell, run in typed]
    teacher, root = (_folder(content, key, folder) for key in ("teacher", "root"))
    if not chapter and teacher is None and (taught := [r.method for r in runs if r.method not in TEACHERLESS]):
        raise ValueError(f"method {taught[0]!r} needs a teacher: add teacher: FOLDER, a finished run")
    gpus = _gpus(content.get("gpus", 0))
    return Sweep(cells, seeds, runs, _baseline(content, cells), gpus, chapter, teacher, root)


def _chapter(content: dict, folder: Path) -> Path | None:
    chapter = content.get("chapter")
    if "chapter" in content and type(chapter) not in (int, str):
        raise ValueError(f"chapter is {chapter!r}: write its number, its name or a notebook")
    if chapter is None:
        return None
    return find(folder / chapter if str(chapter).endswith(".ipynb") else chapter).resolve()


def _fields(content: dict) -> Cell:
    key = "parameters" if "chapter" in content else "recipe"
    return _mapping(content.get(key, {}), key)


def _mapping(fields: object, key: str) -> Cell:
    if not isinstance(fields, dict):
        raise ValueError(f"{key} is {fields!r}, not fields and values: write {key}: {{epochs: 3}}")
    if "seed" in fields:
        raise ValueError(f"seed is in {key}: write seeds: [0, 1, 2] beside it instead")
    return {str(name): value for name, value in fields.items()}


def _grids(content: dict) -> list:
    grids = content.get("grid", {})
    if grids == []:
        raise ValueError("grid is empty: write fields with lists of values, or leave grid out")
    return grids if isinstance(grids, list) else [grids]


def _grid(grid: object, fields: Cell) -> dict[str, list]:
    grid = _mapping(grid, "grid")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid field {name!r} is {values!r}: write a list of its values, [first, second]")
        if name in fields:
            raise ValueError(f"{name!r} is in the grid and beside it: leave one out")
        if name in COLUMNS:
            raise ValueError(f"grid field {name!r} is also a column of the report: give the parameter another name")
    return grid


def _seeds(seeds: object) -> list[int]:
    if type(seeds) is int and 1 <= seeds <= MOST:
        return list(range(seeds))
    if isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds) and len({*seeds}) == len(seeds):
        return seeds
    raise ValueError(f"seeds is {seeds!r}: write how many (1 or more), or a list of different whole numbers")


def _recipe(fields: Cell, seed: int) -> Recipe:
    """A recipe of values as the command line reads them: YAML takes 1e-3 for text, here it is a number."""
    fields = fields | {"seed": seed}
    try:
        return Recipe.from_strings({n: v if isinstance(v, str) else json.dumps(v) for n, v in fields.items()})
    except TypeError as error:
        raise ValueError(f"a value is neither number, text nor list ({error}): put text in quotes") from None


def _rerun(chapter: Path, seeded: bool, values: Cell, seed: int) -> Cell:
    """All parameters of a chapter for one run; the seed goes where the chapter wants it."""
    known = parameters(chapter)
    if "seed" in known:
        values = values | {"seed": seed}
    elif "seeds" in known and known["seeds"].many:
        values = values | {"seeds": [seed]}
    elif seeded:
        raise ValueError(f"chapter {chapter.stem!r} has no parameter 'seed': leave seeds out")
    return checked(chapter, values)


def _folder(content: dict, key: str, start: Path) -> Path | None:
    value = content.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or "\0" in value or not (folder := (start / value).expanduser().resolve()).is_dir():
        raise ValueError(f"{key} {value!r} is no folder: name one, as seen from {str(start)!r}")
    return folder


def _gpus(gpus: object) -> float:
    if type(gpus) not in (int, float) or not 0 <= gpus <= 64:
        raise ValueError(f"gpus is {gpus!r}: write a number from 0, for example 0.25 for four runs on one GPU")
    return float(gpus)


def _baseline(content: dict, cells: list[Cell]) -> Cell:
    named = _mapping(content.get("baseline", {}), "baseline").items()
    baseline = {name: _frozen(_value(value) if isinstance(value, str) else value) for name, value in named}
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
    return tuple(value) if isinstance(value, list) else value


def _words(cell: Cell) -> str:
    return ", ".join(f"{name} {value}" for name, value in cell.items()) or "the recipe alone"
