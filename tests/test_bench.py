"""The measurements of ``make bench`` run, on steps too few to tell anything."""

from pathlib import Path

import bench
import pytest

from atbook.data import load
from atbook.recipes import Recipe
from atbook.train import train


@pytest.fixture
def once(monkeypatch, tmp_path):
    """A teacher, with one round of one step to come."""
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "STEPS", 1)
    images = load("shapes", "train").take(40)
    recipe = Recipe(student="wrn-16-2", train_images=20, epochs=1, batch=10)
    return images, train(recipe, tmp_path / "teacher", progress=False), tmp_path


def test_three_students_are_timed_one_by_one_and_side_by_side(once):
    seconds = bench.side_by_side(*once, batch=10)
    assert list(seconds) == ["one by one", "side by side"] and min(seconds.values()) > 0


def test_every_step_has_its_speed(once, monkeypatch):
    monkeypatch.setattr(bench.torch, "compile", lambda function: function)
    rows = bench.speed(*once, threads=1, batch=10)
    assert len(rows) == 1 + 2 * 2 * 3 and all(row["images/s"] > 0 and row["% of peak"] > 0 for row in rows)
    assert [row["times plain"] > 0 for row in rows if row["step"].endswith("at")] == [True] * 5


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read as Linux tells it")
def test_the_plain_way_and_ours_are_compared_in_a_process_of_their_own(once):
    for way in ("plain", "float32"):
        row = bench.pair("wrn-10-1", "wrn-10-1", way, batch=10)
        assert row["way"] == way and row["images/s"] > 0 and row["million operations"] > 0
