"""Kill -9 at random moments, and before every change of a file: nothing is lost but the epoch in hand."""

import json
import random
import sys
import time

import pytest
from faults.harness import LONG, Job, finish, kill, kill_before_change, kill_until_done, start
from nbformat.v4 import new_code_cell, new_notebook, writes
from safetensors import safe_open

from atbook.recipes import Recipe
from atbook.rerun import Record
from atbook.runs import Run
from atbook.train import train

FIELDS = {"student": "wrn-10-1", "train_images": 300, "batch": 50, "epochs": 4}
COMMAND = [sys.executable, "-m", "atbook.cli"]
CELLS = (
    'epochs: int = 4  # 1 or more\nout: str = ""  # folder of the runs',
    "from atbook.recipes import Recipe\nfrom atbook.train import train\n"
    f"run = train(Recipe(**{FIELDS} | {{'epochs': epochs}}), out + '/student', progress=False)\nprint(run.test_error)",
)


def kept(folder):
    """How many epochs of a training would not be done again."""
    if not (folder / "receipt.json").exists():
        return 0
    run, checkpoint = Run.load(folder), folder / "checkpoint.safetensors"
    if run.status == "finished":
        return len(run.history)
    assert run.status == "running"
    epochs = 0
    if checkpoint.exists():
        with safe_open(checkpoint, "pt") as file:
            epochs = len(json.loads(file.metadata()["history"]))
    assert len(run.history) <= epochs, "the receipt tells of an epoch that is lost"
    return epochs


def trained(folder):
    """What a finished training must be the same in, whatever happened on the way."""
    assert {path.name for path in folder.iterdir()} == {"receipt.json", "weights.safetensors"}
    run = Run.load(folder)
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in run.history]
    assert run.model() and run.status == "finished" and all(row["seconds"] >= 0 for row in run.history)
    return run.weights, rows


def training(folder, **changes):
    """A short training on the command line."""
    fields = [f"{name}={value}" for name, value in (FIELDS | changes).items()]
    command = [*COMMAND, "train", *fields, "--out", str(folder)]
    return Job(command, folder, lambda: kept(folder), lambda: [trained(folder)])


def rerunning(folder, epochs=FIELDS["epochs"]):
    """A chapter that does the same."""
    cells = [new_code_cell(source) for source in CELLS]
    cells[0].metadata["tags"] = ["parameters"]
    chapter = folder.parent / "own.ipynb"
    chapter.write_text(writes(new_notebook(cells=cells)))

    def progress():
        if (folder / "rerun.json").exists():
            assert Record.load(folder).status in ("killed", "finished")
        if (folder / "own.ipynb").exists():
            assert json.loads((folder / "own.ipynb").read_text())["cells"]
        return kept(folder / "runs" / "student")

    def result():
        assert {path.name for path in folder.iterdir()} == {"own.ipynb", "own.html", "rerun.json", ".lock", "runs"}
        assert Record.load(folder).status == "finished" and "</html>" in (folder / "own.html").read_text()[-20:]
        told = [cell.get("outputs") for cell in json.loads((folder / "own.ipynb").read_text())["cells"]]
        return [trained(folder / "runs" / "student"), told]

    command = [*COMMAND, "rerun", str(chapter), "-p", "epochs", str(epochs), "--out", str(folder), "--resume"]
    return Job(command, folder, progress, result)


def sweeping(folder, **changes):
    """A sweep of two of them, at once."""
    (folder.parent / "sweep.yaml").write_text(json.dumps({"recipe": FIELDS | changes, "seeds": 2}))

    def runs():
        return sorted(path.parent for path in folder.glob("*/receipt.json"))

    def result():
        # Hidden are the locks and, after a kill in that very moment, a part of a report.
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        assert names == {"report.csv", "report.html", *(run.name for run in runs())}
        assert (folder / "report.html").read_text().endswith("</html>\n")
        return [*map(trained, runs()), (folder / "report.csv").read_text()]

    command = [*COMMAND, "sweep", str(folder.parent / "sweep.yaml"), "--workers", "2", "--out", str(folder)]
    return Job(command, folder, lambda: sum(map(kept, runs())), result)


# Random kills of each kind, at least: fifty in the long form.
KILLS = {training: 20 if LONG else 2, rerunning: 15 if LONG else 1, sweeping: 15 if LONG else 1}
each_kind = pytest.mark.parametrize("kind", KILLS, ids=lambda kind: kind.__name__)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The training, left alone."""
    job = training(tmp_path_factory.mktemp("whole") / "run")
    finish(job)  # also makes the images
    return job


@each_kind
def test_random_kills(kind, whole, tmp_path):
    generator, kills, rounds, expected = random.Random(0), 0, 0, kind(tmp_path / "whole")
    seconds = alone = finish(expected)
    assert expected.result()[0] == whole.result()[0], "each of them trains the same"
    while kills < KILLS[kind]:
        job = kind(tmp_path / f"out-{rounds}")
        more = kill_until_done(job, generator, seconds)
        kills, rounds = kills + more, rounds + 1
        seconds *= 1 if more else 0.8  # the machine has become quicker
        assert job.result() == expected.result()
    print(f"{kills} kills in {rounds} times {kind.__name__}, of {alone:.1f} s when left alone")


@each_kind
def test_a_kill_before_any_change_of_a_file(kind, tmp_path):
    """The long form tries every change, from the first to the lock's removal; the short one a few of a training.

    Of a rerun and a sweep it is their own process that is killed; their training is that of the first kind.
    """
    if kind is not training and not LONG:
        pytest.skip("in the long form alone: make test-faults")
    expected = kind(tmp_path / "whole", epochs=2)
    finish(expected)
    number, step = 1, 1 if LONG else 9
    while kill_before_change(job := kind(tmp_path / f"out-{number}", epochs=2), number):
        done = job.progress()
        finish(job)
        assert job.result() == expected.result()
        assert done <= 2 * (2 if kind is sweeping else 1)
        number += step
    assert number > (20 if kind is training else 6), "it was killed before fewer changes than it makes"
    print(f"{kind.__name__} killed before {len(range(1, number, step))} of the changes 1 to {number - step}")


def test_two_processes_in_one_folder(tmp_path):
    """The second is refused in one sentence, the first goes on; a killed one no longer holds the folder."""
    job = training(tmp_path / "run", epochs=1000)
    first = start(job)

    def wait_for(epochs, process):
        while job.progress() < epochs:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)

    try:
        wait_for(1, first)
        with pytest.raises(BlockingIOError, match="another process trains into .*run': wait until") as refused:
            train(Recipe(**FIELDS | {"epochs": 1000}), tmp_path / "run", progress=False)
        assert "\n" not in str(refused.value)
        second = start(job)
        assert second.communicate()[1].startswith("atbook: another process trains") and second.returncode == 2
        wait_for(job.progress() + 1, first)
    finally:
        kill(first, whole=True)
    third = start(job)
    try:
        wait_for(job.progress() + 1, third)  # a dead process does not hold the folder
    finally:
        kill(third, whole=True)
