import ast
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from atbook import runs
from atbook.recipes import Recipe
from atbook.runs import Run, beside_paper, change, code_hash, load_runs, paper_table, run_key, table, teacher_of, write

DATA = {"label": "shapes", "train": 10, "test": 10, "classes": 10, "fingerprint": "ab"}


@pytest.fixture
def run(tmp_path):
    run = Run(folder=tmp_path / "a", key="k", recipe=Recipe(), data=DATA, provenance={"torch": "2"})
    run.history.append({"epoch": 1, "test_error": 42.0, "seconds": 1.5})
    run.save()
    return run


def test_a_receipt_survives_writing_and_reading(run):
    assert Run.load(run.folder) == run
    assert run.test_error == 42.0 and run.seconds == 1.5
    assert str(run.folder) not in (run.folder / "receipt.json").read_text()


def test_a_receipt_without_an_epoch_has_no_error(run):
    run.history.clear()
    with pytest.raises(ValueError, match="no finished epoch"):
        _ = run.test_error
    assert table([run])["test error %"].isna().all()


def unsealed(text, **more):
    """A receipt without the hash of its content, as earlier versions wrote them."""
    return json.dumps({name: value for name, value in json.loads(text).items() if name != "sha256"} | more)


def test_a_receipt_of_an_earlier_version_is_read(run):
    path = run.folder / "receipt.json"
    path.write_text(unsealed(path.read_text()))
    assert Run.load(run.folder) == run


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("42.0", "41.0"),
        lambda text: unsealed(text).replace("running", "walking"),
        lambda text: unsealed(text).replace('"recipe"', '"recipes"'),
        lambda text: unsealed(text, note="of no meaning"),
        lambda text: "3",
    ],
)
def test_a_damaged_receipt_is_refused(run, damage):
    path = run.folder / "receipt.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=r"receipt .* is damaged .*restore it") as caught:
        Run.load(run.folder)
    assert "\n" not in str(caught.value)


def test_missing_runs_are_refused(tmp_path, run):
    with pytest.raises(FileNotFoundError, match="no run in"):
        Run.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_runs(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="has no weights"):
        run.model()


def test_a_table_has_a_row_per_run(run):
    found = load_runs(run.folder.parent)
    row = table(found).iloc[0]
    assert len(found) == 1 and row["data"] == "shapes" and row["test error %"] == 42.0 and row["epochs"] == "1/30"


def test_the_key_covers_recipe_data_teacher_and_code(monkeypatch):
    data = runs.Data(**DATA)
    teacher = runs.Teacher(network="wrn-16-2", test_error=1.0, weights="ff")
    key = run_key(Recipe(), data, None)
    assert key == run_key(Recipe(), data.model_copy(update={"label": "same images"}), None)
    others = [
        run_key(Recipe(seed=1), data, None),
        run_key(Recipe(), data.model_copy(update={"fingerprint": "cd"}), None),
        run_key(Recipe(), data, teacher),
        run_key(Recipe(), data, teacher.model_copy(update={"weights": "ee"})),
    ]
    monkeypatch.setattr(runs, "code_hash", lambda: "other code")
    others.append(run_key(Recipe(), data, None))
    assert len({key, *others}) == 6


def test_the_code_hash_covers_whatever_training_imports():
    other = {"runs", "compat"}  # the receipts themselves, and what mends an installation
    folder, reached, waiting = runs.resources.files("atbook"), other, {"train"}
    while waiting:
        reached = reached | waiting
        nodes = [node for name in waiting for node in ast.walk(ast.parse((folder / f"{name}.py").read_text()))]
        taken = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module.startswith("atbook")]
        waiting = {node.module[7:] or alias.name for node in taken for alias in node.names} - reached
    assert reached - other == set(runs.MODULES)


def test_the_code_hash_ignores_comments_and_sees_changes(tmp_path, monkeypatch):
    for name in runs.MODULES:
        (tmp_path / f"{name}.py").write_text('"""Doc."""\nx = 1\n')
    monkeypatch.setattr(runs.resources, "files", lambda package: tmp_path)
    before = code_hash()
    (tmp_path / "train.py").write_text('"""Other doc."""\n\nx = 1  # why\n')
    assert code_hash() == before
    (tmp_path / "train.py").write_text('"""Other doc."""\nx = 2\n')
    assert code_hash() != before


def test_the_code_hash_is_the_same_in_every_python():
    """3.12 prints f-strings with other quotes, has empty parts in them, and type parameters; the hash is of 3.11."""
    tree = ast.parse("def f(x):\n    return f'{x[\"a\"]:>{2}} {x!r}', None\n")
    assert hashlib.sha256(repr(runs._structure(tree)).encode()).hexdigest()[:16] == "1f74bf81b9fc588b"


def test_a_commit_is_that_of_the_books_repository_alone(tmp_path, monkeypatch):
    """The package may be installed inside the repository of somebody's project."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "theirs"], check=True)
    package = tmp_path / "runs.py"
    package.write_text("")
    monkeypatch.setattr(runs, "__file__", str(package))
    assert runs._git_commit() is None
    subprocess.run([*git, "add", "runs.py"], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "ours"], check=True)
    assert len(runs._git_commit()) == 40


def test_a_full_disk_leaves_the_old_file_whole(tmp_path):
    """A limit on file size stands for the full disk: it holds for root as well."""
    target = tmp_path / "file"
    write(target, b"old")
    code = (
        "import resource, signal, sys; from pathlib import Path; from atbook.runs import write\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write(Path(sys.argv[1]), bytes(5000))"
    )
    result = subprocess.run([sys.executable, "-c", code, target], capture_output=True, text=True)
    assert "OSError" in result.stderr and "cannot write file into" in result.stderr
    assert target.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_impossible_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="cannot write receipt.json into .*choose another folder"):
        write(tmp_path / "file" / "receipt.json", b"")


def test_the_papers_table():
    rows = paper_table("paper1").set_index(["student", "teacher"])
    assert rows.loc[("wrn-16-1", "wrn-16-2"), "at"] == 7.93
    assert rows.loc[("wrn-16-1", "wrn-40-1"), "kd"] < rows.loc[("wrn-16-1", "wrn-40-1"), "student error"]
    with pytest.raises(ValueError, match="'table9' is unknown"):
        paper_table("table9")
    assert paper_table("paper3").set_index("method")["error"].idxmin() == "at"
    with pytest.raises(ValueError, match="'paper3' is unknown: choose one of 'paper1'"):
        beside_paper([], "paper3")


def test_receipts_shipped_with_the_book_can_be_read(request):
    folder = request.config.rootpath / "book" / "runs"
    found = load_runs(folder)
    assert found, "the book ships receipts"
    for run in found:
        assert run.status == "finished" and len(run.history) == run.recipe.epochs
        text = json.dumps(run.model_dump(mode="json"))
        assert "/root" not in text and "/home" not in text
        if run.weights and (run.folder / "weights.safetensors").exists():
            run.model()


def test_the_books_receipts_are_found_from_anywhere(tmp_path, monkeypatch):
    here = runs.book_runs()
    (tmp_path / "book" / "runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "book")
    assert runs.book_runs() == tmp_path / "book" / "runs" != here


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [([-0.5, -0.6, -0.4], "better"), ([0.5, 0.6, 0.4], "worse"), ([-2.5, -0.1, -0.7], "open"), ([-3.0, -3.0], "none")],
)
def test_a_change_is_judged_by_its_interval(differences, verdict):
    found = change(differences)
    assert found.verdict == verdict and found.seeds == len(differences)
    if verdict != "none":
        assert tuple(ttest_1samp(differences, 0).confidence_interval(0.95)) == pytest.approx((found.low, found.high))


def test_a_change_that_is_always_the_same_has_no_spread():
    assert change([-1.0, -1.0, -1.0]) == (3, -1.0, -1.0, -1.0, "better")
    assert change([0.0, 0.0, 0.0]).verdict == "open", "a method that changes nothing is not better"
    with pytest.raises(ValueError, match="no pair of runs"):
        change([])


CIFAR = {"label": "CIFAR-10", "train": 50_000, "test": 10_000, "classes": 10, "fingerprint": "ab"}
TAUGHT = {"network": "wrn-16-2", "test_error": 7.0, "weights": "cd"}


def finished(error, data=CIFAR, teacher=TAUGHT, **fields):
    taught = fields.get("method", "student") != "student"
    fields = {"epochs": 20, "schedule": "one-cycle"} | ({"teacher": "wrn-16-2"} if taught else {}) | fields
    row = {"epoch": 20, "test_error": error, "seconds": 1.0}
    about = {"data": data, "teacher": teacher if taught else None, "provenance": {}}
    run = Run(folder="x", key="k", recipe=Recipe(**fields), **about)
    return run.model_copy(update={"status": "finished", "history": [row]})


def seeds(errors, **fields):
    return [finished(error, seed=seed, **fields) for seed, error in enumerate(errors)]


def test_runs_stand_beside_the_papers_cell():
    plain, at = seeds([10.0, 11.0, 12.0]), seeds([9.2, 10.1, 11.2], method="at")
    rows = beside_paper([*plain, *at], "paper1").set_index("method")
    assert list(rows.index) == ["student", "at"]
    row = rows.loc["at"]
    assert (row["paper %"], row["ours %"], row["lowest"], row["highest"]) == (7.93, 10.1, 9.2, 11.2)
    assert row["seeds"] == "0, 1, 2" and row["change"] == pytest.approx(-2.5 / 3)
    assert row["paper's change"] == pytest.approx(-0.84) and row["verdict"] == "reproduced"
    assert rows.loc["student", "paper %"] == 8.77 and pd.isna(rows.loc["student", "verdict"])


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        ([8.0, 9.0, 10.01], "direction reproduced"),
        ([10.5, 10.5, 12.1], "not reproduced"),
        ([9.0, 10.0], "too few seeds"),
    ],
)
def test_verdicts(errors, verdict):
    rows = beside_paper([*seeds([10.0, 11.0, 12.0]), *seeds(errors, method="kd")], "paper1").set_index("method")
    assert rows.loc["kd", "verdict"] == verdict


def test_only_the_same_seed_makes_a_pair():
    runs = [*seeds([10.0, 11.0, 12.0])[1:], *seeds([9.0, 10.0, 11.0], method="at")]
    row = beside_paper(runs, "paper1").set_index("method").loc["at"]
    assert row["seeds"] == "0, 1, 2" and row["pairs"] == 2 and row["verdict"] == "too few seeds"


def test_other_tables_and_other_settings():
    runs = [*seeds([10.0]), *seeds([9.0], method="at"), *seeds([8.0], method="at", p=4.0)]
    runs += [*seeds([7.0], method="at", groups=(2,)), *seeds([1.0], method="at", beta=3.0)]
    runs += [*seeds([1.0], method="at", data=CIFAR | {"train": 5000}), *seeds([1.0], method="at", train_images=5000)]
    mapping = beside_paper(runs, "paper2")
    assert mapping[["mapping", "p", "ours %"]].values.tolist() == [["f_sum", 2, 9.0], ["f_sum", 4, 8.0]]
    groups = beside_paper(runs, "groups")
    assert groups[["groups", "ours %"]].values.tolist() == [[(2,), 7.0], [(0, 1, 2), 9.0]]
    unfinished = finished(1.0).model_copy(update={"status": "running"})
    assert beside_paper([unfinished], "paper1").empty


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"epochs": 30}, r"differ in epochs \(20, 30\)"),
        ({"data": CIFAR | {"fingerprint": "other"}}, "different images"),
        ({"teacher": TAUGHT | {"weights": "other"}}, "different teachers 'wrn-16-2'"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(other, said):
    runs = [finished(10.0), finished(9.0, method="at"), finished(9.0, method="kd", **other)]
    with pytest.raises(ValueError, match=said):
        beside_paper(runs, "paper1")


def test_a_run_counts_once_and_a_fine_tuned_one_is_no_plain_student():
    with pytest.raises(ValueError, match="two runs have the same settings and seed 1: count one"):
        beside_paper([*seeds([10.0, 11.0, 12.0]), finished(11.0, seed=1)], "paper1")
    tuned = finished(1.0).model_copy(update={"start": "ff"})
    assert set(beside_paper([tuned, finished(10.0)], "paper1")["ours %"]) == {10.0}


def test_the_teacher_is_found_beside_its_student(tmp_path, monkeypatch):
    for name, weights in (("a", "xy"), ("b", "cd")):
        folder = tmp_path / name
        run = finished(7.0, student="wrn-16-2").model_copy(update={"folder": folder, "weights": weights})
        run.save()
        (folder / "weights.safetensors").write_bytes(b"w")
    student = finished(9.0, method="at").model_copy(update={"folder": tmp_path / "at-0"})
    assert teacher_of(student).folder == tmp_path / "b" and teacher_of(finished(10.0)) is None
    student.folder.mkdir()
    monkeypatch.chdir(student.folder)
    assert teacher_of(student.model_copy(update={"folder": Path(".")})).folder == tmp_path / "b"
    (tmp_path / "b" / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="teacher of 'at-0' is not in"):
        teacher_of(student)
