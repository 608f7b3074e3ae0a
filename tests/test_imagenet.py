import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from atbook.attention import Taps
from atbook.compat import torchvision
from atbook.data import load, standardize
from atbook.imagenet import IMAGENET_MEAN, IMAGENET_STD, ImageNetResNet
from atbook.models import build
from atbook.protocols import fields
from atbook.recipes import Recipe
from atbook.train import evaluate, train


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Photographs of unlike size: three classes, of unlike colours; 6 to train on, 3 to test on, of each."""
    root, generator = tmp_path_factory.mktemp("data") / "colours", np.random.default_rng(0)
    for split, n in (("train", 6), ("test", 3)):
        for k, name in enumerate(("blue", "green", "red")):
            for i in range(n):
                pixels = generator.integers(0, 150, (40 + 9 * i, 90 - 11 * i, 3), dtype=np.uint8)
                pixels[:, :, 2 - k] += 100
                path = root / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def files(root):
    return load("folder", "train", root, image_size=48)


def views(files, seed, kind="crop-flip", numbers=(4, 0, 17)):
    ((images, labels),) = files.views([torch.tensor(numbers)], kind, torch.Generator().manual_seed(seed))
    return images, labels


# The networks


def test_weights_and_outputs_are_torchvisions():
    theirs, ours = torchvision.models.resnet18(num_classes=5).eval(), build("resnet18", 5).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    usual = torchvision.transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)(images.float())
    with torch.no_grad(), Taps(theirs, ImageNetResNet.GROUPS) as taps:
        wanted = theirs(usual)
        logits, groups = ours.groups(standardize(images))
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(groups, list(taps), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(ours(standardize(images)), logits)
    assert [g.shape[1:] for g in groups] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]


def test_the_larger_one_has_the_published_size():
    assert sum(p.numel() for p in build("resnet34", 1000).parameters()) == 21_797_672
    assert sum(p.numel() for p in build("resnet18", 1000).parameters()) == 11_689_512


# The images


def test_any_size_is_brought_to_one(files):
    images, labels = views(files, 0)
    assert images.shape == (3, 3, 48, 48) and images.dtype == torch.uint8 and labels.tolist() == [0, 0, 2]
    assert len(files) == 18 and files.classes == ("blue", "green", "red")
    tested = [x for x, _ in files.batches(7)]
    assert [len(x) for x in tested] == [7, 7, 4]
    assert torch.equal(torch.cat([y for _, y in files.batches(7)]), files.labels)


def test_the_tests_view_is_torchvisions_usual_one(files):
    usual = torchvision.transforms.Compose(
        [torchvision.transforms.Resize(round(48 * 256 / 224)), torchvision.transforms.CenterCrop(48)]
    )
    wanted = usual(Image.open(files.paths[4]))
    images, _ = next(files.batches(5))
    assert torch.equal(images[4], torchvision.transforms.functional.pil_to_tensor(wanted))
    assert torch.equal(views(files, 3, "none")[0][0], images[4])
    many = replace(files, paths=files.paths[4:5] * 100, labels=files.labels[:1].repeat(100))
    flipped = views(many, 3, "flip", range(100))[0]
    turned = [torch.equal(view, images[4].flip(2)) for view in flipped]
    assert all(torch.equal(view, images[4]) or is_turned for view, is_turned in zip(flipped, turned, strict=True))
    assert 30 < sum(turned) < 70


def test_views_depend_on_the_state_and_the_image_alone(files):
    before = torch.random.get_rng_state()
    images, _ = views(files, 1)
    assert torch.equal(torch.random.get_rng_state(), before), "torch's own stream is left alone"
    again, _ = views(files, 1, numbers=(17, 4, 0))
    assert torch.equal(again, images[[2, 0, 1]])
    assert not torch.equal(views(files, 2)[0], images)
    copies = replace(files, paths=files.paths[:1] * 6, labels=files.labels[:6])
    six, _ = views(copies, 1, numbers=range(6))
    assert len({view.numpy().tobytes() for view in six}) == 6, "each image of a batch is cropped in its own way"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
def test_workers_change_nothing(files, monkeypatch):
    from atbook import imagenet

    alone, _ = views(files, 1)
    loader = imagenet.DataLoader
    monkeypatch.setattr(imagenet, "DataLoader", lambda *a, num_workers, **k: loader(*a, num_workers=2, **k))
    assert torch.equal(views(files, 1)[0], alone)


def test_a_share_and_the_fingerprint(files, root):
    taken = files.take(5)
    assert taken.labels.tolist() == [0, 1, 2, 0, 1] and [p.name for p in taken.paths] == ["0.png"] * 3 + ["1.png"] * 2
    assert taken.fingerprint() != files.fingerprint() == load("folder", "train", root, image_size=48).fingerprint()
    assert load("folder", "train", root, image_size=64).fingerprint() != files.fingerprint()
    with pytest.raises(ValueError, match=r"choose from 3 \(one of each class\) to 18"):
        files.take(2)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(tmp_path, monkeypatch, workers):
    from atbook import imagenet

    loader = imagenet.DataLoader
    monkeypatch.setattr(imagenet, "DataLoader", lambda *a, num_workers, **k: loader(*a, num_workers=workers, **k))
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "x.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^[^\n]*a/x.png' cannot be read as an image \(unknown format\)[^\n]*$"):
        next(load("folder", "train", tmp_path, image_size=48).batches(1))


# The paper's protocol, in small


def test_the_protocol_runs_on_a_folder_with_losses_that_begin_late(tmp_path, root):
    small = fields("imagenet") | {"image_size": 32, "epochs": 3, "batch": 9, "transfer_from": 2, "lr": 0.01}
    teacher = train(Recipe(**small | {"epochs": 1, "transfer_from": 0}), tmp_path / "t", root, progress=False)
    recipe = Recipe(**small, method="at")
    run = train(recipe, tmp_path / "at", root, teacher, progress=False)
    assert ["at" in row for row in run.history] == [False, False, True] and run.data.label == "folder colours"
    assert evaluate(run.model(), load("folder", "test", root, 32)) == run.test_error

    stopped = tmp_path / "stopped"
    code = (
        "import os, sys; from atbook import train as t; from atbook.recipes import Recipe; import json\n"
        "def checkpoint(student, real=t._checkpoint):\n    real(student); os._exit(9)\n"
        "t._checkpoint = checkpoint\n"
        "t.torch.set_num_threads(int(sys.argv[5]))\n"
        "t.train(Recipe(**json.loads(sys.argv[1])), sys.argv[2], sys.argv[3], sys.argv[4], progress=False)"
    )
    threads = str(torch.get_num_threads())
    arguments = [recipe.model_dump_json(exclude={"teacher"}), str(stopped), str(root), str(tmp_path / "t"), threads]
    assert subprocess.run([sys.executable, "-c", code, *arguments]).returncode == 9
    assert train(recipe, stopped, root, teacher, progress=False).weights == run.weights, "resumed, to the last bit"
