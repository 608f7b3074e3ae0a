"""The script that trains recorded runs once more."""

import numpy as np
import pytest
from again import main
from PIL import Image

from atbook.recipes import Recipe
from atbook.runs import Run
from atbook.train import train


@pytest.fixture
def recorded(tmp_path):
    """A folder of images, and the receipts, without weights, of a teacher and its student."""
    root, generator = tmp_path / "noise", np.random.default_rng(0)
    for split, n in (("train", 8), ("test", 4)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    common = {"dataset": "folder", "student": "wrn-10-1", "epochs": 1, "batch": 8}
    runs = tmp_path / "runs"
    teacher = train(Recipe(**common), runs / "teacher", root, progress=False)
    train(Recipe(**common, method="at", seed=3), runs / "deep" / "at-3", root, teacher, progress=False)
    for weights in runs.rglob("weights.safetensors"):
        weights.unlink()
    return runs, root


def test_recorded_runs_are_trained_again_and_compared(tmp_path, recorded, capsys):
    runs, root = recorded
    changed = Run.load(runs / "deep" / "at-3")
    changed.history[-1]["test_error"] = 101.0
    changed.save()
    assert main([str(runs), str(tmp_path / "new"), str(root), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "2 runs, 1 with another error" in said and "at-3: recorded 101.00 %" in said
    old, new = (Run.load(folder / "teacher") for folder in (runs, tmp_path / "new"))
    assert old.weights == new.weights and new.model()


def test_a_run_that_began_with_given_weights_is_refused(tmp_path, recorded, capsys):
    runs, root = recorded
    run = Run.load(runs / "teacher")
    run.start = "ff"
    run.save()
    with pytest.raises(SystemExit):
        main([str(runs), str(tmp_path / "new"), str(root)])
    assert "'teacher' began with given weights" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_student_without_its_teacher_is_refused(tmp_path, recorded, capsys):
    runs, root = recorded
    with pytest.raises(SystemExit):
        main([str(runs / "deep"), str(tmp_path / "new"), str(root)])
    assert "the teacher of 'at-3' is not in" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
