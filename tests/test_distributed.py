"""Several processes for one training, on a CPU: two of them, started by torchrun, against one."""

import json
import os
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch
import torch.distributed as dist
from faults.harness import kill
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from atbook import distributed
from atbook import train as training
from atbook.distributed import GlobalBatchNorm
from atbook.models import build
from atbook.recipes import Recipe
from atbook.runs import Run
from atbook.train import train, train_together

# 31 images in batches of 13, 13 and 5: two processes get 6 and 7, then 2 and 3.
COMMON = {"dataset": "folder", "student": "wrn-10-1", "batch": 13, "epochs": 2, "lr": 0.02}
RECIPES = {
    "teacher": {"seed": 9},
    "student": {},
    "at": {"method": "at"},
    "at+kd": {"method": "at+kd", "student": "wrn-10-2"},
    "fitnet": {"method": "fitnet", "student": "wrn-10-2", "hint_part": 0.5},
    "grad-at": {"method": "grad-at", "student": "nin-thin-nobn", "lr": 0.001},
    "files": {"image_size": 32},  # decoded as they are needed
}
# What each process runs: first batch norm on its part of a batch, if there is one, then every recipe.
WORKER = """
import json, sys
from pathlib import Path
import torch
from atbook import distributed, imagenet, runs
from atbook.recipes import Recipe
from atbook.train import train
decoded, read = [], imagenet.read_image
imagenet.read_image = lambda path: decoded.append(f"{path.parts[-3]}/{path.name}") or read(path)
out, root, recipes = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
distributed.start()
rank = distributed.rank()
if rank > 0:
    runs.write = None  # whoever else writes, fails
if (out / "batch.pt").exists():
    x, pull = torch.load(out / "batch.pt", weights_only=True)
    own = distributed.part(len(x))
    norm, x = torch.nn.Sequential(torch.nn.BatchNorm2d(3)), x[own].requires_grad_()
    distributed.share_statistics(norm)
    y = norm(x)
    gradients = torch.autograd.grad((y * pull[own]).sum(), [x, *norm.parameters()], create_graph=True)
    second = torch.autograd.grad(gradients[0].square().sum(), x)
    torch.save([t.detach() for t in (y, *gradients, *second, *norm.buffers())], out / f"norm-{rank}.pt")
teacher, ends = None, {}
for name, fields in recipes.items():
    try:
        run = train(Recipe(**fields), out / name, root, teacher if "method" in fields else None, progress=False)
        teacher, ends[name] = teacher or run, run.weights
    except FloatingPointError as error:
        ends[name] = str(error)
(out / f"ends-{rank}.json").write_text(json.dumps(ends))
(out / f"decoded-{rank}.json").write_text(json.dumps(decoded))
"""


def torchrun(folder, root, recipes):
    """The command that trains in two processes."""
    (folder / "worker.py").write_text(WORKER)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [*start, str(folder / "worker.py"), str(folder), str(root), json.dumps(recipes)]


def run(command):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Noise with a hint of the class in its colour: 31 images to train on, 20 to test on."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, n in (("train", 31), ("test", 20)):
        for i in range(n):
            pixels = generator.integers(0, 200, (32, 32, 3), dtype=np.uint8)
            pixels[:, :, 0] += 50 * (i % 2)
            path = root / split / ("dark", "red")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def recipes():
    return {name: COMMON | fields for name, fields in RECIPES.items()}


@pytest.fixture(scope="module")
def alone(root, recipes, tmp_path_factory):
    """Every recipe, trained by this process."""
    out, teacher = tmp_path_factory.mktemp("alone"), None
    for name, fields in recipes.items():
        trained = train(Recipe(**fields), out / name, root, teacher if "method" in fields else None, progress=False)
        teacher = teacher or trained
    return out


@pytest.fixture(scope="module")
def together(root, recipes, alone, tmp_path_factory):
    """Every recipe, trained by two processes, with the teacher that the one process trained; last one that fails."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "teacher").symlink_to(alone / "teacher")
    torch.save(batch(), folder / "batch.pt")
    run(torchrun(folder, root, recipes | {"fails": recipes["student"] | {"lr": 1e20}}))
    return folder


def batch():
    """Activations of five images, and what their normalised values are multiplied with to make a loss."""
    generator = torch.Generator().manual_seed(0)
    x, pull = torch.randn(2, 5, 3, 4, 4, generator=generator)
    return [3 + 2 * x, pull.clone()]


def distance(one, two, recipe):
    """How far two runs' weights are apart, as a share of how far training took them from the initial ones."""
    torch.manual_seed(recipe.seed)
    initial = build(recipe.student, 2).state_dict()
    a, b = (load_file(folder / "weights.safetensors") for folder in (one, two))
    names = [name for name in a if a[name].is_floating_point()]
    apart = sum((a[name] - b[name]).square().sum() for name in names)
    moved = sum((a[name] - initial[name]).square().sum() for name in names)
    return (apart / moved).sqrt().item()


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "teacher"])
def test_two_processes_end_with_the_weights_of_one(alone, together, recipes, name):
    assert distance(alone / name, together / name, Recipe(**recipes[name])) < 5e-5  # found: up to 8e-6
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in Run.load(f / name).history]
        for f in (alone, together)
    ]
    for one, two in zip(*rows, strict=True):
        assert two == pytest.approx(one, rel=1e-4)


def test_all_processes_hold_the_same_weights_and_the_first_alone_writes(together, recipes):
    first, second = (json.loads((together / f"ends-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and list(first) == [*recipes, "fails"]
    for name in list(recipes)[1:]:
        assert (
            Run.load(together / name).weights == first[name] and Run.load(together / name).provenance["processes"] == 2
        )
        assert {path.name for path in (together / name).iterdir()} == {"receipt.json", "weights.safetensors"}


def test_each_process_decodes_its_own_part_of_the_images(together):
    """Of 31 images in batches of 13, 13 and 5, and of 20 to test on; in each of two epochs every image once."""
    parts = [json.loads((together / f"decoded-{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(part) for part in parts] == [2 * (6 + 6 + 2 + 10), 2 * (7 + 7 + 3 + 10)]
    assert set(Counter(sum(parts, [])).values()) == {2} and len({*sum(parts, [])}) == 51


def test_batch_norm_takes_the_whole_batch(together):
    """Against torch's, in one process, on the whole batch: output, gradients, their gradients, running statistics."""
    x, pull = batch()
    norm, whole = nn.BatchNorm2d(3), x.clone().requires_grad_()
    y = norm(whole)
    gradients = torch.autograd.grad((y * pull).sum(), [whole, *norm.parameters()], create_graph=True)
    second = torch.autograd.grad(gradients[0].square().sum(), whole)
    parts = [torch.load(together / f"norm-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [len(part[0]) for part in parts] == [2, 3]
    y_, x_, weight_, bias_, second_, *buffers_ = zip(*parts, strict=True)
    for mine, theirs in ((y_, y), (x_, gradients[0]), (second_, second[0])):
        torch.testing.assert_close(torch.cat(mine), theirs, rtol=1e-4, atol=1e-5)
    for mine, theirs in ((weight_, gradients[1]), (bias_, gradients[2])):
        torch.testing.assert_close(sum(mine), theirs, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(buffers_, norm.buffers(), strict=True):
        torch.testing.assert_close(mine[0], theirs)
        torch.testing.assert_close(mine[1], theirs)


@pytest.fixture
def group_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_batch_norm_in_one_process_is_torchs(group_of_one, kind):
    torch.manual_seed(0)
    x = (5 * torch.randn(6, 3, 8, 8) + 40).to(kind).to(memory_format=torch.channels_last)
    theirs = nn.BatchNorm2d(3)
    nn.init.uniform_(theirs.weight), nn.init.uniform_(theirs.bias)
    mine = nn.Sequential(nn.BatchNorm2d(3))
    mine[0].load_state_dict(theirs.state_dict())
    distributed.share_statistics(mine)
    assert isinstance(mine[0], GlobalBatchNorm)
    for _ in range(2):
        y = mine(x)
        torch.testing.assert_close(y, theirs(x))
        assert y.dtype == x.dtype and y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(mine[0].state_dict(), theirs.state_dict())
    torch.testing.assert_close(mine.eval()(x), theirs.eval()(x))


def test_a_group_of_one_trains_the_same_bits(group_of_one, alone, root, recipes, tmp_path):
    again = train(Recipe(**recipes["student"]), tmp_path / "run", root, progress=False)
    assert again.weights == Run.load(alone / "student").weights


def test_beta_is_not_multiplied_by_the_number_of_processes(alone, together, root, recipes, tmp_path):
    """The fault of the public ImageNet code, which sums the losses of several devices where it means their average."""
    fields, teacher = recipes["at"] | {"beta": 2000.0}, Run.load(alone / "teacher")
    doubled = train(Recipe(**fields), tmp_path / "doubled", root, teacher, progress=False).folder
    to_same, to_doubled = (distance(one, together / "at", Recipe(**fields)) for one in (alone / "at", doubled))
    assert 100 * to_same < to_doubled


def test_a_killed_training_of_two_processes_goes_on(root, alone, recipes, tmp_path):
    """Also in one process: how many there are is no part of the run."""
    fields = recipes["student"] | {"epochs": 12}
    whole = train(Recipe(**fields), tmp_path / "whole", root, progress=False)
    command = torchrun(tmp_path, root, {"run": fields})
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=-3, start_new_session=True)
    receipt = tmp_path / "run" / "receipt.json"
    while not (receipt.exists() and Run.load(receipt.parent).history):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    kill(process, whole=True)  # torchrun's workers are in groups of their own
    done = len(Run.load(tmp_path / "run").history)
    assert Run.load(tmp_path / "run").status == "running" and 1 <= done < 12
    (tmp_path / "one").mkdir()
    for name in ("receipt.json", "checkpoint.safetensors"):
        (tmp_path / "one" / name).write_bytes((tmp_path / "run" / name).read_bytes())
    run(command)
    train(Recipe(**fields), tmp_path / "one", root, progress=False)
    for name in ("run", "one"):
        assert distance(whole.folder, tmp_path / name, whole.recipe) < 1e-4


def test_a_loss_that_is_no_number_fails_the_run_of_all(together):
    for rank in (0, 1):
        end = json.loads((together / f"ends-{rank}.json").read_text())["fails"]
        assert end.startswith("the loss is nan in epoch 1")
    assert Run.load(together / "fails").status == "failed"


def test_what_cannot_be_shared_out_is_refused(root, recipes, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 12)
    with pytest.raises(ValueError, match="last batch of an epoch has 5 images for 12 processes: choose another batch"):
        train(Recipe(**recipes["student"]), tmp_path / "run", root)
    with pytest.raises(ValueError, match="the test has 11 images for 12 processes: start fewer"):
        distributed.check(120, 12, 11)
    monkeypatch.setattr(training, "check_compiler", lambda: None)
    with pytest.raises(ValueError, match="several processes cannot train compiled networks"):
        train_together({tmp_path / "run": Recipe(**recipes["student"])}, root, compile=True)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(
        dist, "all_gather_object", lambda states, state: states.__setitem__(slice(None), [state] * 11 + [0])
    )
    with pytest.raises(ValueError, match="not equally far"):
        distributed.agree(1)
    monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="process 1 finds 1 GPUs only: start torchrun with --nproc-per-node 1"):
        distributed.start()


def test_parts_are_the_whole(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 4)
    parts = []
    for rank in range(4):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts += [list(range(11))[distributed.part(11)]]
    assert sum(parts, []) == list(range(11)) and {len(part) for part in parts} == {2, 3}
