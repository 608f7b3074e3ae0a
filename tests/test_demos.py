"""The records of the demonstrations: made by the tool, read by the chapters."""

import ast
import json
from importlib import resources

import demos as tool
import pytest
import torch
from scipy.stats import ttest_1samp

import atbook.demos
from atbook.demos import recorded
from atbook.runs import code_hash


def test_a_record_is_written_read_and_not_made_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(atbook.demos, "book_runs", lambda: tmp_path)
    tool.record("squeeze_excitation", tmp_path / "demos", seeds=(0, 1), steps=2)
    table, pictures = recorded("squeeze_excitation")
    record = json.loads((tmp_path / "demos" / "squeeze_excitation.json").read_text())
    scores = record["scores"]
    assert record["code"] == code_hash(tool.files("squeeze_excitation"))
    assert list(table.index) == list(scores) and (table["seeds"] == 2).all()
    assert table.loc["gate", "mean"] == pytest.approx(sum(scores["gate"]) / 2)
    assert isinstance(pictures["gate/images"], torch.Tensor)
    before = (tmp_path / "demos" / "squeeze_excitation.json").stat().st_mtime_ns
    tool.record("squeeze_excitation", tmp_path / "demos", seeds=(0, 1), steps=2)
    assert (tmp_path / "demos" / "squeeze_excitation.json").stat().st_mtime_ns == before


def test_a_name_that_does_not_exist_is_refused():
    with pytest.raises(FileNotFoundError, match="'squeze' is not recorded"):
        recorded("squeze")
    with pytest.raises(ValueError, match="did you mean 'squeeze_excitation'"):
        tool.main(["squeze_excitation"])


def test_a_record_depends_on_its_mechanism_or_on_what_it_names():
    assert tool.files("hourglass") == ("demos/toy", "demos/hourglass", "mechanisms/hourglass")
    assert tool.files("bridge") == ("demos/toy", "demos/bridge", "mechanisms/cbam", "attention", "losses")


@pytest.mark.parametrize("name", tool.NAMES)
def test_a_record_depends_on_every_mechanism_that_is_imported(name):
    tree = ast.parse((resources.files("atbook") / "demos" / f"{name}.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    mechanisms = {m.removeprefix("atbook.").replace(".", "/") for m in imported if m.startswith("atbook.mechanisms.")}
    assert mechanisms and mechanisms <= set(tool.files(name))
    assert all((resources.files("atbook") / f"{file}.py").is_file() for file in tool.files(name))


def test_differences_are_taken_seed_by_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(atbook.demos, "book_runs", lambda: tmp_path)
    (tmp_path / "demos").mkdir()
    scores = {"a": [10.0, 20.0, 30.0], "b": [11.0, 22.0, 33.0], "c": [9.0, 19.0, 29.0]}
    (tmp_path / "demos" / "x.json").write_text(json.dumps({"scores": scores}))
    table = atbook.demos.against("x", "a")
    assert table.loc["c"].tolist() == [-1, -1, -1]
    expected = ttest_1samp([1.0, 2.0, 3.0], 0).confidence_interval(0.95)
    assert table.loc["b"].tolist() == pytest.approx([2, expected.low, expected.high])
    with pytest.raises(ValueError, match="arm 'd' is unknown"):
        atbook.demos.against("x", "d")


@pytest.mark.parametrize("name", tool.NAMES)
def test_a_record_was_made_by_the_present_code(name):
    assert json.loads((tool.OUT / f"{name}.json").read_text())["code"] == code_hash(tool.files(name)), (
        f"run demos.py {name}"
    )
