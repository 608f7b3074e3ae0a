"""Kill -9 at random moments, and before every change of a file: nothing is lost but the epoch in hand."""

import os
import random
import signal
import sys
import time

import pytest
from faults.harness import LONG, Job, finish, kill_after, kill_before_change, kill_until_done, start
from safetensors import safe_open

from atbook.recipes import Recipe
from atbook.runs import Run, json
from atbook.train import train

FIELDS = {"student": "wrn-10-1", "train_images": 300, "batch": 50, "epochs": 4}


def training(folder, **changes):
    """A short training on the command line."""
    fields = [f"{name}={value}" for name, value in (FIELDS | changes).items()]

    def epochs():
        if (folder / "receipt.json").exists():
            assert Run.load(folder).status in ("running", "finished")
        if not (folder / "checkpoint.safetensors").exists():
            return len(Run.load(folder).history) if (folder / "weights.safetensors").exists() else 0
        with safe_open(folder / "checkpoint.safetensors", "pt") as file:
            return len(json.loads(file.metadata()["history"]))

    def result():
        assert {path.name for path in folder.iterdir()} == {"receipt.json", "weights.safetensors"}
        run = Run.load(folder)
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in run.history]
        assert run.model() and run.status == "finished" and all(row["seconds"] >= 0 for row in run.history)
        return run.weights, rows

    return Job([sys.executable, "-m", "atbook.cli", "train", *fields, "--out", str(folder)], folder, epochs, result)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The training, left alone, and the seconds it takes."""
    job = training(tmp_path_factory.mktemp("whole") / "run")
    finish(job)  # also makes the images
    again = training(tmp_path_factory.mktemp("again") / "run")
    seconds = finish(again)
    assert again.result() == job.result()
    return job, seconds


def test_random_kills(whole, tmp_path):
    generator, kills, rounds = random.Random(0), 0, 0
    while kills < (50 if LONG else 3):
        job = training(tmp_path / f"run-{rounds}")
        kills, rounds = kills + kill_until_done(job, generator, whole[1]), rounds + 1
        assert job.result() == whole[0].result()
    print(f"{kills} kills in {rounds} trainings of {whole[1]:.1f} s")


def test_a_kill_before_any_change_of_a_file(tmp_path):
    """The long form tries every change, from the folder's first to the lock's removal; the short one a few."""
    expected = training(tmp_path / "whole", epochs=2)
    finish(expected)
    number, step = 1, 1 if LONG else 9
    while kill_before_change(job := training(tmp_path / f"run-{number}", epochs=2), number):
        done = job.progress()
        finish(job)
        assert job.result() == expected.result() and done <= 2
        number += step
    assert number > 20, "it was killed before fewer changes than a training makes"
    print(f"killed before {len(range(1, number, step))} of the changes 1 to {number - step}")


def test_two_processes_in_one_folder(whole, tmp_path):
    """The second is refused in one sentence, the first goes on; a killed one no longer holds the folder."""
    job = training(tmp_path / "run", epochs=1000)
    first = start(job)

    def wait_for(epochs):
        while job.progress() < epochs:
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.01)

    try:
        wait_for(1)
        with pytest.raises(BlockingIOError, match="another process trains into .*run': wait until") as refused:
            train(Recipe(**FIELDS | {"epochs": 1000}), tmp_path / "run", progress=False)
        assert "\n" not in str(refused.value)
        second = start(job)
        assert second.communicate()[1].startswith("atbook: another process trains") and second.returncode == 2
        wait_for(job.progress() + 1)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    assert kill_after(job, whole[1]), "a dead process holds the folder"
