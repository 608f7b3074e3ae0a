"""The records of the demonstrations: made by the tool, read by the chapters."""

import json

import demos as tool
import pytest
import torch

import atbook.demos
from atbook.demos import recorded


def test_a_record_is_written_read_and_not_made_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(atbook.demos, "book_runs", lambda: tmp_path)
    tool.record("squeeze_excitation", tmp_path / "demos", seeds=(0, 1), steps=2)
    table, pictures = recorded("squeeze_excitation")
    scores = json.loads((tmp_path / "demos" / "squeeze_excitation.json").read_text())["scores"]
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
