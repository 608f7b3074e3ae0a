"""The script that trains the runs of chapter 09."""

from dataclasses import replace

import torch
from gradients import BETAS, best, halved, windows

from atbook.data import load, write_folder
from atbook.recipes import Recipe
from atbook.runs import Data, Run


def test_windows_are_cut_around_the_middle_of_each_object():
    scenes, cut = load("shapes", "test"), windows("test", 10, 20)
    assert cut.labels.tolist() == sorted([0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 2)
    for n, (label, image, mask) in enumerate(zip(cut.labels, cut.images, cut.masks, strict=True)):
        number = 10 + label + 10 * (n % 2)
        rows, columns = (scenes.masks[number].any(dim=axis).nonzero().flatten() for axis in (1, 0))
        top, left = (min(max((span[0] + span[-1] + 1) // 2 - 8, 0), 16) for span in (rows, columns))
        assert torch.equal(image, scenes.images[number, :, top : top + 16, left : left + 16])
        assert torch.equal(mask, scenes.masks[number, top : top + 16, left : left + 16])


def test_photographs_are_halved_and_taken_from_each_class_in_turn(tmp_path):
    scenes = load("shapes", "test")
    order = scenes.labels[:60].argsort(stable=True)
    part = replace(scenes, images=scenes.images[order], labels=scenes.labels[order], masks=None)
    write_folder(tmp_path, part, part)
    cut = halved(tmp_path, "test", 20, 30)
    assert cut.labels.tolist() == [label for label in range(10) for _ in range(3)]
    for n, (label, image) in enumerate(zip(cut.labels, cut.images, strict=True)):
        whole = scenes.images[label + 10 * (2 + n % 3)].double()
        mean = (whole[:, ::2, ::2] + whole[:, 1::2, ::2] + whole[:, ::2, 1::2] + whole[:, 1::2, 1::2]) / 4
        assert (image.double() - mean).abs().max() <= 0.5


def test_the_folder_of_images_is_the_same_data(tmp_path):
    parts = {"train": windows("train", 0, 40), "test": windows("test", 0, 20)}
    write_folder(tmp_path, *parts.values())
    for split, part in parts.items():
        read = load("folder", split, tmp_path)
        assert torch.equal(read.images, part.images) and torch.equal(read.labels, part.labels)
        assert read.classes == part.classes


def test_the_weight_with_the_lowest_error_is_taken_and_a_diverged_run_is_not(tmp_path):
    data = Data(label="folder windows", train=2000, test=1000, classes=10, fingerprint="0")
    for beta, error, status in zip(BETAS["at"], (30.0, 20.0, 20.0, 10.0), ["finished"] * 3 + ["failed"], strict=True):
        history, recipe = [{"epoch": 1, "test_error": error}], Recipe(method="at", beta=beta)
        fields = {"key": "0", "status": status, "recipe": recipe, "data": data, "history": history, "provenance": {}}
        Run(folder=tmp_path / f"at-{beta:g}", **fields).save()
    assert best(tmp_path, "at") == BETAS["at"][1]
