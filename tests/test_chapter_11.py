"""Chapter 11 as a rerunner uses it: papermill, a folder of images, runs that are kept, parameters that are wrong."""

from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from atbook.runs import Run

CHAPTER = Path(__file__).parent.parent / "book" / "11-cifar-wrn.ipynb"
METHODS = ("student", "at", "kd", "at+kd")
SMALL = {"teacher": "wrn-10-1", "teacher_epochs": 1, "epochs": 1, "train_images": 0, "batch": 30, "seeds": [0, 1, 2]}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder set of 3 classes, 20 and 6 images each."""
    root, generator = tmp_path_factory.mktemp("data") / "noise", np.random.default_rng(0)
    for split, n in (("train", 20), ("test", 6)):
        for name in ("a", "b", "c"):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def rerun(folder: Path, root: Path, **parameters: object) -> nbformat.NotebookNode:
    """The chapter, run from ``folder``, which is not the book's, with its runs in ``folder / "runs"``."""
    parameters = SMALL | {"dataset": "folder", "data_root": str(root), "out": str(folder / "runs")} | parameters
    assert set(parameters) <= set(papermill.inspect_notebook(str(CHAPTER))), "papermill only warns of unknown names"
    return papermill.execute_notebook(CHAPTER, folder / "out.ipynb", parameters, cwd=folder, progress_bar=False)


def printed(nb: nbformat.NotebookNode, source: str) -> str:
    """What the cell whose source contains ``source`` printed and returned."""
    (cell,) = [cell for cell in nb.cells if cell.cell_type == "code" and source in cell.source]
    return "".join(out.get("text", "") or out.get("data", {}).get("text/plain", "") for out in cell.outputs)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_folder_of_images_goes_through_the_whole_pipeline(tmp_path, pictures):
    table = printed(rerun(tmp_path, pictures), "live = compare(")
    assert table.startswith("No figures of the paper: the images are folder noise, not CIFAR-10.")
    for method in METHODS:
        row = " ".join(line for line in table.splitlines() if line.split()[:1] == [method])  # a wide table is folded
        assert "folder noise" in row and "0, 1, 2" in row, f"{method}: {table}"
        assert ("better" in row or "worse" in row or "open" in row) == (method != "student"), "three seeds: a verdict"

    wanted = {"teacher"} | {f"{method}-{seed}" for method in METHODS for seed in (0, 1, 2)}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == wanted
    for name in wanted:
        run = Run.load(tmp_path / "runs" / name)
        assert run.status == "finished" and len(run.history) == 1 and run.data.train == 60
        assert (run.teacher is None) == (name == "teacher" or run.recipe.method == "student")

    before = contents(tmp_path / "runs")
    assert printed(rerun(tmp_path, pictures), "live = compare(") == table
    assert contents(tmp_path / "runs") == before, "a second run with the same folder trains nothing"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"methods": ["student", "att"]}, "method 'att' is unknown"),
        ({"student": "wrn-17-2"}, "depth 17, which is not 6n"),
        ({"seeds": 0}, "give a list such as"),
        ({"compile": "no"}, "give true or false"),
        ({"train_images": 61}, "cannot take 61 images"),
        ({"teacher_run": "nowhere"}, "no run in 'nowhere'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_parameter_is_refused_before_any_run(tmp_path, pictures, wrong, said):
    with pytest.raises(PapermillExecutionError, match=said):
        rerun(tmp_path, pictures, **wrong)
    assert not (tmp_path / "runs").exists()
