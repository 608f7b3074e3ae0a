import pytest
import torch
from safetensors.torch import load_file, save
from test_train import SMALL, small_data  # noqa: F401 (the fixture replaces the images)

from atbook import check
from atbook import train as training
from atbook.recipes import Recipe
from atbook.runs import Run, hashlib, write
from atbook.train import train


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "load", lambda *a: training.load(*a))
    return train(Recipe(**SMALL | {"epochs": 8}), tmp_path / "runs" / "a", progress=False)


def test_weights_that_give_the_receipts_error_agree(run, tmp_path):
    said = []
    assert check.recheck(tmp_path / "runs", say=said.append) == []
    assert said == [f"a: receipt {run.test_error:.2f} %, found {run.test_error:.2f} %: agrees"]


def test_an_edited_receipt_is_found(run, tmp_path):
    """Of 40 test images one may change sides, two may not."""
    for images, wrong in ((1, []), (2, ["a"])):
        edited = run.model_copy(deep=True)
        edited.history[-1]["test_error"] += images * 2.5
        edited.save()
        assert check.recheck(tmp_path / "runs", say=lambda line: None) == wrong


def test_exchanged_weights_are_found_even_with_a_fitting_hash(run, tmp_path):
    assert run.test_error < 40  # the exchanged ones give one answer always: 50
    weights = load_file(run.folder / "weights.safetensors")
    weights["fc.bias"] += torch.tensor([0.0, 1e6])
    content = save(weights)
    write(run.folder / "weights.safetensors", content)
    with pytest.raises(ValueError, match="does not match its receipt"):
        check.recheck(tmp_path / "runs")
    changed = Run.load(run.folder)
    changed.weights = hashlib.sha256(content).hexdigest()
    changed.save()
    assert check.recheck(tmp_path / "runs", say=lambda line: None) == ["a"]


def test_other_images_and_missing_weights_are_refused(run, tmp_path):
    run.data.test = 10
    run.save()
    with pytest.raises(ValueError, match="was tested on 10 images of 2 classes, here are 40 of 2"):
        check.recheck(tmp_path / "runs")
    (run.folder / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has weights"):
        check.recheck(tmp_path / "runs")
