"""The script that trains the runs of chapter 12."""

import json

import finetune
import pytest

from atbook.models import build
from atbook.runs import Run, book_runs, load_runs

RECORDED = book_runs() / "shapes-finetune"
CONTROLS = ("at-same-0", "at-untrained-0")


@pytest.fixture
def small(monkeypatch):
    """The same trainings with 24 images and one seed, in seconds."""
    take = finetune.images
    monkeypatch.setattr(finetune, "images", lambda classes, split, count: take(classes, split, 24))
    monkeypatch.setattr(finetune, "SEEDS", range(1))
    for name in ("PRETRAINING", "TUNING"):
        monkeypatch.setattr(finetune, name, getattr(finetune, name) | {"epochs": 1})


def test_all_runs_and_their_scores_and_no_weights(small, tmp_path, capsys):
    folder, out = tmp_path / "work", tmp_path / "out"
    finetune.main(folder, out)
    runs = {run.folder.name: run for run in load_runs(out)}
    tuned = {"scratch-0", "student-0", "kd-0", "at-0", "at-49ths-0", "at-tenth-0", *CONTROLS}
    assert runs.keys() == tuned | {"pretrained-student", "pretrained-teacher", "teacher", "same", "untrained"}
    assert not list(out.rglob("*.safetensors"))

    teachers = {name: runs[name].teacher.weights for name in ("kd-0", "at-0", *CONTROLS)}
    assert teachers["kd-0"] == teachers["at-0"] == runs["teacher"].weights
    assert [teachers[name] for name in CONTROLS] == [runs["same"].weights, runs["untrained"].weights]
    sizes = [sum(p.numel() for p in build(runs[n].recipe.student, 4).parameters()) for n in ("same", "student-0")]
    assert sizes[0] == sizes[1], "the control's teacher has as many parameters as the student"
    first = runs["pretrained-student"].weights
    assert {runs[name].start for name in tuned - {"scratch-0"} | {"same"}} == {first}
    assert runs["scratch-0"].start is None
    assert runs["teacher"].start == runs["pretrained-teacher"].weights
    assert all(runs[n].recipe.fixed_norm and runs[n].recipe.frozen_groups == 1 for n in tuned - {"scratch-0"})

    scores = json.loads((out / "scores.json").read_text())
    assert scores.keys() == tuned | {"teacher", "same", "untrained", "chance"}
    assert all(0 < row["energy"] < 100 and 0 <= row["pointing"] <= 100 for row in scores.values())

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    finetune.main(folder, out)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}, "done is done"


def test_the_two_tasks_share_no_class():
    assert not set(finetune.SOURCE) & set(finetune.TARGET) and len(finetune.TARGET) == 4


def test_what_the_book_shows_was_made_by_this_script():
    runs = {run.folder.name: run for run in load_runs(RECORDED)}
    assert len(runs) == 5 + 8 * len(finetune.SEEDS) and all(run.status == "finished" for run in runs.values())
    for name, run in runs.items():
        wanted = finetune.PRETRAINING if name.startswith("pretrained") else finetune.TUNING
        if name != "untrained":
            held = run.recipe.model_dump()
            assert {field: held[field] for field in wanted} == wanted, name
    for folder in RECORDED.iterdir():
        if folder.is_dir():
            assert Run.load(folder).data.classes == (6 if folder.name.startswith("pretrained") else 4)
