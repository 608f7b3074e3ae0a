"""Full and read-only disks while a run is trained; for single files see tests/test_runs.py and tests/test_data.py."""

import subprocess
import sys

import pytest
from test_train import SMALL, small_data, weights_of  # noqa: F401 (the fixture replaces the images)

from atbook.recipes import Recipe
from atbook.runs import Run
from atbook.train import train

FILES = {"receipt.json", "weights.safetensors"}


@pytest.fixture
def disk(tmp_path):
    """A disk of 1 MB, in which one checkpoint has room, but not a second beside it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk is not permitted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def remount(disk, options):
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def test_a_disk_that_fills_up_costs_the_epoch_in_hand(disk, tmp_path):
    whole = train(Recipe(**SMALL), tmp_path / "whole", progress=False)
    for _ in range(3):  # as often as one likes: nothing piles up
        with pytest.raises(OSError, match="cannot write checkpoint.safetensors into .*No space left.*: choose another"):
            train(Recipe(**SMALL), disk / "run", progress=False)
        run = Run.load(disk / "run")
        assert run.status == "failed" and "No space left" in run.reason
        assert {path.name for path in run.folder.iterdir()} == {"receipt.json", "checkpoint.safetensors"}
    remount(disk, "size=8m")
    assert weights_of(train(Recipe(**SMALL), disk / "run", progress=False)) == weights_of(whole)


def test_a_disk_without_a_byte_left_is_one_sentence(disk):
    (disk / "filler").write_bytes(bytes(1 << 19))
    with pytest.raises(OSError, match="No space left"):
        while True:
            with open(disk / "filler", "ab") as file:
                file.write(bytes(4096))
    with pytest.raises(OSError, match="cannot write receipt.json into .*No space left.*: choose another folder"):
        train(Recipe(**SMALL), disk / "run", progress=False)
    assert not list((disk / "run").iterdir())


def test_a_limit_on_file_size_is_as_a_full_disk(tmp_path):
    """Where nothing can be mounted; on the command line."""
    limited = (
        "import resource, signal, sys; from atbook.cli import app\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "app()"
    )
    fields = ["train", "student=wrn-10-1", "train_images=40", "batch=20", "epochs=2", "--out"]
    done = subprocess.run([sys.executable, "-c", limited, *fields, tmp_path / "run"], capture_output=True, text=True)
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and said.startswith("atbook: ") and "cannot write checkpoint.safetensors into" in said
    assert "Traceback" not in done.stderr and {p.name for p in (tmp_path / "run").iterdir()} == {"receipt.json"}


def test_read_only_disks(disk):
    """Refused before training; a run that is finished is still there for everybody."""
    remount(disk, "size=8m")
    run = train(Recipe(**SMALL | {"epochs": 1}), disk / "run", progress=False)
    remount(disk, "ro")
    for folder in (disk, disk / "new"):
        with pytest.raises(OSError, match="cannot write receipt.json into .*Read-only file system.*: choose another"):
            train(Recipe(**SMALL), folder, progress=False)
    assert train(Recipe(**SMALL | {"epochs": 1}), disk / "run", progress=False) == run and run.model()
    assert {path.name for path in disk.iterdir()} == {"run"} and {path.name for path in run.folder.iterdir()} == FILES
    remount(disk, "rw")


def test_a_folder_that_turns_read_only_on_the_way(tmp_path, monkeypatch):
    """Permission bits do not stop root: a file system's own flag does."""
    whole = train(Recipe(**SMALL), tmp_path / "whole", progress=False)
    folder = tmp_path / "run"
    original = train.__globals__["_Cohort"]._epoch

    def epoch(self, students, number, bar):
        if number == 1 and subprocess.run(["chattr", "+i", folder], capture_output=True).returncode:
            pytest.skip("chattr is not permitted here")
        original(self, students, number, bar)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(train.__globals__["_Cohort"], "_epoch", epoch)
            with pytest.raises(OSError, match="cannot write checkpoint.safetensors into .*not permitted"):
                train(Recipe(**SMALL), folder, progress=False)
        assert len(Run.load(folder).history) == 1
    finally:
        subprocess.run(["chattr", "-i", folder], capture_output=True)
    assert weights_of(train(Recipe(**SMALL), folder, progress=False)) == weights_of(whole)
    assert {path.name for path in folder.iterdir()} == FILES
