"""Receipts: what was trained, on what, how, by which code, and what came out. A run is a folder that can be checked.

``receipt.json`` holds everything but the weights, ``weights.safetensors`` the trained network,
``checkpoint.safetensors`` (until the run ends) what resuming needs.
"""

import ast
import hashlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple, Self

import pandas as pd
import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load as load_tensors
from scipy.stats import t as student_t

from atbook import __version__
from atbook.models import Network, build
from atbook.names import choose
from atbook.recipes import Recipe

# What a result depends on.
MODULES = (
    "attention", "data", "distributed", "imagenet", "losses", "models", "names", "recipes", "shapes", "train",
)  # fmt: skip
FILES = ("receipt.json", "weights.safetensors", "checkpoint.safetensors")


class Data(BaseModel):
    """The images of a run: a name for tables, how many, of how many classes, and their hashes."""

    label: str
    train: int
    test: int
    classes: int
    fingerprint: str


class Teacher(BaseModel):
    """The teacher of a run: its network, its own test error in %, and the hash of its weights."""

    network: str
    test_error: float
    weights: str


class Run(BaseModel):
    """One training run, as its folder tells it.

    Attributes:
        folder: where it lies; not part of the receipt.
        key: hash of recipe, data, teacher and code: equal keys mean the same training.
        status: ``running`` (also after a kill), ``finished`` or ``failed``; ``reason`` says why it failed.
        history: one row per epoch: ``epoch``, ``lr``, ``loss``, the terms of the loss, ``train_error`` and
            ``test_error`` in %, ``seconds``.
        start: hash of the weights that training started from; None if they were drawn from the seed.
        weights: sha256 of ``weights.safetensors``, None until finished; a receipt may be passed on without that file.
    """

    model_config = ConfigDict(extra="forbid")

    folder: Path = Field(exclude=True)
    key: str
    status: Literal["running", "finished", "failed"] = "running"
    reason: str | None = None
    recipe: Recipe
    data: Data
    teacher: Teacher | None = None
    start: str | None = None
    history: list[dict[str, float]] = []
    weights: str | None = None
    provenance: dict[str, str | int | bool | None]

    @property
    def test_error(self) -> float:
        """Test error in % after the last epoch so far, never of the best one, which would be chosen on test images.

        Raises:
            ValueError: if no epoch is finished.
        """
        if not self.history:
            raise ValueError(
                f"run {self.folder.name!r} has no finished epoch yet (status {self.status}): train it first"
            )
        return self.history[-1]["test_error"]

    @property
    def seconds(self) -> float:
        """Training and testing time so far, in seconds, over all resumed parts."""
        return sum(row["seconds"] for row in self.history)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a run's receipt.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged.
        """
        path = Path(folder) / "receipt.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"no run in {str(folder)!r} (no receipt.json): give a folder that atbook train wrote"
            )
        try:
            content = dict(json.loads(path.read_text(encoding="utf-8")))
            if content.pop("sha256", None) not in (None, _digest(content)):  # older receipts have none
                raise ValueError("its sha256 is another")
            return cls(folder=Path(folder), **content)
        except (ValidationError, ValueError, TypeError) as error:
            what = str(error).splitlines()[0]
            why = f"receipt {str(path)!r} is damaged ({what}): restore it, or remove its folder and train again"
            raise ValueError(why) from None

    def save(self) -> None:
        """Write the receipt, whole or not at all, with a hash of itself, by which damage is noticed."""
        content = json.loads(self.model_dump_json())
        content["sha256"] = _digest(content)
        write(self.folder / "receipt.json", (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    def model(self) -> Network:
        """The trained network, in evaluation mode.

        Raises:
            FileNotFoundError: if the weights are not there.
            ValueError: if they are not the weights that the receipt names.
        """
        path = self.folder / "weights.safetensors"
        if not path.is_file():
            what = "train it to its end first" if self.weights is None else "train it again, or restore the file"
            why = f"run {self.folder.name!r} (status {self.status}) has no {path.name}: {what}"
            raise FileNotFoundError(why)
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.weights:
            raise ValueError(f"{str(path)!r} does not match its receipt: restore the file, or train the run again")
        model = build(self.recipe.student, self.data.classes)
        model.load_state_dict(load_tensors(content))
        return model.eval()


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other processes from a run's folder; it is free again when this process ends, in whatever way.

    What a killed process had half written is removed.

    Raises:
        OSError: one sentence naming the folder, if it cannot be written to, or another process has it
            (`BlockingIOError`).
    """
    held = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout:
        why = f"another process trains into {str(folder)!r}: wait until it has ended, or choose another folder"
        raise BlockingIOError(why) from None
    except OSError as error:
        raise _unwritable("receipt.json", folder, error) from None
    try:
        remove_halves(folder, FILES)
        yield
    finally:
        with suppress(OSError):
            os.unlink(folder / ".lock")
        held.release()


def _unwritable(name: str, folder: Path, error: OSError) -> OSError:
    return OSError(error.errno, f"cannot write {name} into {str(folder)!r} ({error.strerror}): choose another folder")


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: to a neighbour first, flushed to the disk, then renamed.

    Raises:
        OSError: one sentence naming the folder, if it cannot be written to or the disk is full.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise _unwritable(path.name, path.parent, error) from None


def remove_halves(folder: Path, names: Sequence[str]) -> None:
    """Remove what killed processes had half written of files with these names; none may be writing there now."""
    for left in (path for name in names for path in folder.glob(f".{name}.*")):
        left.unlink()


def code_hash(modules: Sequence[str] = MODULES) -> str:
    """Hash of the modules that a result depends on; comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    for name in modules:
        tree = ast.parse((resources.files("atbook") / f"{name}.py").read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            first = body[0] if isinstance(body, list) and body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                first.value.value = ""
        digest.update(repr(_structure(tree)).encode())
    return digest.hexdigest()[:16]


def _structure(node: object) -> object:
    """A syntax tree as tuples, the same in every Python: what newer ones add and leave empty is not in it."""
    if isinstance(node, ast.JoinedStr):  # an f-string
        node.values = [part for part in node.values if getattr(part, "value", None) != ""]
    if isinstance(node, ast.AST):
        fields = [(name, _structure(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return type(node).__name__, *fields
    return [_structure(one) for one in node] if isinstance(node, list) else node


def run_key(
    recipe: Recipe, data: Data, teacher: Teacher | None, start: str | None = None, code: str | None = None
) -> str:
    """What makes a training the same: the recipe, the images, the teacher's and the first weights, and the code."""
    parts = [recipe.model_dump(mode="json"), data.fingerprint, teacher and teacher.weights, start, code or code_hash()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def provenance(device: torch.device, compiled: bool) -> dict[str, str | int | bool | None]:
    """By which code, libraries and machine a run was made."""
    return {
        "atbook": __version__,
        "code": code_hash(),
        "git": _git_commit(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "compiled": compiled,
    }


def _git_commit() -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not the repository of a project that only uses it
        return git("rev-parse", "HEAD") + ("-changed" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None  # installed without its repository


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def load_runs(folder: str | Path) -> list[Run]:
    """All runs below a folder, in the order of their paths.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if a receipt is damaged.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}: give one that holds runs")
    return [Run.load(path.parent) for path in sorted(Path(folder).rglob("receipt.json"))]


def book_runs() -> Path:
    """The receipts that come with the book: the folder ``book/runs``, seen from where the notebook or the package lies.

    Raises:
        FileNotFoundError: if neither is inside the book's repository.
    """
    places = [Path.cwd(), *Path.cwd().parents, Path(__file__).parents[1]]
    for folder in (place / "book" / "runs" for place in places):
        if folder.is_dir():
            return folder
    raise FileNotFoundError("the book's receipts (book/runs) are not here: work inside a clone of the repository")


def table(runs: list[Run]) -> pd.DataFrame:
    """One row per run: what it is, and its test error in %."""
    rows = [
        {
            "run": run.folder.name,
            "status": run.status,
            "data": run.data.label,
            "images": run.data.train,
            "student": run.recipe.student,
            "teacher": run.recipe.teacher or "",
            "method": run.recipe.method,
            "epochs": f"{len(run.history)}/{run.recipe.epochs}",
            "seed": run.recipe.seed,
            "test error %": run.test_error if run.history else None,
        }
        for run in runs
    ]
    return pd.DataFrame(rows)


class Change(NamedTuple):
    """What a method does to an error: mean difference over seeds in points, its 95 % interval, and the verdict."""

    seeds: int
    mean: float
    low: float
    high: float
    verdict: str


def change(differences: Sequence[float]) -> Change:
    """The book's one rule for "does it help?", from differences of error, method minus baseline, seed by seed.

    Runs of one seed share initial weights and the order of images, hence the pairs. The interval is Student's t at
    level 0.95; wholly below zero the verdict is ``better``, wholly above ``worse``, else ``open``. Fewer than three
    seeds have no verdict: ``none``.

    Args:
        differences: one for each seed, in points of error.

    Raises:
        ValueError: if there is none.
    """
    if not differences:
        raise ValueError("no pair of runs to compare: train both methods with the same seed")
    n, mean = len(differences), statistics.fmean(differences)
    if n < 3:
        return Change(n, mean, math.nan, math.nan, "none")
    half = float(student_t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    low, high = mean - half, mean + half
    return Change(n, mean, low, high, "better" if high < 0 else "worse" if low > 0 else "open")


def paper_table(name: str) -> pd.DataFrame:
    """A table of the paper, from the one file that holds its figures (``paper.json``).

    Args:
        name: ``"paper1"`` (Table 1: CIFAR-10 test error in %, median of 5 runs), ``"paper2"`` (Table 2: mapping
            functions), ``"paper3"`` (Table 3: losses on gradients, one run each), ``"paper4"`` (Table 4: fine-tuning),
            ``"paper5"`` (Table 5: ImageNet) or ``"groups"`` (section 4.1.1: the loss in one group only).

    Raises:
        ValueError: if there is no such table.
    """
    tables = json.loads((resources.files("atbook") / "paper.json").read_text())
    choose("table", name, tuple(tables))
    return pd.DataFrame(tables[name]["rows"], columns=tables[name]["columns"])


class Cell(NamedTuple):
    """A figure of the paper: what was trained, its test error in %, and that of the plain student."""

    student: str
    teacher: str
    fields: dict[str, object]
    error: float
    plain: float


def paper_cells(name: str) -> list[Cell]:
    """The figures of a table of the paper, with the recipe fields that each belongs to.

    Raises:
        ValueError: if there is no such table, or it is Table 3, which is one run of each and not like for like.
    """
    choose("table", name, ("paper1", "paper2", "groups"))
    table, main = paper_table(name), paper_table("paper1").set_index(["student", "teacher"])
    if name == "paper1":
        main = main.rename(columns={"student error": "student"})
        methods = ("student", "at", "f-act", "kd", "at+kd")
        return [Cell(*pair, {"method": m}, row[m], row["student"]) for pair, row in main.iterrows() for m in methods]
    pair = "wrn-16-1", "wrn-16-2"
    plain = float(main.loc[pair, "student error"])
    if name == "paper2":
        rows = [({"mapping": m, "p": p}, error) for m, p, error in table.itertuples(index=False) if m != "none"]
    else:
        rows = [({"groups": tuple(map(int, g.split(", ")))}, error) for g, error in table.itertuples(index=False)]
    return [Cell(*pair, {"method": "at"} | fields, error, plain) for fields, error in rows]


def beside_paper(runs: Sequence[Run], name: str) -> pd.DataFrame:
    """A table of the paper beside finished runs of ours: one row for each cell that we have a run of.

    Ours is the median over seeds. ``change`` is the mean difference to the plain student of the same seed, with its
    95 % interval (see `change`). The verdict is ``reproduced`` if that interval lies below zero and holds the paper's
    change, ``direction reproduced`` if it lies below zero only, else ``not reproduced``; ``too few seeds`` below three.

    Args:
        runs: any runs; left out are unfinished and fine-tuned ones, and those with other than the paper's settings of
            the losses.
        name: as for `paper_cells`.

    Raises:
        ValueError: if there is no such table, or the runs that belong into it differ in images, protocol or teacher, or
            two of them only in their folder.
    """
    rows, used, cells = [], [], paper_cells(name)
    taught = {c[:2] for c in cells if c.fields["method"] != "student" and any(_fits(run, c) for run in runs)}
    for cell in cells:
        if taught and cell[:2] not in taught:
            continue  # a plain student alone belongs to several pairs
        own = [run for run in runs if _fits(run, cell)]
        if len(seeds := [run.recipe.seed for run in own]) > len(set(seeds)):
            twice = max(seeds, key=seeds.count)
            raise ValueError(f"two runs have the same settings and seed {twice}: count one, name a smaller folder")
        plain = {run.recipe.seed: run for run in runs if _fits(run, cell._replace(fields={"method": "student"}))}
        if own:
            used += own + list(plain.values())
            rows.append(_row(cell, own, plain))
    _one_protocol(used)
    return pd.DataFrame(rows)


def _fits(run: Run, cell: Cell) -> bool:
    recipe = run.recipe
    wanted = {"student": cell.student, "train_images": None} | cell.fields
    if cell.fields["method"] != "student":
        wanted["teacher"] = cell.teacher
    usual = Recipe(**{name: getattr(recipe, name) for name in _PROTOCOL} | {"seed": recipe.seed} | wanted)
    whole = run.status == "finished" and run.start is None
    whole &= (run.data.train, run.data.classes) == (50_000, 10)  # CIFAR-10 in any folder
    return whole and recipe.model_copy(update={"dataset": usual.dataset}) == usual


# What all runs of one table must have in common besides their images.
_PROTOCOL = ("epochs", "batch", "lr", "schedule", "momentum", "weight_decay", "augment", "precision")


def _one_protocol(runs: Sequence[Run]) -> None:
    for field in _PROTOCOL:
        if len(found := {getattr(run.recipe, field) for run in runs}) > 1:
            values = ", ".join(map(str, sorted(found)))
            raise ValueError(f"the runs differ in {field} ({values}): a table has one protocol, name a smaller folder")
    if len({run.data.fingerprint for run in runs}) > 1:
        raise ValueError("the runs were trained on different images: a table has one data set, name a smaller folder")
    for network in {run.teacher.network for run in runs if run.teacher}:
        if len({run.teacher.weights for run in runs if run.teacher and run.teacher.network == network}) > 1:
            raise ValueError(f"the runs had different teachers {network!r}: a table has one, name a smaller folder")


def _row(cell: Cell, own: list[Run], plain: dict[int, Run]) -> dict[str, object]:
    errors = [run.test_error for run in own]
    what = {name: value for name, value in cell.fields.items() if name != "method" or len(cell.fields) == 1}
    row = {"student": cell.student, "teacher": cell.teacher, **what, "paper %": cell.error}
    row |= {"ours %": statistics.median(errors), "lowest": min(errors), "highest": max(errors)}
    row |= {"seeds": ", ".join(str(seed) for seed in sorted(run.recipe.seed for run in own))}
    pairs = [run.test_error - plain[run.recipe.seed].test_error for run in own if run.recipe.seed in plain]
    if cell.fields["method"] == "student" or not pairs:
        return row
    found, theirs = change(pairs), cell.error - cell.plain
    row |= {"change": found.mean, "low": found.low, "high": found.high, "paper's change": theirs}
    same = "reproduced" if found.low <= theirs <= found.high else "direction reproduced"
    verdict = {"none": "too few seeds", "better": same}.get(found.verdict, "not reproduced")
    return row | {"pairs": found.seeds, "verdict": verdict}


def teacher_of(run: Run) -> Run | None:
    """The run that trained a run's teacher, found beside it by the hash of its weights; None if it had none.

    Raises:
        FileNotFoundError: if it is not there.
    """
    return run.teacher and _beside(run, run.teacher.weights, "teacher")


def start_of(run: Run) -> Run | None:
    """The run whose weights a run started from, found beside it by their hash; None if it had none.

    Raises:
        FileNotFoundError: if it is not there.
    """
    return run.start and _beside(run, run.start, "start")


def _beside(run: Run, weights: str, what: str) -> Run:
    folder = run.folder.resolve()
    for other in load_runs(folder.parent):
        if other.weights == weights and (other.folder / "weights.safetensors").is_file():
            return other
    where = str(folder.parent)
    raise FileNotFoundError(f"the {what} of {folder.name!r} is not in {where!r}: put its run, with weights, there")
