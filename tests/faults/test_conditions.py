"""A clock that goes back, a loss that is no number, no memory: what is said, and that the same call goes on."""

import itertools
import time

import pytest
import torch
from test_train import SMALL, small_data, weights_of  # noqa: F401 (the fixture replaces the images)
from typer.testing import CliRunner

from atbook import train as training
from atbook.cli import app
from atbook.recipes import Recipe
from atbook.runs import Run
from atbook.train import train

RECIPE = Recipe(**SMALL)
STEPS = 3  # in an epoch


@pytest.fixture
def whole(tmp_path):
    return train(RECIPE, tmp_path / "whole", progress=False)


def test_a_clock_that_goes_back(tmp_path, monkeypatch, whole):
    days = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 1e9 - 86_400 * next(days))
        patch.setattr(time, "time_ns", lambda: 10**18 - 86_400 * 10**9 * next(days))
        run = train(RECIPE, tmp_path / "run", progress=False)
    assert weights_of(run) == weights_of(whole) and all(0 < row["seconds"] < 600 for row in run.history)


def breaking(monkeypatch, end):
    """Let the cross-entropy end so in the second step of the second epoch."""
    original, calls = training.cross_entropy, itertools.count(1)
    monkeypatch.setitem(training.TERMS, "ce", lambda batch: end() if next(calls) == STEPS + 2 else original(batch))


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of ...")


def out_of_cpu_memory():
    raise RuntimeError(
        "[enforce fail at alloc_cpu.cpp:126] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
    )


@pytest.mark.parametrize(
    ("end", "error", "said"),
    [
        (lambda: torch.tensor(float("nan"), requires_grad=True), FloatingPointError, "the loss is nan in epoch 2"),
        (lambda: torch.tensor(float("inf"), requires_grad=True), FloatingPointError, "the loss is inf in epoch 2"),
        (out_of_memory, MemoryError, "no memory left for a batch of 25 images: lower batch"),
        (out_of_cpu_memory, MemoryError, "no memory left for a batch of 25 images: lower batch"),
    ],
)
def test_an_epoch_that_fails(tmp_path, monkeypatch, whole, end, error, said):
    """Of the run the finished epochs stay, and the same call goes on from there: to its end if the cause is gone."""
    with monkeypatch.context() as patch, pytest.raises(error, match=said) as caught:
        breaking(patch, end)
        train(RECIPE, tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)
    run = Run.load(tmp_path / "run")
    assert run.status == "failed" and run.reason == f"{error.__name__}: {caught.value}"
    assert {path.name for path in run.folder.iterdir()} == {"receipt.json", "checkpoint.safetensors"}
    assert len(run.history) == 1
    assert weights_of(train(RECIPE, tmp_path / "run", progress=False)) == weights_of(whole)
    assert Run.load(tmp_path / "run").reason is None


def test_on_the_command_line_it_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(training.TERMS, "ce", lambda batch: out_of_cpu_memory())
    result = CliRunner().invoke(
        app, ["train", "student=wrn-10-1", "batch=20", "epochs=1", "--out", str(tmp_path / "run")]
    )
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "atbook: no memory left for a batch of 20 images: lower batch"


def test_other_errors_of_torch_are_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.setitem(training.TERMS, "ce", lambda batch: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        train(RECIPE, tmp_path / "run", progress=False)


def test_weights_that_are_no_numbers_are_no_result(tmp_path):
    """The loss of the last step is that of the weights before it."""
    recipe = Recipe(**SMALL | {"lr": 1e300, "batch": 60, "epochs": 1})
    with pytest.raises(FloatingPointError, match="the weights are no numbers after epoch 1: lower lr or beta"):
        train(recipe, tmp_path / "run", progress=False)
    assert Run.load(tmp_path / "run").status == "failed"
