"""The script that trains the runs of chapter 11."""

import io
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from campaign import go, images, main, pack, plan, ships
from PIL import Image
from safetensors.torch import load_file

from atbook import protocols
from atbook.data import load, standardize
from atbook.runs import Run, load_runs

SHORT = {"dataset": "folder"} | protocols.fields("short")


def test_the_plan_holds_every_run_of_the_tables_once():
    units = plan("wrn-16-2", "wrn-16-1", SHORT, seeds=3)
    names = [name for unit in units for name in unit.recipes]
    assert len(names) == len(set(names)) == 1 + 3 * 4 + 8 + 2 * 3 * 3
    assert names[0] == "teacher" and names[-1] == "kd-12500-2"
    for unit in units:
        for name, recipe in unit.recipes.items():
            assert recipe.epochs == 20 and recipe.student == ("wrn-16-2" if name == "teacher" else "wrn-16-1")
            assert unit.teacher or recipe.method == "student"
            assert (recipe.train_images is None) == ("00-" not in name)
            assert name in ("teacher", f"{recipe.method}-{recipe.seed}") or name.startswith(f"{recipe.method}-")


def test_what_is_shipped_can_be_checked():
    """Teacher and every run of Table 1 come with their weights, one run of each other method too, and no variant."""
    runs = {name: SimpleNamespace(folder=Path(name), recipe=r) for u in plan("wrn-16-2", "wrn-16-1", SHORT, 3)
            for name, r in u.recipes.items()}  # fmt: skip
    kept = {name for name, run in runs.items() if ships(run)}
    table = {f"{m}-{s}" for m in ("student", "at", "kd", "at+kd") for s in range(3)}
    assert kept == table | {"teacher", "f-act-0", "fitnet-0"}


@pytest.fixture
def archive(tmp_path):
    """A tar file of 2 classes, 4 training images and 2 test images each."""
    path = tmp_path / "images.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        for name in [f"{s}/{c}/{i}.png" for s, n in (("train", 4), ("test", 2)) for c in "ab" for i in range(n)]:
            picture = io.BytesIO()
            Image.new("RGB", (32, 32), (200 * ("/b/" in name), 60 * int(Path(name).stem), 90)).save(picture, "png")
            member = tarfile.TarInfo(name)
            member.size = len(picture.getvalue())
            tar.addfile(member, io.BytesIO(picture.getvalue()))
    return path


def test_runs_are_trained_stopped_resumed_and_packed(tmp_path, archive):
    out, tiny = tmp_path / "runs", {"dataset": "folder", "epochs": 1, "batch": 8}
    root = images(archive, out)
    assert images(archive, out) == root and images(root, out) == root, "unpacked once"

    units = plan("wrn-10-1", "wrn-10-1", tiny, seeds=1)[:2]
    with pytest.raises(ValueError, match="workers is 0: give 1 or more"):
        go(units, root, out, workers=0, seconds=1)
    start = time.monotonic()
    assert not go(units, root, out, workers=2, seconds=0.5, compile=False) and time.monotonic() - start < 60
    assert not any(run.status == "finished" for run in (load_runs(out) if out.exists() else []))
    assert go(units, root, out, workers=2, seconds=600, compile=False)
    assert {run.folder.name for run in load_runs(out)} == {"teacher", "student-0"}

    pack(out, root, tmp_path / "back.tar")
    with tarfile.open(tmp_path / "back.tar") as tar:
        tar.extractall(tmp_path / "back", filter="data")
    assert Run.load(tmp_path / "back" / "student-0").model()
    kept = load_file(tmp_path / "back" / "evidence.safetensors")
    assert kept["labels"].tolist() == [0, 0, 1, 1] and kept["pictures"].shape == (2, 3, 32, 32)
    for run in load_runs(out):
        wrong = kept[f"predicted.{run.folder.name}"] != kept["labels"]
        assert 100 * wrong.float().mean().item() == pytest.approx(run.test_error)
        maps = [Q for name, Q in kept.items() if name.startswith("maps.")]
        assert all((Q.flatten(1).amax(1) == 255).all() for Q in maps)
        assert (kept[f"similarity.{run.folder.name}"] <= 1 + 1e-3).all()
    assert kept["maps.student-0.1"].shape == (2, 16, 16)
    assert torch.allclose(kept["similarity.teacher"], torch.ones(3), atol=1e-3), "a map is like itself"
    logits = Run.load(out / "student-0").model()(standardize(load("folder", "test", root).images))
    confidence = kept["confidence.student-0"].float()
    assert torch.allclose(confidence, logits.softmax(dim=1).amax(dim=1), atol=1e-3)

    run = Run.load(out / "student-0")
    run.history[-1]["test_error"] += 1
    run.save()
    with pytest.raises(ValueError, match="the weights of 'student-0' give an error of"):
        pack(out, root, tmp_path / "again.tar")


def test_a_teacher_that_fails_ends_the_campaign(tmp_path, archive, capfd):
    root = images(archive, tmp_path / "runs")
    units = plan("wrn-10-1", "wrn-10-1", {"dataset": "folder", "epochs": 1, "train_images": 100}, seeds=1)
    assert not go([units[0], units[2]], root, tmp_path / "runs", workers=1, seconds=600, compile=False)
    assert "cannot take 100 images" in capfd.readouterr().err


@pytest.mark.parametrize(("wrong", "said"), [("nowhere", "No such file"), ("notes.txt", "could not be opened")])
def test_images_that_are_none_are_refused(tmp_path, capsys, wrong, said):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(SystemExit):
        main([str(tmp_path / wrong), str(tmp_path / "runs")])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
