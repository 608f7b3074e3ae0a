"""Sweeps: their files, their runs through kills and failures, and what is told of them."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import psutil
import pytest
import scaling
import yaml
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from scaling import Sleep, Threads, sleeps
from scipy.stats import bootstrap
from typer.testing import CliRunner

from atbook import engines, report, sweep
from atbook import jobs as planning
from atbook.cli import app
from atbook.names import METHODS
from atbook.recipes import Recipe
from atbook.runs import Run, change
from atbook.train import train

ROOT = Path(__file__).parents[1]
TINY = {"train_images": 40, "student": "wrn-10-1", "epochs": 1, "batch": 20}


@pytest.fixture
def written(tmp_path):
    """Writes a sweep's file and returns its path."""

    def write(content):
        path = tmp_path / "sweep.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return path

    return write


def test_the_file_in_the_book_is_sound():
    (path,) = (ROOT / "book" / "sweeps").glob("*.yaml")
    read = sweep.read(path)
    assert len(read.cells) == 4 and len(read.runs) == 20 and read.teacher.name == "teacher"


def test_every_combination_once_and_a_list_of_grids_is_joined(written):
    read = sweep.read(written({"grid": {"lr": [0.1, "1e-2"], "batch": [5, 6]}, "seeds": [3, 7]}))
    assert [(r.lr, r.batch, r.seed) for r in read.runs] == [
        (lr, batch, seed) for lr in (0.1, 0.01) for batch in (5, 6) for seed in (3, 7)
    ]
    joined = sweep.read(written({"grid": [{"lr": [0.1]}, {"lr": [0.2], "p": [1, 2]}]}))
    assert joined.cells == [{"lr": 0.1}, {"lr": 0.2, "p": 1.0}, {"lr": 0.2, "p": 2.0}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("recipe: [", "it is no YAML"),
        ("- 1", "begin with recipe"),
        ("", "begin with recipe"),
        ("[" * 2000, "it is no YAML"),
        ("recipe: {epochs: 1}\nrecipe: {epochs: 2}", "'recipe' is there twice"),
        ("recipe: !!python/object/apply:os.system [ls]", "it is no YAML"),
        ({"reciper": {}}, "did you mean 'recipe'"),
        ({1: {}}, "sweep key '1' is unknown"),
        ({"recipe": {"epocs": 1}}, "did you mean 'epochs'"),
        ({"recipe": {1: 1}}, "recipe field '1' is unknown"),
        ({"recipe": 3}, "recipe is 3, not fields"),
        ({"recipe": {"seed": 3}}, "write seeds: [0, 1, 2]"),
        ("recipe: {method: 2020-01-01}", "neither number, text nor list"),
        ("recipe: &a {groups: [*a]}", "sweep "),
        ({"grid": {"lr": 0.1}}, "write a list of its values"),
        ({"grid": {"lr": []}}, "write a list of its values"),
        ({"grid": []}, "grid is empty"),
        ({"grid": {"lr": [0.1, 0.1]}}, "two runs are the same, lr 0.1"),
        ({"grid": {"lr": [0.1, -1]}}, "lr=-1 is not possible"),
        ({"grid": {"lr": [0.1]}, "recipe": {"lr": 0.2}}, "'lr' is in the grid and beside it"),
        ({"grid": {"method": ["at"]}}, "method 'at' needs a teacher"),
        ({"grid": {"n": [1, 2]}}, "grid field 'n' is also a column of the report"),
        ({"grid": {"batch": [*range(1, 2000)]}, "seeds": 1000}, "more than 100000"),
        ({"seeds": 0}, "seeds is 0"),
        ({"seeds": True}, "seeds is True"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]"),
        ({"seeds": 10**9}, "seeds is"),
        ({"teacher": "nowhere"}, "teacher 'nowhere' is no folder"),
        ({"teacher": "a\0b"}, "no folder"),
        ({"root": 3}, "root 3 is no folder"),
        ({"gpus": -1}, "gpus is -1"),
        ({"gpus": float("nan")}, "gpus is nan"),
        ({"grid": {"lr": [0.1, 0.2]}, "baseline": {"batch": 3}}, "baseline field 'batch' is unknown"),
        ({"grid": {"lr": [0.1, 0.2]}, "baseline": {"lr": 0.3}}, "the baseline, lr 0.3, is not in the grid"),
        ({"grid": [{"lr": [0.1], "batch": [3, 4]}, {"lr": [0.2]}], "baseline": {"lr": 0.1}}, "more than one baseline"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(written, content, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        sweep.read(written(content))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("sweep ")


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(METHODS)
names = st.sampled_from([*sweep.KEYS, *Recipe.model_fields]) | st.text(max_size=4)
nested = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(sweep.KEYS), nested, max_size=4) | nested)
def test_any_file_is_a_sweep_or_one_sentence(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(content))
    try:
        assert sweep.read(path).runs
    except ValueError as error:
        assert str(error).startswith("sweep ") and "\n" not in str(error)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    for path, kind in ((tmp_path / "x", ValueError), (tmp_path / "none", OSError), (tmp_path, OSError)):
        with pytest.raises(kind):
            sweep.read(path)


def test_names_of_folders_are_harmless():
    for value in ("../../etc", "$(rm -rf ~)", "a b;c", "\n", "-rf", "ü" * 300, (0, 1)):
        name = planning._readable({"x": value}, 0)
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name)


def planned(tmp_path, **content):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"recipe": TINY} | content, sort_keys=False))
    return planning.plan(sweep.read(path), tmp_path / "out")


def finish(jobs, engine=None):
    return engines.finish(jobs, engine or Threads(1), lambda *_: None)


def test_folders_are_named_by_the_receipts_key_and_found_under_another_grid(tmp_path):
    teacher = train(Recipe(**TINY), tmp_path / "teacher", progress=False)
    jobs = planned(tmp_path, grid={"method": ["student", "at"]}, teacher="teacher")
    assert not finish(jobs)
    for job in jobs:
        assert job.folder.name.endswith("-" + Run.load(job.folder).key) and job.state().status == "finished"
    assert jobs[0].folder.name.endswith(teacher.key), "the teacher's recipe is this one"
    again = planned(tmp_path, grid={"method": ["at", "student"], "p": [2.0]}, teacher="teacher")
    assert {job.folder for job in again} == {job.folder for job in jobs}
    train(Recipe(**TINY | {"seed": 5}), tmp_path / "other", progress=False)
    other = planned(tmp_path, grid={"method": ["student", "at"]}, teacher="other")
    assert other[0].folder == jobs[0].folder and other[1].folder != jobs[1].folder, "another teacher, another run"


def test_images_and_teachers_are_checked_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match="cannot take 99999 images"):
        planned(tmp_path, recipe={"train_images": 99_999})
    unfinished = Run(folder=tmp_path / "t", key="", recipe=Recipe(), data=DATA, provenance={})
    unfinished.save()
    with pytest.raises(ValueError, match="is running, not finished"):
        planned(tmp_path, grid={"method": ["student", "kd"]}, teacher="t")
    assert not (tmp_path / "out").exists()


DATA = {"label": "none", "train": 1, "test": 1, "classes": 10, "fingerprint": ""}


def starts(out):
    return Counter((out / "log.txt").read_text().splitlines())


def test_two_sweeps_on_one_folder_share_the_work(tmp_path):
    jobs = sleeps(tmp_path, 12, 0.2)
    both = [threading.Thread(target=finish, args=(jobs, Threads(2))) for _ in "ab"]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert starts(tmp_path) == {f"{what} sleep-{i}": 1 for what in ("start", "end") for i in range(12)}


def test_a_run_in_other_hands_is_asked_for_again(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "LOCKED", 0.05)
    (job,), answers = sleeps(tmp_path, 1, 0.0), []
    ours = FileLock(engines._lock(job))

    class Other:
        """Meets the lock of another process at first."""

        room, restarts = 1, 0

        def submit(self, job):
            with ThreadPoolExecutor(1) as other:
                future = other.submit(engines.attempt, job)
            answers.append(future.result())
            ours.release()
            return future

    with ours:
        assert engines.dispatch([job], Other(), lambda *_: None) == {}
    assert answers == [engines.BUSY, ""] and job.state().status == "finished"


class Dying:
    """An engine whose worker dies at each of the first so many runs."""

    room = 1

    def __init__(self, deaths, restarts):
        self.deaths, self.restarts = deaths, restarts

    def submit(self, job):
        future = Future()
        if self.deaths:
            self.deaths -= 1
            future.set_exception(BrokenExecutor("gone"))
        else:
            future.set_result(engines.attempt(job))
        return future


def test_a_run_is_started_again_a_limited_number_of_times(tmp_path):
    jobs = sleeps(tmp_path, 2, 0.0)
    assert finish(jobs, Dying(2, restarts=2)) == {}
    jobs = sleeps(tmp_path / "b", 2, 0.0)
    assert finish(jobs, Dying(9, restarts=1)) == dict.fromkeys(jobs, "its worker died: gone")


def test_a_failed_run_is_told_and_never_averaged(tmp_path):
    jobs = planned(tmp_path, grid={"lr": [0.1, 1e30]}, seeds=2, baseline={"lr": 0.1})
    damaged = jobs[1].folder / "receipt.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    failed = finish(jobs)
    assert set(failed) == {*jobs[1:]} and "the loss is" in failed[jobs[2]] and "is damaged" in failed[jobs[1]]
    for known in (failed, None):  # with and without what this process saw: the receipts say so too
        table = report.aggregate(jobs, {"lr": 0.1}, known)
        assert table[["n", "unfinished", "failed"]].to_numpy().tolist() == [[1, 0, 1], [0, 0, 2]]
        assert table["mean %"][0] == jobs[0].state().error and np.isnan(table["mean %"][1])
        lines = report.missing(jobs, known)
        assert [line.partition(":")[0] for line in lines] == [job.folder.name for job in jobs[1:]]
        assert all("failed" in line for line in lines)


@pytest.fixture
def made_up(tmp_path):
    """Runs of three cells and five seeds with made-up errors; one is not finished."""
    generator = np.random.default_rng(1)
    cells, jobs, errors = [{"method": "student"}, {"method": "at", "p": 1.0}, {"method": "at", "p": 2.0}], [], {}
    for i, cell in enumerate(cells):
        for seed in range(5):
            job = Sleep(tmp_path / f"{i}-{seed}", cell, seed, Recipe(epochs=1), None, None)
            run = Run(folder=job.folder, key="", recipe=job.recipe, data=DATA, provenance={}, status="finished")
            errors[i, seed] = 10 - i + generator.normal()
            run.history.append({"epoch": 1, "test_error": errors[i, seed], "seconds": 1.0})
            run.status = "running" if (i, seed) == (2, 4) else "finished"
            run.save()
            jobs.append(job)
    return jobs, errors


def test_a_row_is_what_the_formulas_say(made_up):
    jobs, errors = made_up
    table = report.aggregate(jobs, {"method": "student"})
    assert table["n"].tolist() == [5, 5, 4] and table["unfinished"].tolist() == [0, 0, 1]
    for i, seeds in ((0, range(5)), (1, range(5)), (2, range(4))):
        own = [errors[i, seed] for seed in seeds]
        assert table["median %"][i] == pytest.approx(statistics.median(own))
        assert table["mean %"][i] == pytest.approx(np.mean(own))
        found = bootstrap((own,), np.mean, method="percentile", n_resamples=9999, rng=7).confidence_interval
        assert (table["low"][i], table["high"][i]) == pytest.approx(found, abs=0.05)
        if i:
            wanted = change([errors[i, seed] - errors[0, seed] for seed in seeds])
            assert (table["pairs"][i], table["change"][i], table["verdict"][i]) == (
                len(own),
                wanted.mean,
                wanted.verdict,
            )
    assert table["pairs"][0] == 0 and table["verdict"][0] == ""
    assert table["p"].tolist() == ["", "1", "2"] and report._text(0.00025) == "0.00025"


def test_an_interval_needs_three_and_stands_equal_ones():
    assert all(map(np.isnan, report.interval([1.0, 2.0])))
    assert report.interval([3.0, 3.0, 3.0]) == (3.0, 3.0)
    assert report.interval([1.0, 2.0, 4.0]) == report.interval([1.0, 2.0, 4.0])


def test_the_page_needs_nothing_else_and_has_the_books_colours(made_up):
    jobs, _ = made_up
    table = report.aggregate(jobs, {"method": "student"})
    table["method"] = "<script>alert(1)</script>"
    page = report.page("<b>", table, ["<i>"])
    assert page == report.page("<b>", table, ["<i>"])
    assert "<script" not in page and "<i>" not in page and "Sweep &lt;b&gt;" in page
    assert not re.search(r"""(src|href)=["'](?!#)|url\((?!#)|@import""", page.replace("xlink:href", "href"))
    assert page.count("<svg") == 1 and "var(--accent)" in page and "prefers-color-scheme: dark" in page
    css = (ROOT / "book" / "_static" / "custom.css").read_text()
    assert tuple(re.findall(r"--accent: (#\w+)", css)) == report.ACCENTS


def atbook(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_command_tells_of_wrong_input_in_one_sentence(tmp_path, written):
    path = written({"recipe": TINY})
    (tmp_path / "file").write_text("")
    for arguments, said in (
        ((tmp_path / "none",), "no sweep file"),
        ((path, "--engine", "rey"), "did you mean 'ray'"),
        ((path, "--address", "x"), "--address belongs to"),
        ((path, "--gpus", "0.25"), "--gpus belongs to"),
        ((path, "--out", tmp_path / "file"), "cannot write"),
        ((path, "--out", "/proc/sweep"), "cannot write"),
    ):
        result = atbook("sweep", *arguments)
        assert result.exit_code == 2 and said in result.stderr, result.output
        assert len(result.stderr.strip().splitlines()) == 1


def test_a_report_alone_trains_nothing(tmp_path, written):
    result = atbook("sweep", written({"recipe": TINY, "seeds": 2}), "--out", tmp_path / "out", "--report")
    assert result.exit_code == 1 and "0 of 2 runs are finished" in result.output and "missing" in result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.csv", "report.html"}


CELLS = (
    "epochs: int = 1  # rows, 1 to 5\nseed: int = 0  # of nothing\nout: str = ''  # folder",
    """from pathlib import Path
from atbook.recipes import Recipe
from atbook.runs import Run
data = {"label": "none", "train": 1, "test": 1, "classes": 10, "fingerprint": ""}
for method, error in (("student", 20.0), ("symmetry", 10.0)):
    run = Run(folder=Path(out) / f"{method}-{seed}", key="", recipe=Recipe(method=method), data=data, provenance={})
    run.history, run.status = [{"epoch": 1, "test_error": error + epochs + seed, "seconds": 0}], "finished"
    run.save()
assert epochs != 4, "four is too many" """,
)


@pytest.fixture
def chapter(tmp_path):
    """A sweep of a chapter that writes two receipts, and fails where epochs is 4."""
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "chapter.ipynb")
    return {"chapter": "chapter.ipynb", "grid": {"epochs": [1, 4]}}


def test_a_chapter_is_swept_and_its_receipts_are_told(tmp_path, written, chapter):
    read = sweep.read(written(chapter | {"seeds": [3], "baseline": {"epochs": 1}}))
    jobs = planning.plan(read, tmp_path / "out")
    failed = finish(jobs, Dying(0, 0))
    assert jobs[0].state().status == "finished" and jobs[0].errors() == {"student": 24.0, "symmetry": 14.0}
    assert set(failed) == {jobs[1]} and "four is too many" in failed[jobs[1]]
    assert "four is too many" in report.missing(jobs)[0]
    table = report.aggregate(jobs, read.baseline)
    assert table["run"].tolist() == ["student", "symmetry", ""]
    assert table["mean %"].tolist()[:2] == [24.0, 14.0] and table["failed"].tolist() == [0, 0, 1]
    page = report.page("chapter", table, [])
    assert "epochs 1, run symmetry" in page and "run nan" not in page
    again = planning.plan(sweep.read(written(chapter | {"grid": {"epochs": [1]}, "seeds": [3]})), tmp_path / "out")
    assert again[0].folder == jobs[0].folder


def test_relative_paths_of_a_chapter_start_where_the_sweep_was_planned(tmp_path, written, chapter, monkeypatch):
    """A worker on a cluster is in another folder."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    read = sweep.read(written(chapter | {"grid": {"epochs": [1]}, "parameters": {"out": "mine"}, "seeds": 1}))
    (job,) = planning.plan(read, "out")
    monkeypatch.chdir("elsewhere")
    job.go()
    assert (tmp_path / "mine" / "student-0" / "receipt.json").exists() and Path.cwd().name == "elsewhere"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"grid": {"epocs": [1]}}, "did you mean 'epochs'"),
        ({"grid": {"epochs": [1, 6]}}, "epochs=6 is not possible"),
        ({"parameters": {"epochs": 1}}, "'epochs' is in the grid and beside it"),
        ({"parameters": {"seed": 1}}, "seed is in parameters"),
        ({"recipe": {}}, "sweep key 'recipe' is unknown"),
        ({"chapter": "none.ipynb"}, "there is no notebook"),
        ({"chapter": None}, "chapter is None"),
        ({"chapter": "10", "grid": {}, "seeds": 2}, "has no parameter 'seed'"),
        ({"chapter": "06-atention-transfer"}, "did you mean '06-attention-transfer'"),
    ],
)
def test_a_wrong_sweep_of_a_chapter_is_refused(written, chapter, change, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        sweep.read(written(chapter | change))


def test_the_seed_goes_where_the_chapter_wants_it(written):
    read = sweep.read(written({"chapter": 11, "grid": {"beta": [100, "1e3"]}, "seeds": 2}))
    assert [(run["beta"], run["seeds"]) for run in read.runs] == [(b, [s]) for b in (100.0, 1000.0) for s in (0, 1)]
    assert read.chapter.name == "11-cifar-wrn.ipynb" and read.cells == [{"beta": 100.0}, {"beta": 1000.0}]


def test_scaling_is_measured_through_the_scheduler(monkeypatch):
    monkeypatch.setattr(scaling, "WORKERS", (1, 8))
    one, eight = scaling.simulated(seconds=0.2, each=2)
    assert (one["runs"], eight["runs"]) == (2, 16)
    assert 0.4 <= one["seconds"] and eight["seconds"] < 4 * one["seconds"], "side by side, not one by one"


def test_without_ray_the_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[ray\]'"):
        engines.Ray(None, 0)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://[::1]:1", "localhost:99999"])
def test_a_cluster_that_is_not_there_is_a_sentence_in_seconds(address, monkeypatch):
    """Ray itself tries for two minutes, and writes a line for each try."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    before = time.monotonic()
    for named, around in ((address, "ignored:1"), (None, address)):
        monkeypatch.setenv("RAY_ADDRESS", around)
        with pytest.raises(ValueError, match=f"no Ray cluster at '{re.escape(address)}' .*: start one with") as caught:
            engines.Ray(named, 0)
        assert "\n" not in str(caught.value)
    assert time.monotonic() - before < 30


def test_runs_that_wait_for_gpus_are_told_of_and_take_their_part(monkeypatch, capsys):
    asked = []
    ray = SimpleNamespace(init=lambda **_: None, cluster_resources=lambda: {"CPU": 4.0, "GPU": 2.0})
    ray.remote = lambda **options: asked.append(options) or (lambda function: function)
    monkeypatch.setitem(sys.modules, "ray", ray)
    for gpus, said in ((3, "a run takes 3 GPUs, the cluster has 2: all wait for more"), (0.25, "")):
        engines.Ray(None, gpus)
        assert said == capsys.readouterr().err.strip().removeprefix("atbook: ")
    assert [options["num_gpus"] for options in asked] == [3, 0.25]


@pytest.fixture
def start():
    """Starts a sweep as a process of its own, with one worker, which hears Ctrl-C.

    A shell makes its background jobs deaf to it, and so all that they start: these tests too, when run as such.
    """
    started, heard = [], signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(path, out):
        command = [sys.executable, "-m", "atbook.cli", "sweep", path, "--out", out, "--workers", "1"]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield start
    signal.signal(signal.SIGINT, heard)
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for(what, seconds=240):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
    return found


def in_hand(jobs, other_than=()):
    """A run with an epoch done and others to go."""
    states = ((job, job.state()) for job in jobs if job not in other_than)
    return next((job for job, state in states if state.status == "running" and not state.epochs.startswith("0")), None)


def workers_of(process):
    return [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]


def test_kills_of_a_worker_and_of_the_whole_change_no_receipt(tmp_path, written, start):
    """First a worker is killed, then everything; then two sweeps at once do the rest."""
    path = written({"recipe": TINY | {"epochs": 3}, "seeds": 2})
    jobs = planning.plan(sweep.read(path), tmp_path / "out")

    whole = start(path, tmp_path / "out")
    first = wait_for(lambda: in_hand(jobs))
    (worker,) = workers_of(whole)
    worker.kill()
    second = wait_for(lambda: in_hand(jobs, [first]))
    assert first.state().status == "finished", "it was started again and went on"
    (worker,) = workers_of(whole)
    os.kill(whole.pid, signal.SIGKILL)
    whole.communicate()
    worker.wait(20)  # a process of a dead sweep ends by itself
    assert second.state().status == "running"

    both = [start(path, tmp_path / "out") for _ in "ab"]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert all("2 of 2 runs are finished" in output for output in outputs)

    for job, alone in zip(jobs, planning.plan(sweep.read(path), tmp_path / "alone"), strict=True):
        alone.go()
        a, b = (json.loads((job.folder / "receipt.json").read_text()) for job in (job, alone))
        for row in a["history"] + b["history"]:
            del row["seconds"]
        del a["sha256"], b["sha256"]  # of the receipt itself, seconds included
        assert a == b and a["status"] == "finished"
    assert not list((tmp_path / "out").rglob("checkpoint.safetensors"))


def test_ctrl_c_leaves_a_sweep_that_goes_on(tmp_path, written, start):
    path = written({"recipe": TINY | {"epochs": 1000}})
    jobs = planning.plan(sweep.read(path), tmp_path / "out")
    process = start(path, tmp_path / "out")
    wait_for(lambda: in_hand(jobs))
    children = workers_of(process)
    for one in (process, *children):
        os.kill(one.pid, signal.SIGINT)  # as a terminal does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from the last epochs" in output and "Traceback" not in output
    assert not psutil.wait_procs(children, 20)[1] and jobs[0].state().status == "running"


@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_loses_a_machine_and_no_run(tmp_path, monkeypatch):
    """A real cluster of two nodes: the second is removed while it works."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "book" / "_tools"))))
    node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        lost = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
        jobs = sleeps(tmp_path, 8, 2.0, epochs=4)

        def remove():
            # Either node is in the middle of a run.
            wait_for(lambda: [job.state().epochs in ("1/4", "2/4") for job in jobs].count(True) == 2)
            cluster.remove_node(lost, allow_graceful=False)

        with engines.Ray(cluster.address, 0) as engine:
            thread = threading.Thread(target=remove)
            thread.start()
            assert engines.finish(jobs, engine, lambda *_: None) == {}
            thread.join()
    finally:
        cluster.shutdown()
    counts = starts(tmp_path)
    assert [job.state().epochs for job in jobs] == ["4/4"] * 8
    assert all(counts[f"end {job.folder.name}"] == 1 for job in jobs), "each has ended once"
    begun = sorted(counts[f"start {job.folder.name}"] for job in jobs)
    assert begun == [1] * 7 + [2], "only what the lost machine had in hand was started again"
