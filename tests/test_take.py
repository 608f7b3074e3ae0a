"""Chapters to take away: what is packed, and that it runs outside the clone."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from test_notebooks import CHAPTERS, SMALL

sys.path.insert(0, str(Path(__file__).parent.parent / "book" / "_ext"))
from atbook_take import files, pack

ROOT = Path(__file__).parent.parent


@pytest.fixture
def source(tmp_path):
    """A book with two folders of runs and one chapter, which reads one of them."""
    weights = "weights.safetensors"
    for name in ("one/a-0/run.json", f"one/a-0/{weights}", f"one/teacher/{weights}", "two/b-0/run.json"):
        path = tmp_path / "book" / "runs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return tmp_path


def packed(source, code):
    chapter = source / "book" / "01-x.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(code)]), chapter)
    return {path.relative_to(source / "book").as_posix() for path in files(source, chapter)} - {"01-x.ipynb"}


def test_a_chapter_takes_the_receipts_that_it_names_and_their_weights_only_by_name(source):
    assert packed(source, 'load_runs(book_runs() / "one")') == {"runs/one/a-0/run.json"}
    with_teacher = packed(source, 'Run.load(book_runs() / "one" / "teacher")')
    assert with_teacher == {"runs/one/a-0/run.json", "runs/one/teacher/weights.safetensors"}
    assert packed(source, 'load("one", "test")') == set()
    (source / "book" / "runs" / "one").rename(source / "book" / "runs" / "demos")
    assert len(packed(source, "from atbook.demos import recorded")) == 3  # read by the package, not by the chapter


def test_the_same_files_make_the_same_zip(source):
    packed(source, 'book_runs() / "one"')
    for name in ("a.zip", "b.zip"):
        pack(source, source / "book" / "01-x.ipynb", "X", source / name)
    assert (source / "a.zip").read_bytes() == (source / "b.zip").read_bytes()


def take(path: Path, folder: Path) -> Path:
    """Pack a chapter and unpack it in another place; returns its notebook there."""
    pack(ROOT, path, path.stem, folder / "taken.zip")
    with zipfile.ZipFile(folder / "taken.zip") as taken:
        taken.extractall(folder)
    assert len((folder / path.stem / "README.md").read_text().splitlines()) == 2
    return folder / path.stem / "book" / path.name


def test_a_taken_chapter_runs_outside_the_clone(tmp_path):
    """In a folder of its own, with the package copied as an installation has it: without the book beside it."""
    path = next(path for path in CHAPTERS if path.stem.startswith("04"))
    notebook, installed = take(path, tmp_path), tmp_path / "installed"
    installed.mkdir()
    (installed / "atbook").symlink_to(ROOT / "atbook")
    fields = [f for name, value in SMALL[path.stem].items() for f in ("-p", name, str(value))]
    cell = new_code_cell("from atbook.runs import book_runs\nprint('receipts in', book_runs())")
    held = nbformat.read(notebook, as_version=4)
    held.cells.append(cell)
    nbformat.write(held, notebook)
    command = [sys.executable, "-m", "papermill", str(notebook), "out.ipynb", "--no-progress-bar", *fields]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=notebook.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = (notebook.parent / "out.ipynb").read_text()
    assert re.search(r"receipts in (\S+?)\\n", said)[1] == str((notebook.parent / "runs").resolve())


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_no_chapter_is_too_large_to_take(path):
    assert sum(file.stat().st_size for file in files(ROOT, path)) < 25e6
