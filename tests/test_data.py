import hashlib
import http.server
import pickle
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from atbook import data, shapes
from atbook.compat import torchvision
from atbook.data import Images, augment, load, standardize

# Of 10,000 and 2,000 images. Another generator means other data: receipts made before it are of other images.
SHAPES = {
    "train": "ace6f80a634d17e83e4f07e01c063defa4376e626e2de6acaae79e23ca05a47f",
    "test": "90c35a6ea0af59c26a998b58345e350bb39f12e4b71401514bb5ce847b831fc5",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Every test has a cache folder of its own, and nothing is remembered from the one before."""
    monkeypatch.setenv("ATBOOK_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("ATBOOK_MIRROR", raising=False)
    for remembered in (data._shapes, data._cifar, data._folder, data._image_files):
        remembered.cache_clear()
    return tmp_path / "cache"


def some_images(labels, masks=False):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(labels), 3, 8, 8), dtype=torch.uint8, generator=generator)
    return Images(images, torch.tensor(labels), ("a", "b", "c"), images[:, 0] > 99 if masks else None, "some")


# --- Images ---


def test_take_gives_every_class_its_share_in_a_fixed_order():
    some = some_images([2, 2, 0, 2, 1, 0, 1, 0], masks=True)
    taken = some.take(5)
    assert taken.labels.tolist() == [0, 1, 2, 0, 1]
    order = [2, 4, 0, 5, 6]
    assert torch.equal(taken.images, some.images[order]) and torch.equal(taken.masks, some.masks[order])
    assert (taken.classes, taken.label, len(taken)) == (some.classes, some.label, 5)
    assert some_images([0, 1, 2]).take(3).masks is None


def test_take_goes_on_when_a_class_runs_out():
    assert some_images([0, 1, 2, 2, 2]).take(5).labels.tolist() == [0, 1, 2, 2, 2]


def test_some_classes_alone_come_class_after_class():
    some = some_images([2, 2, 0, 2, 1, 0], masks=True)
    only = some.only(["c", "a"])
    order = [0, 1, 3, 2, 5]
    assert only.labels.tolist() == [0, 0, 0, 1, 1] and only.classes == ("c", "a")
    assert torch.equal(only.images, some.images[order]) and torch.equal(only.masks, some.masks[order])
    with pytest.raises(ValueError, match="class 'd' is unknown"):
        some.only(["d"])


def test_a_written_folder_is_read_back(tmp_path):
    train, test = some_images([2, 0, 1, 2]).only("abc"), some_images([0, 1, 2])
    data.write_folder(tmp_path / "set", train, test)
    for split, part in (("train", train), ("test", test)):
        found = load("folder", split, tmp_path / "set")
        assert torch.equal(found.images, part.images) and torch.equal(found.labels, part.labels)
        assert found.classes == part.classes


def test_an_image_size_is_for_folders():
    with pytest.raises(ValueError, match="image_size is for dataset 'folder', not 'shapes'"):
        load("shapes", "train", image_size=32)


@pytest.mark.parametrize("n", [-1, 0, 2, 5])
def test_take_refuses_numbers_out_of_range(n):
    with pytest.raises(ValueError, match=rf"cannot take {n} images of 'some': choose from 3 .* to 4"):
        some_images([0, 1, 2, 2]).take(n)


def test_fingerprint_sees_every_part():
    same, other = some_images([0, 1, 2], masks=True), some_images([0, 1, 2], masks=True)
    assert same.fingerprint() == other.fingerprint()
    assert len(same.fingerprint()) == 64
    for part in (other.images, other.labels, other.masks):
        before = part.flatten()[0].clone()
        part.view(-1)[0] = 1 - before.long() if part is not other.images else before + 1
        assert same.fingerprint() != other.fingerprint()
        part.view(-1)[0] = before
    renamed = Images(same.images, same.labels, ("a", "b", "d"), same.masks, same.label)
    unmasked = Images(same.images, same.labels, same.classes, None, same.label)
    assert len({x.fingerprint() for x in (same, renamed, unmasked)}) == 3


def test_fingerprint_does_not_depend_on_memory_order_or_label():
    some = some_images([0, 1, 2])
    strided = some.images.contiguous(memory_format=torch.channels_last)
    assert Images(strided, some.labels, some.classes, None, "other").fingerprint() == some.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(3, 3, 8, 8)}, "images must be uint8"),
        ({"images": torch.zeros(3, 1, 8, 8, dtype=torch.uint8)}, "images must be uint8"),
        ({"labels": torch.tensor([0, 1])}, r"labels must be int64 \(3,\)"),
        ({"labels": torch.tensor([0, 1, 3])}, "labels go from 0 to 3, but there are 3 classes"),
        ({"masks": torch.ones(3, 4, 4, dtype=torch.bool)}, r"masks must be bool \(3, 8, 8\)"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    some = some_images([0, 1, 2], masks=True)
    parts = {name: getattr(some, name) for name in ("images", "labels", "classes", "masks", "label")}
    with pytest.raises(ValueError, match=message):
        Images(**parts | change)


# --- load ---


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="dataset 'cifar-10' is unknown: .*did you mean 'cifar10'"):
        load("cifar-10", "train")
    with pytest.raises(ValueError, match="split 'tset' is unknown: .*did you mean 'test'"):
        load("shapes", "tset")
    with pytest.raises(ValueError, match="'folder' needs a root"):
        load("folder", "train")


def test_data_knows_nothing_of_models_and_recipes():
    code = (
        "import sys, atbook.data; print(*(name for name in sys.modules if name.startswith(('atbook.', 'torchvision'))))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(loaded) == ["atbook.data", "atbook.names", "atbook.shapes"]


# --- shapes ---


@pytest.mark.parametrize("split", ["train", "test"])
def test_shapes_are_the_same_bytes_everywhere(split, own_cache):
    made = load("shapes", split)
    assert made.fingerprint() == SHAPES[split]
    assert made.label == "shapes" and made.classes == shapes.CLASSES
    assert load("shapes", split) is made
    data._shapes.cache_clear()
    assert load("shapes", split).fingerprint() == SHAPES[split]
    assert len(list(own_cache.iterdir())) == 1


def test_cached_shapes_are_read_not_made(monkeypatch):
    load("shapes", "test")
    data._shapes.cache_clear()
    monkeypatch.setattr(shapes, "make", lambda split: pytest.fail("made again"))
    assert load("shapes", "test").fingerprint() == SHAPES["test"]


@pytest.mark.parametrize("harm", ["flip a byte", "cut off", "empty", "another file"])
def test_damaged_cache_is_made_again(harm, own_cache):
    load("shapes", "test")
    (path,) = own_cache.iterdir()
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "flip a byte": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "cut off": whole[:middle],
            "empty": b"",
            "another file": b"\x02\0\0\0\0\0\0\0{}",
        }[harm]
    )
    data._shapes.cache_clear()
    assert load("shapes", "test").fingerprint() == SHAPES["test"]
    assert path.read_bytes() == whole


def test_cache_of_another_generator_is_not_used(monkeypatch, own_cache, tmp_path):
    load("shapes", "test")
    data._shapes.cache_clear()
    changed = tmp_path / "shapes.py"
    changed.write_text(Path(shapes.__file__).read_text() + "\n")
    monkeypatch.setattr(shapes, "__file__", str(changed))
    load("shapes", "test")
    assert len(list(own_cache.iterdir())) == 2


def test_cache_that_cannot_be_a_folder_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ATBOOK_DATA", str(tmp_path / "file" / "cache"))
    assert load("shapes", "test").fingerprint() == SHAPES["test"]


def test_full_disk_is_done_without_and_leaves_nothing(own_cache):
    pytest.importorskip("resource", reason="file size limits are Unix's")
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
from atbook.data import load
print(load("shapes", "test").fingerprint())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == SHAPES["test"], done.stderr
    assert list(own_cache.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB of its own, since permissions do not stop root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk is not permitted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_or_read_only_disk_is_done_without(small_disk, monkeypatch):
    monkeypatch.setenv("ATBOOK_DATA", str(small_disk))
    assert load("shapes", "test").fingerprint() == SHAPES["test"]
    assert list(small_disk.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    data._shapes.cache_clear()
    assert load("shapes", "test").fingerprint() == SHAPES["test"]


# --- CIFAR ---


class Server(http.server.ThreadingHTTPServer):
    """Serves ``body`` under every name; the knobs say how badly."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.cut, self.ranges, self.status, self.asked = b"", None, True, 200, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/mirror/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        status = server.status if server.status != 200 else 416 if start >= len(server.body) else 206 if start else 200
        rest = server.body[start:] if status < 400 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    served = Server()
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    monkeypatch.setattr(data, "MIRRORS", (served.url,))
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


def make(dataset, labels, names, tmp_path, monkeypatch):
    """A small archive of CIFAR, whose sums stand in for the official ones; the official server is out of reach."""
    folder = tmp_path / "made" / dataset.base_folder
    folder.mkdir(parents=True)

    def batch(name, seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 3072), dtype=np.uint8)
        content = pickle.dumps({"data": pixels} | labels)
        (folder / name).write_bytes(content)
        return [name, hashlib.md5(content).hexdigest()]

    monkeypatch.setattr(dataset, "train_list", [batch(f"data_batch_{i}", i) for i in range(1, 3)])
    monkeypatch.setattr(dataset, "test_list", [batch("test_batch", 9)])
    meta = pickle.dumps(names)
    (folder / dataset.meta["filename"]).write_bytes(meta)
    monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": hashlib.md5(meta).hexdigest()})
    path = tmp_path / "made" / dataset.filename
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(dataset, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(dataset, "url", f"http://127.0.0.1:9/{dataset.filename}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    return path


@pytest.fixture
def archive(tmp_path, monkeypatch):
    names = {"label_names": [f"class {i}" for i in range(10)]}
    return make(torchvision.datasets.CIFAR10, {"labels": [9, 0, 3, 1] * 10}, names, tmp_path, monkeypatch)


def contents(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


UNPACKED = ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


def test_cifar_is_downloaded_checked_and_unpacked(server, archive, own_cache):
    server.body = archive.read_bytes()
    train, test = load("cifar10", "train"), load("cifar10", "test")
    assert (len(train), len(test), train.label, train.masks) == (80, 40, "CIFAR-10", None)
    assert train.classes == tuple(f"class {i}" for i in range(10))
    assert test.labels.tolist() == [9, 0, 3, 1] * 10
    with open(archive.parent / "cifar-10-batches-py" / "test_batch", "rb") as file:
        pixels = pickle.load(file)["data"]
    assert torch.equal(test.images, torch.from_numpy(pixels.reshape(40, 3, 32, 32)))
    assert contents(own_cache) == UNPACKED
    assert len(server.asked) == 1


def test_of_cifar_100_the_fine_labels_are_taken(server, tmp_path, monkeypatch):
    labels = {"fine_labels": [99, 0, 3, 1] * 10, "coarse_labels": [0] * 40}
    names = {"fine_label_names": [f"fine {i}" for i in range(100)], "coarse_label_names": ["coarse"] * 20}
    server.body = make(torchvision.datasets.CIFAR100, labels, names, tmp_path, monkeypatch).read_bytes()
    test = load("cifar100", "test")
    assert (len(load("cifar100", "train")), test.label) == (80, "CIFAR-100")
    assert test.labels.tolist() == [99, 0, 3, 1] * 10 and test.classes == tuple(names["fine_label_names"])


def test_broken_off_download_leaves_a_part_and_resumes(server, archive, own_cache):
    server.body, server.cut = archive.read_bytes(), 200_000
    with pytest.raises(ConnectionError):
        load("cifar10", "test")
    assert contents(own_cache) == ["cifar-10-python.tar.gz.part"]
    size = (own_cache / "cifar-10-python.tar.gz.part").stat().st_size
    assert 100_000 < size <= 200_000  # all but the last, broken chunk
    server.cut = None
    assert len(load("cifar10", "test")) == 40
    assert server.asked == [None, f"bytes={size}-"]
    assert contents(own_cache) == UNPACKED


def test_server_without_ranges_sends_all_again(server, archive, own_cache):
    server.body, server.ranges = archive.read_bytes(), False
    own_cache.mkdir()
    (own_cache / "cifar-10-python.tar.gz.part").write_bytes(server.body[:3000])
    assert len(load("cifar10", "test")) == 40


def test_part_that_is_already_whole_is_taken(server, archive, own_cache):
    server.body = archive.read_bytes()
    own_cache.mkdir()
    (own_cache / "cifar-10-python.tar.gz.part").write_bytes(server.body)
    assert len(load("cifar10", "test")) == 40
    assert contents(own_cache) == UNPACKED


def test_wrong_content_is_refused_and_not_left_behind(server, archive, own_cache):
    server.body = archive.read_bytes()[:-1] + b"!"
    with pytest.raises(ConnectionError, match="wrong md5"):
        load("cifar10", "test")
    assert contents(own_cache) == []


def test_part_of_another_file_costs_one_mirror_not_the_download(server, archive, own_cache, monkeypatch):
    server.body = archive.read_bytes()
    monkeypatch.setattr(data, "MIRRORS", (server.url, server.url))
    own_cache.mkdir()
    (own_cache / "cifar-10-python.tar.gz.part").write_bytes(b"<html>Please log in</html>")
    assert len(load("cifar10", "test")) == 40


def test_next_mirror_is_tried(server, archive, monkeypatch):
    server.body = archive.read_bytes()
    monkeypatch.setattr(data, "MIRRORS", ("http://127.0.0.1:9/", server.url))
    assert len(load("cifar10", "test")) == 40


def test_own_mirror_is_first_whether_url_or_folder(server, archive, monkeypatch, tmp_path):
    server.body = archive.read_bytes()
    monkeypatch.setattr(data, "MIRRORS", ("http://127.0.0.1:9/",))
    monkeypatch.setenv("ATBOOK_MIRROR", server.url.rstrip("/"))
    assert len(load("cifar10", "test", tmp_path / "one")) == 40
    monkeypatch.setenv("ATBOOK_MIRROR", str(archive.parent))
    assert len(load("cifar10", "test", tmp_path / "two")) == 40
    assert len(server.asked) == 1
    assert archive.exists()


def test_archive_put_there_by_hand_needs_no_network(archive, monkeypatch, tmp_path):
    monkeypatch.setattr(data.requests, "get", lambda *_, **__: pytest.fail("asked the network"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / archive.name).write_bytes(archive.read_bytes())
    assert len(load("cifar10", "train", tmp_path / "mine")) == 80


def test_damaged_files_are_unpacked_anew(server, archive, own_cache):
    server.body = archive.read_bytes()
    load("cifar10", "test")
    data._cifar.cache_clear()
    (own_cache / "cifar-10-batches-py" / "test_batch").write_bytes(b"damaged")
    assert load("cifar10", "test").labels.tolist() == [9, 0, 3, 1] * 10
    assert len(server.asked) == 1


def test_what_a_killed_process_left_half_unpacked_is_removed(server, archive, own_cache):
    server.body = archive.read_bytes()
    (own_cache / ".unpacking-cifar-10-batches-py-x").mkdir(parents=True)
    assert len(load("cifar10", "test")) == 40 and contents(own_cache) == UNPACKED


def test_of_two_that_want_it_at_once_one_fetches(server, archive, own_cache):
    server.body = archive.read_bytes()
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda split: load("cifar10", split), ("train", "test")))
    assert [len(images) for images in both] == [80, 40]
    assert len(server.asked) == 1 and contents(own_cache) == UNPACKED


def test_offline_says_what_to_do(server, archive, own_cache):
    server.status = 503
    with pytest.raises(ConnectionError) as caught:
        load("cifar10", "train")
    message = str(caught.value)
    for part in (archive.name, str(own_cache), server.url, "HTTP status 503", "ATBOOK_MIRROR", "'shapes'", "'folder'"):
        assert part in message
    assert "\n" not in message and contents(own_cache) == []


def test_root_that_cannot_be_written_is_named(archive, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write to .*file/below.*: choose another root"):
        load("cifar10", "train", tmp_path / "file" / "below")


def test_read_only_root_is_not_taken_for_a_dead_mirror(archive, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match="cannot write to .*disk.*: choose another root"):
        load("cifar10", "train", small_disk)


def test_sums_are_the_official_ones():
    assert torchvision.datasets.CIFAR10.tgz_md5 == "c58f30108f718f92721af3b95e74349a"
    assert torchvision.datasets.CIFAR100.tgz_md5 == "eb9058c3a382ffc7106e4002c42a8d85"


# --- folder ---


@pytest.fixture
def tree(tmp_path):
    """Two classes of two 6x5 PNG images in each split; the red value tells which image it is."""
    root = tmp_path / "pictures"
    for number, name in enumerate(["train/cat/b", "train/cat/a", "train/dog/c", "train/dog/d"]):
        picture(root / f"{name}.png", number)
    for number, name in enumerate(["test/cat/x", "test/dog/y"]):
        picture(root / f"{name}.png", number)
    return root


def picture(path, red=0, mode="RGB", size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (red, 50, 100)).convert(mode).save(path)


def test_folder_is_read_in_the_order_of_names(tree):
    train, test = load("folder", "train", tree), load("folder", "test", str(tree))
    assert train.images.shape == (4, 3, 5, 6)
    assert train.images[:, :, 0, 0].tolist() == [[1, 50, 100], [0, 50, 100], [2, 50, 100], [3, 50, 100]]
    assert train.labels.tolist() == [0, 0, 1, 1] and test.labels.tolist() == [0, 1]
    assert (train.classes, train.label, train.masks) == (("cat", "dog"), "folder pictures", None)
    assert load("folder", "train", tree) is train


def test_hidden_and_other_files_are_passed_over(tree):
    before = load("folder", "train", tree).fingerprint()
    (tree / "train" / "cat" / ".hidden.png").write_text("no image")
    (tree / "train" / "cat" / "notes.txt").write_text("no image")
    (tree / "train" / ".cache").mkdir()
    (tree / "train" / "readme.md").write_text("no class")
    data._folder.cache_clear()
    assert load("folder", "train", tree).fingerprint() == before


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_other_modes_become_rgb(tree, mode):
    picture(tree / "train" / "cat" / "a.png", 7, mode)
    with Image.open(tree / "train" / "cat" / "a.png") as image:
        assert image.mode == mode
        wanted = image.convert("RGB").getpixel((0, 0))
    assert tuple(load("folder", "train", tree).images[0, :, 0, 0].tolist()) == wanted


def remove(path):
    for inner in sorted(path.rglob("*"), reverse=True):
        inner.rmdir() if inner.is_dir() else inner.unlink()
    path.rmdir()


BAD = {
    "missing root": (remove, r"there is no folder '.*pictures/train'"),
    "missing split": (lambda root: remove(root / "test"), r"there is no folder '.*pictures/test'"),
    "no class": (lambda root: (remove(root / "train"), (root / "train").mkdir()), "has no class folder"),
    "one class": (lambda root: remove(root / "train" / "dog"), "train' has one class only, 'cat'"),
    "empty class": (lambda root: (root / "train" / "bird").mkdir() or picture(root / "test/bird/a.png"),
                    "bird' has no image"),
    "unlike classes": (lambda root: picture(root / "test" / "emu" / "a.png"), "unlike classes: 'emu'"),
    "no image": (lambda root: (root / "train/dog/c.png").write_text("hello"),
                 "dog/c.png' cannot be read as an image .unknown format"),
    "unlike size": (lambda root: picture(root / "train/dog/d.png", size=(7, 5)),
                    r"cat/a.png' has 6x5 and '.*dog/d.png' has 7x5 pixels\): give image_size, or resize"),
    "16 bit": (lambda root: Image.new("I;16", (6, 5)).save(root / "train/dog/d.png"),
               "dog/d.png' cannot be read as an image .it has more than 8 bits"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_folders_are_refused_in_one_sentence(tree, what):
    harm, message = BAD[what]
    harm(tree)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load("folder", "train", tree)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_cut_off_images_are_refused(tree, suffix):
    path = tree / "train" / "dog" / f"e.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=f"e.{suffix}' cannot be read as an image"):
        load("folder", "train", tree)


def test_splits_of_unlike_size_are_refused(tree):
    for name in ("cat/x", "dog/y"):
        picture(tree / "test" / f"{name}.png", size=(9, 9))
    with pytest.raises(ValueError, match="6x5 and .* has 9x9"):
        load("folder", "test", tree)


def test_jpeg_copy_of_cifar10(tmp_path):
    archive = Path(__file__).parents[2] / "shared" / "data" / "cifar10-images.tar.xz"
    if not archive.exists():
        pytest.skip("the JPEG copy of CIFAR-10 is not beside this checkout")
    with tarfile.open(archive) as tar:  # enough of it: reading on takes the whole of ten seconds
        names = {}
        for member in tar:
            if member.isfile():
                split, name, _ = member.name.removeprefix("./").split("/")
                names.setdefault((split, name), tar.extractfile(member).read())
            if len(names) == 2:
                break
    (one, first), (two, second) = names.items()
    for split in ("train", "test"):
        for name, content in ((one[1], first), (two[1] if two[1] != one[1] else "other", second)):
            path = tmp_path / "root" / split / name / "0.jpg"
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
    images = load("folder", "train", tmp_path / "root").images
    assert images.shape == (2, 3, 32, 32)
    assert images.float().std() > 20


# --- augment, standardize ---


def slow_views(images, kind, generator):
    """What augment does, image by image, with pad, slice and flip."""
    n, views = len(images), []
    shifts = torch.zeros(2, n, 1, dtype=torch.long)
    if kind == "crop-flip":
        shifts = torch.randint(-4, 5, (2, n, 1), generator=generator)
    flips = torch.randint(0, 2, (n, 1), generator=generator)
    for i, image in enumerate(images):
        padded = F.pad(image[None].float(), (4, 4, 4, 4), mode="reflect")[0]
        top, left = 4 + shifts[0, i, 0], 4 + shifts[1, i, 0]
        view = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
        views.append(view.flip(2) if flips[i, 0] else view)
    return torch.stack(views).byte()


@pytest.mark.parametrize("size", [(32, 32), (5, 9)])
@pytest.mark.parametrize("kind", ["crop-flip", "flip"])
def test_augment_agrees_with_pad_slice_and_flip(kind, size):
    images = torch.randint(0, 256, (200, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    fast = augment(images, kind, torch.Generator().manual_seed(2))
    assert torch.equal(fast, slow_views(images, kind, torch.Generator().manual_seed(2)))
    assert fast.dtype == torch.uint8


def test_augment_is_deterministic_under_the_generator_and_leaves_the_images():
    images = some_images([0, 1, 2]).images
    before = images.clone()
    generator = torch.Generator().manual_seed(3)
    first, second = augment(images, "crop-flip", generator), augment(images, "crop-flip", generator)
    assert torch.equal(first, augment(images, "crop-flip", torch.Generator().manual_seed(3)))
    assert not torch.equal(first, second) and torch.equal(images, before)


def test_half_of_the_images_flip_and_all_crops_are_as_frequent():
    image = torch.arange(32 * 32).reshape(1, 1, 32, 32) // 4
    images = image.byte().expand(8100, 3, 32, 32)
    flipped = augment(images, "flip", torch.Generator().manual_seed(4))
    mirrored = (flipped[:, 0, 0, 0] > flipped[:, 0, 0, -1]).float().mean()
    assert abs(mirrored - 0.5) < 0.02
    rows = augment(images, "crop-flip", torch.Generator().manual_seed(5))[:, 0, 16, 0].long() // 8
    assert torch.bincount(rows - rows.min()).tolist() == pytest.approx([900] * 9, abs=150)


def test_no_augmentation_returns_the_images():
    images = some_images([0, 1]).images
    assert augment(images, "none", torch.Generator()) is images


def test_augment_refuses_what_it_cannot_do():
    generator = torch.Generator()
    with pytest.raises(ValueError, match="augmentation 'cropflip' is unknown: .*did you mean 'crop-flip'"):
        augment(some_images([0]).images, "cropflip", generator)
    with pytest.raises(ValueError, match="takes uint8"):
        augment(torch.zeros(1, 3, 8, 8), "flip", generator)
    with pytest.raises(ValueError, match="images of 4x8 cannot be padded"):
        augment(torch.zeros(1, 3, 4, 8, dtype=torch.uint8), "crop-flip", generator)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)])
def test_standardize_takes_a_batch_of_bytes_and_nothing_else(wrong):
    with pytest.raises(ValueError, match=r"takes a batch of bytes, uint8 \(N, 3, H, W\), not torch\."):
        standardize(wrong)


def test_standardize_has_the_authors_constants():
    images = some_images([0, 1]).images
    x = standardize(images)
    assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
    for channel, (mean, std) in enumerate([(125.3, 63.0), (123.0, 62.1), (113.9, 66.7)]):
        torch.testing.assert_close(x[:, channel], (images[:, channel].float() - mean) / std)
