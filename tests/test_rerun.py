import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import papermill
import psutil
import pytest
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, writes
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from atbook import runs
from atbook.cli import app
from atbook.page import _plain
from atbook.recipes import Recipe
from atbook.rerun import Record, rerun
from atbook.runs import Run
from atbook.train import train

PARAMETERS = 'n: int = 1  # 1 or more\nout: str = ""  # folder of the runs'
CHECK = "from atbook.parameters import check\n\ncheck(globals())"
DIE = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def notebook(tmp_path):
    def made(*cells: str, parameters: str = PARAMETERS) -> Path:
        first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
        path = tmp_path / "own.ipynb"
        path.write_text(writes(new_notebook(cells=[new_markdown_cell("# Own"), first, *map(new_code_cell, cells)])))
        return path

    return made


def printed(folder: Path) -> str:
    cells = json.loads((folder / "own.ipynb").read_text())["cells"]
    return "".join("".join(o.get("text", "")) for cell in cells for o in cell.get("outputs", []))


def atbook(*arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "atbook.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def wait_for(condition) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


# To its end ----------------------------------------------------------------------------------------------------------


def test_a_rerun_is_finished_once(notebook, tmp_path, capsys):
    path, out = notebook(CHECK, "print(n + 1, out)"), tmp_path / "out"
    record = rerun(path, {"n": "3"}, out)
    assert record.status == "finished" and record.reason is None and record.parameters == {"n": 3, "out": ""}
    assert printed(out) == f"4 {out / 'runs'}\n"
    assert {p.name for p in out.iterdir()} == {"own.ipynb", "own.html", "rerun.json", ".lock"}
    assert "<h1" in (out / "own.html").read_text() and "cell" in capsys.readouterr().err
    assert record.seconds > 0 and record.environment["torch"] and record.started <= record.ended
    assert Record.load(out) == record

    before = (out / "own.ipynb").stat().st_mtime_ns
    assert rerun(path, {"n": 3}, out, progress=False) == record
    assert (out / "own.ipynb").stat().st_mtime_ns == before, "not run again"
    again = rerun(path, {"n": 3}, out, resume=True, progress=False)
    assert again.key == record.key and (out / "own.ipynb").stat().st_mtime_ns > before
    assert capsys.readouterr().err == ""  # not of the kernel: before 7.3, its end can print a traceback


def test_another_rerun_in_the_folder_is_refused(notebook, tmp_path):
    out = tmp_path / "out"
    rerun(notebook("pass"), {}, out, progress=False)
    for given, cell, said in (({"n": 2}, "pass", "n 1 there, 2 now"), ({}, "1 + 1", "another version of the chapter")):
        with pytest.raises(ValueError, match=f"holds another rerun .{said}"):
            rerun(notebook(cell), given, out, resume=True)
    record = Record.load(out)
    for name, said in (("code", "of atbook"), ("torch", "of torch")):
        other = record.model_copy(update={"key": "x", "environment": record.environment | {name: "0"}})
        other.save()
        with pytest.raises(ValueError, match=f"another version {said}"):
            rerun(notebook("pass"), {}, out)


def test_what_is_no_rerun_is_left_alone(notebook, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="holds other files"):
        rerun(notebook("pass"), {}, tmp_path / "mine")
    with pytest.raises(ValueError, match="n=0 is not possible"):
        rerun(notebook("pass"), {"n": 0}, tmp_path / "new")
    assert not (tmp_path / "new").exists() and len(list((tmp_path / "mine").iterdir())) == 1
    with pytest.raises(FileNotFoundError, match="no rerun in"):
        Record.load(tmp_path)
    (tmp_path / "mine" / "rerun.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        Record.load(tmp_path / "mine")


def test_what_a_kill_left_half_written_is_removed(notebook, tmp_path):
    """Also where it came before there was a record: the hidden files do not make the folder somebody else's."""
    out = tmp_path / "out"
    out.mkdir()
    for name in (".rerun.json.x1y2", ".own.html.x1y2"):
        (out / name).write_text("{")
    assert rerun(notebook("pass"), {}, out, progress=False).status == "finished"
    assert {p.name for p in out.iterdir()} == {"own.ipynb", "own.html", "rerun.json", ".lock"}


# On the command line -------------------------------------------------------------------------------------------------


def test_the_command_line(notebook, tmp_path):
    path = notebook(CHECK, "print(n)")
    result = invoke("rerun", path, "-p", "n", "-1", "--out", tmp_path / "out")
    assert result.exit_code == 2 and result.stderr.startswith("atbook: n=-1 is not possible")
    for words, said in (
        (["-p", "n"], "takes a name and a value"),
        (["-p", "m", "2"], "parameter 'm' is unknown"),
        (["7"], "one chapter at a time"),
        (["--resum"], "option '--resum' is unknown"),
    ):
        result = invoke("rerun", path, *words, "--out", tmp_path / "out")
        assert result.exit_code == 2 and said in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert "int   1        1 or more" in invoke("rerun", path, "--help").output
    assert "CHAPTER" in invoke("rerun", "--help").output and invoke("rerun").exit_code == 2

    result = invoke("rerun", "-p", "n", "2", path, "--out", tmp_path / "out")
    assert result.exit_code == 0 and result.stdout.startswith("finished, in"), result.output
    assert printed(tmp_path / "out") == "2\n"


# Failed, and never finished ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["print(1)", "1 / 0", "print(2)"], "cell [4]: ZeroDivisionError: division by zero"),
        ([DIE, "print(2)"], "the kernel died"),
        (["print(2)", DIE], "the kernel died"),
        ([CHECK.replace("check(globals())", "n = 'x'\ncheck(globals())")], "n='x' is not possible"),
    ],
    ids=["error", "killed", "killed-last", "parameter"],
)
def test_what_fails_is_recorded(notebook, tmp_path, cells, said):
    result = invoke("rerun", notebook(*cells), "--out", tmp_path / "out")
    assert result.exit_code == 1 and said in result.stdout and "failed" in result.stdout
    record = Record.load(tmp_path / "out")
    assert record.status == "failed" and said in record.reason
    assert (tmp_path / "out" / "own.ipynb").exists() and (tmp_path / "out" / "own.html").exists()
    with pytest.raises(ValueError, match="holds this rerun, failed: say --resume"):
        rerun(notebook(*cells), {}, tmp_path / "out")


def test_cells_that_never_ran_are_not_finished(notebook, tmp_path, monkeypatch):
    """Whatever papermill says of them."""
    monkeypatch.setattr(
        papermill, "execute_notebook", lambda path, partial, *a, **k: partial.write_text(path.read_text())
    )
    record = rerun(notebook("print(1)"), {}, tmp_path / "out")
    assert record.status == "failed" and "before the last cell" in record.reason


def test_a_folder_that_cannot_be_written_to(notebook, tmp_path, monkeypatch):
    path = notebook("pass")
    with pytest.raises(OSError, match="cannot write into .*own.ipynb.*choose another folder"):
        rerun(path, {}, path / "out")
    if os.geteuid():
        (tmp_path / "shut").mkdir(mode=0o555)
        with pytest.raises(OSError, match="cannot write into .*shut"):
            rerun(path, {}, tmp_path / "shut")


def test_a_full_disk(notebook, tmp_path):
    """Files are limited to what the record needs; then to nothing."""
    path, out = notebook("print('x' * 9000)"), tmp_path / "out"
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))}
    result = atbook("rerun", path, "--out", out, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, **limit)
    assert result.returncode == 1 and "File too large" in result.stdout, result.stderr
    assert Record.load(out).status == "failed" and {p.name for p in out.iterdir()} == {"rerun.json", ".lock"}

    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))}
    result = atbook(
        "rerun", path, "--out", tmp_path / "none", env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, **limit
    )
    assert result.returncode == 2 and "cannot write rerun.json into" in result.stderr
    assert [p.name for p in (tmp_path / "none").iterdir()] == [".lock"]


# Two at once, and killed ---------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused(notebook, tmp_path):
    path, out = notebook("pass"), tmp_path / "out"
    record = rerun(path, {}, out, progress=False)
    record.status = "running"
    record.save()
    with FileLock(out / ".lock"):
        result = atbook("rerun", path, "--out", out, "--resume")
        assert result.returncode == 2 and "is in use by another rerun" in result.stderr
        assert Record.load(out).status == "running"
    assert Record.load(out).status == "killed"


@pytest.fixture
def pictures(tmp_path):
    for split in ("train", "test"):
        for i in range(24):
            noise = np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            path = tmp_path / "pictures" / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(path)
    return tmp_path / "pictures"


TRAIN = """from atbook.recipes import Recipe
from atbook.train import train

recipe = Recipe(dataset="folder", student="wrn-10-1", epochs=epochs, batch=8)
run = train(recipe, f"{out}/student", root, progress=False)"""


def test_killed_and_resumed_it_ends_with_the_same_weights(notebook, tmp_path, pictures):
    parameters = 'epochs: int = 60\nroot: str = ""  # images\nout: str = ""  # runs'
    path, out = notebook(TRAIN, parameters=parameters), tmp_path / "out"
    command = [sys.executable, "-m", "atbook.cli", "rerun", path, "-p", "root", pictures, "--out", out]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    checkpoint = out / "runs" / "student" / "checkpoint.safetensors"
    wait_for(checkpoint.exists)
    assert Record.load(out).status == "running"
    kernels = psutil.Process(process.pid).children(recursive=True)
    assert kernels
    process.send_signal(signal.SIGKILL)
    process.wait()
    record = Record.load(out)
    assert record.status == "killed" and "process ended" in record.reason
    assert not psutil.wait_procs(kernels, 60)[1], "a kernel outlives the rerun"
    cut = Run.load(checkpoint.parent)
    assert cut.status == "running" and 0 < len(cut.history) < 60

    record = rerun(path, {"root": str(pictures)}, out, resume=True, progress=False)
    assert record.status == "finished", record.reason
    run = Run.load(checkpoint.parent)
    assert run.history[: len(cut.history)] == cut.history, "seconds included: those epochs were not trained again"
    whole = train(Recipe(**run.recipe.model_dump()), tmp_path / "whole", pictures, progress=False)
    found, wanted = (load_file(folder / "weights.safetensors") for folder in (run.folder, whole.folder))
    assert all(found[name].equal(wanted[name]) for name in wanted)


def test_an_interrupted_rerun_says_how_to_go_on(notebook, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("papermill.execute_notebook", stop)
    result = invoke("rerun", notebook("pass"), "--out", tmp_path / "out")
    assert result.exit_code == 130 and "--resume" in result.stderr
    assert Record.load(tmp_path / "out").status == "killed"


def test_the_last_word_may_be_lost_but_never_wrong(notebook, tmp_path, monkeypatch):
    """The disk fills while the chapter runs: no record says finished."""
    write = runs.write
    calls = []

    def full(path, content):
        if path.name == "rerun.json" and calls:
            raise OSError(28, "cannot write rerun.json: No space left on device")
        calls.append(path.name)
        write(path, content)

    monkeypatch.setattr(runs, "write", full)
    result = invoke("rerun", notebook("pass"), "--out", tmp_path / "out")
    assert result.exit_code == 2 and "No space left" in result.stderr
    assert Record.load(tmp_path / "out").status == "killed"


# The page ------------------------------------------------------------------------------------------------------------


def test_the_page_has_words_where_the_book_has_marks():
    text = "(label)=\n## Title\n\n:::{admonition} Note\n:class: tip\n"
    text += "It is {glue:text}`a:.1f` %, {cite:t}`b`, {term}`maps <map>`.\n:::\n"
    assert _plain(text, {"a": "2.345"}) == "## Title\n\n**Note**\n\nIt is 2.3 %, [b], maps.\n\n"
    assert _plain("$$x$$ (eq)\n{glue:text}`b`", {"b": "'word'"}) == "$$x$$\nword"
