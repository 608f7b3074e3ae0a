"""Files cut off, emptied, or with one bit flipped, at random places: refused in a sentence, never used.

The CIFAR archives, the images of folders and the cache of shapes: tests/test_data.py.
"""

import io
import random
import tarfile

import pytest
from campaign import images
from faults.harness import LONG
from test_train import SMALL, small_data, stop_after, weights_of  # noqa: F401 (the fixture replaces the images)

from atbook import train as training
from atbook.recipes import Recipe
from atbook.runs import Run
from atbook.train import train

RECIPE = Recipe(**SMALL | {"epochs": 2})


def damaged(content, flips, cuts):
    """The content, with one bit flipped somewhere, cut off somewhere, and emptied."""
    generator = random.Random(0)
    for _ in range(flips):
        place, bit = generator.randrange(len(content)), 1 << generator.randrange(8)
        yield content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
    yield from (content[: generator.randrange(len(content))] for _ in range(cuts))
    yield b""


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run stopped after its first epoch."""
    with monkeypatch.context() as patch, pytest.raises(stop_after(patch, 1)):
        train(RECIPE, tmp_path / "run", progress=False)
    return tmp_path / "run"


def test_checkpoints(stopped, tmp_path, monkeypatch):
    whole, path = train(RECIPE, tmp_path / "whole", progress=False), stopped / "checkpoint.safetensors"
    content = path.read_bytes()
    header = content[: 8 + int.from_bytes(content[:8], "little")]
    # The header is small beside the numbers, and all that is read first: as many places in it.
    bad = [*damaged(content, *((2000, 200) if LONG else (30, 5)))]
    bad += [head + content[len(header) :] for head in damaged(header, *((2000, 0) if LONG else (30, 0)))]
    cohorts = []
    with monkeypatch.context() as patch:
        patch.setattr(training._Cohort, "go", lambda self, progress: cohorts.append(self))
        train(RECIPE, stopped, progress=False)
    for harm in bad:
        path.write_bytes(harm)
        with pytest.raises(ValueError, match=r"checkpoint .* cannot be used .*remove it") as caught:
            training._restore(cohorts[0].students[0])
        assert "\n" not in str(caught.value) and path.read_bytes() == harm
    with pytest.raises(ValueError, match="remove it to train from the beginning"):
        train(RECIPE, stopped, progress=False)
    path.unlink()  # as it says
    assert weights_of(train(RECIPE, stopped, progress=False)) == weights_of(whole)


def test_receipts(stopped, tmp_path):
    path, run = stopped / "receipt.json", Run.load(stopped)
    content, refused = path.read_bytes(), 0
    bad = [*damaged(content, *((20_000, 500) if LONG else (1000, 50)))]
    for harm in bad:
        path.write_bytes(harm)
        try:
            assert Run.load(stopped) == run, "a damaged receipt was used"  # other white space, or 1E-5 for 1e-5
        except ValueError as error:
            refused += 1
            assert "is damaged" in str(error) and "\n" not in str(error)
    assert refused > 0.9 * len(bad)
    path.write_bytes(content[:100])
    with pytest.raises(ValueError, match="receipt .* is damaged .*restore it, or remove its folder"):
        train(RECIPE, stopped, progress=False)
    assert (stopped / "checkpoint.safetensors").exists() and not (stopped / ".lock").exists()
    path.write_bytes(content)
    assert train(RECIPE, stopped, progress=False).status == "finished"


def test_what_a_kill_in_the_last_moment_leaves(tmp_path):
    run = train(RECIPE, tmp_path / "run", progress=False)
    for name in (".lock", "checkpoint.safetensors"):
        (run.folder / name).write_bytes(b"")
    assert train(RECIPE, run.folder, progress=False) == run
    assert {path.name for path in run.folder.iterdir()} == {"receipt.json", "weights.safetensors"}


def test_weights(tmp_path):
    run = train(RECIPE, tmp_path / "run", progress=False)
    path = run.folder / "weights.safetensors"
    for harm in damaged(path.read_bytes(), *((1000, 100) if LONG else (50, 10))):
        path.write_bytes(harm)
        with pytest.raises(ValueError, match="does not match its receipt"):
            run.model()
    with pytest.raises(ValueError, match="does not match its receipt"):
        train(Recipe(**SMALL, method="kd"), tmp_path / "student", teacher=run, progress=False)


@pytest.mark.parametrize("kind", ["", "xz", "gz", "bz2"])
def test_archives(tmp_path, kind):
    """Where a bit says nothing of the content (the time in a gzip header, say) the images come out the same.

    A bare tar file has checksums of names alone: there every cut is noticed, and every flip in a name.
    """
    archive, names = tmp_path / f"images.tar.{kind}", [f"{s}/{n}/0.png" for s in ("train", "test") for n in "ab"]
    with tarfile.open(archive, f"w:{kind}") as tar:
        for name in names:
            member, noise = tarfile.TarInfo(name), random.Random(name).randbytes(3000)
            member.size = len(noise)
            tar.addfile(member, io.BytesIO(noise))
    content, refused = archive.read_bytes(), 0
    bad = [*damaged(content, *((300, 100) if LONG else (40, 20)))]
    for number, harm in enumerate(bad):
        archive.write_bytes(harm)
        try:
            root = images(archive, tmp_path / f"runs-{number}")
        except (ValueError, OSError, tarfile.TarError) as error:  # which the command line turns into its one sentence
            refused += 1
            assert str(error) and "\n" not in str(error) and not any(tmp_path.glob(f"*{number}*images"))
        else:
            assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png")) == sorted(names)
            assert not kind or all((root / n).read_bytes() == random.Random(n).randbytes(3000) for n in names)
    assert refused > (0.9 if kind else 0.3) * len(bad)
    assert len(list(tmp_path.iterdir())) == 1 + len(bad) - refused, "something half unpacked was left"
