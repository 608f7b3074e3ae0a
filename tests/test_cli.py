import subprocess
import sys

from typer.testing import CliRunner

from atbook.cli import app
from atbook.runs import Run


def atbook(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_train_then_show(tmp_path, tiny):
    result = atbook("train", *tiny, "--out", tmp_path / "teacher")
    assert result.exit_code == 0, result.output
    assert "test error" in result.output
    result = atbook("train", *tiny, "method=at", f"teacher={tmp_path / 'teacher'}", "--out", tmp_path / "student")
    assert result.exit_code == 0, result.output
    shown = atbook("runs", tmp_path).output
    assert [line.split()[:2] for line in shown.splitlines()[1:]] == [["student", "finished"], ["teacher", "finished"]]


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("atbook.train.train", stopped)
    result = atbook("train", "--out", tmp_path / "out")
    assert result.exit_code == 130 and "the same command goes on from the last epoch" in result.stderr


def refused(*arguments):
    result = atbook(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("atbook: "), result.stderr
    return lines[0]


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path):
    out = ["--out", tmp_path / "out"]
    assert "did you mean 'epochs'" in refused("train", "epocs=3", *out)
    assert "not KEY=VALUE" in refused("train", "epochs", *out)
    assert "method=at needs teacher=" in refused("train", "method=at", *out)
    assert "takes no teacher=" in refused("train", f"teacher={tmp_path}", *out)
    assert "no run in" in refused("train", "method=at", f"teacher={tmp_path}", *out)
    assert "did you mean" in refused("train", "dataset=shape", *out)
    assert "no-such" in refused("train", "dataset=folder", "--root", tmp_path / "no-such", *out)
    assert "no folder" in refused("runs", tmp_path / "no-such")
    assert not (tmp_path / "out").exists()  # refused before any work


def test_help_names_every_field():
    output = subprocess.run(
        [sys.executable, "-m", "atbook.cli", "train", "--help"], capture_output=True, text=True
    ).stdout
    assert "temperature=4.0" in output and "weight_decay=0.0005" in output


def test_a_protocol_sets_several_fields_and_typed_ones_win(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("atbook.train.train", lambda recipe, *a, **k: seen.append(recipe) or 1 / 0)
    atbook("train", "protocol=short", "epochs=3", "method=student", "--out", tmp_path / "out")
    assert (seen[0].epochs, seen[0].schedule, seen[0].precision) == (3, "one-cycle", "bfloat16")
    assert "protocol 'shirt' is unknown" in refused("train", "protocol=shirt", "--out", tmp_path / "out")


def test_a_run_is_trained_again_from_its_receipt(tmp_path, tiny):
    atbook("train", *tiny, "--out", tmp_path / "teacher")
    atbook("train", *tiny, "method=at", f"teacher={tmp_path / 'teacher'}", "--out", tmp_path / "at")
    result = atbook("train", "--from", tmp_path / "at", "--out", tmp_path / "again")
    assert result.exit_code == 0 and "first epoch: the same to the last digit" in result.output, result.output
    cut = Run.load(tmp_path / "again")
    cut.history, cut.provenance, cut.status = [], {}, "running"
    cut.save()
    again = ("train", "--from", tmp_path / "again", "--out", tmp_path / "x")
    assert "no finished epoch to compare with" in refused(*again)
    assert "leave out KEY=VALUE" in refused("train", "--from", tmp_path / "at", "epochs=2", "--out", tmp_path / "x")


def test_runs_beside_the_paper_and_checked(tmp_path, tiny):
    atbook("train", *tiny, "--out", tmp_path / "runs" / "student")
    assert "no finished run in" in refused("runs", tmp_path / "runs", "--table", "paper1")
    assert "table 'paper3' is unknown" in refused("runs", tmp_path / "runs", "--table", "paper3")
    result = atbook("check", tmp_path / "runs")
    assert result.exit_code == 0 and "agrees" in result.output
    run = Run.load(tmp_path / "runs" / "student")
    run.history[-1]["test_error"] = 1.0
    run.save()
    assert atbook("check", tmp_path / "runs").exit_code == 1
    assert "no folder" in refused("check", tmp_path / "nowhere")
