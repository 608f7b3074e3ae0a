"""Files cut off, emptied, or with one bit flipped, at random places: refused in a sentence, never used.

The CIFAR archives, the images of folders and the cache of shapes: tests/test_data.py.
"""

import io
import random
import tarfile

import pytest
from campaign import main
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
    with monkeypatch.context() as patch:
        patch.setattr(training._Cohort, "go", lambda self, progress: pytest.fail("a damaged checkpoint was used"))
        for harm in bad:
            path.write_bytes(harm)
            with pytest.raises(ValueError, match=r"checkpoint .* cannot be used .*remove it") as caught:
                train(RECIPE, stopped, progress=False)
            assert "\n" not in str(caught.value) and path.read_bytes() == harm
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


def test_weights(tmp_path):
    run = train(RECIPE, tmp_path / "run", progress=False)
    path = run.folder / "weights.safetensors"
    for harm in damaged(path.read_bytes(), *((1000, 100) if LONG else (50, 10))):
        path.write_bytes(harm)
        with pytest.raises(ValueError, match="does not match its receipt"):
            run.model()
        with pytest.raises(ValueError, match="does not match its receipt"):
            train(Recipe(**SMALL, method="kd"), tmp_path / "student", teacher=run, progress=False)


@pytest.mark.parametrize("kind", ["xz", "gz", "bz2"])
def test_archives(tmp_path, capsys, kind):
    """Compressed archives carry checksums; of a bare tar file only the names do."""
    archive = tmp_path / f"images.tar.{kind}"
    with tarfile.open(archive, f"w:{kind}") as tar:
        for split, name in [(s, n) for s in ("train", "test") for n in "ab"]:
            member = tarfile.TarInfo(f"{split}/{name}/0.png")
            noise = random.Random(split + name).randbytes(3000)
            member.size = len(noise)
            tar.addfile(member, io.BytesIO(noise))
    content = archive.read_bytes()
    for number, harm in enumerate(damaged(content, *((300, 100) if LONG else (20, 10)))):
        archive.write_bytes(harm)
        with pytest.raises(SystemExit):
            main([str(archive), str(tmp_path / f"runs-{number}")])
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("usage") or "error: " in said, said
        assert not (tmp_path / f"runs-{number}").exists()
