"""Nothing that is read can run code, leave its folder or reach a shell; nothing is fetched without its hash.

How downloads with wrong bytes are refused: `test_data.test_wrong_content_is_refused_and_not_left_behind` and its
neighbours, against a server that sends them.
"""

import ast
import io
import pickle
import tarfile
from pathlib import Path

import nbformat
import pytest
import torch
from campaign import images, main
from test_data import archive, own_cache, server  # noqa: F401 (fixtures)
from test_train import SMALL, small_data, stop_after  # noqa: F401 (the fixture replaces the images)

from atbook import data
from atbook import train as training
from atbook.data import load
from atbook.recipes import Recipe
from atbook.runs import Run, hashlib
from atbook.train import train

ROOT = Path(__file__).parents[1]

# What can run code that it reads, by the end of the call's name; and the keyword with which it is harmless.
CODE = {
    "pickle.load", "pickle.loads", "Unpickler", "read_pickle", "joblib.load", "dill.load", "dill.loads", "shelve.open",
    "cloudpickle.load", "cloudpickle.loads", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "hub.load",
    "load_state_dict_from_url", "eval", "exec",
}  # fmt: skip
SHELL = {"os.system", "os.popen", "getoutput", "getstatusoutput", "create_subprocess_shell", "pty.spawn"}
FETCH = {"urlopen", "urlretrieve", "requests.get", "requests.post", "download_url", "download_url_to_file"}
EXTRACT = {"extractall": ("filter", "data"), "extract": ("filter", "data")}
ONLY_WITH = EXTRACT | {"torch.load": ("weights_only", True)}
NEVER_WITH = {"shell": True, "allow_pickle": True}


def complaints(source):
    """What in a source text is not allowed, each as ``line: call``."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        ends = {name, name.rpartition(".")[2], ".".join(name.split(".")[-2:])}
        given = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
        bad = bool(ends & (CODE | SHELL | FETCH)) and name not in ("model.eval",) and not name.endswith(".eval")
        bad |= any(given.get(word) != value for end, (word, value) in ONLY_WITH.items() if end in ends)
        bad |= any(k.arg in NEVER_WITH and given.get(k.arg, True) is not False for k in call.keywords)
        bad |= "pooch.retrieve" in ends and (len(call.args) < 2 or ast.unparse(call.args[1]) == "None")
        if bad:
            found.append(f"{call.lineno}: {name}")
    return found


# Requests' only call sends what it gets to pooch, which compares the hash; yaml's loader is a SafeLoader.
ALLOWED = {"atbook/data.py": ["requests.get"], "atbook/sweep.py": ["yaml.load"]}


@pytest.mark.parametrize("folder", ["atbook", "book"])
def test_no_source_reads_code_calls_a_shell_or_fetches_unchecked(folder):
    seen = 0
    for path in sorted((ROOT / folder).rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".py":
            sources = [path.read_text()]
        elif path.suffix == ".ipynb" and ".ipynb_checkpoints" not in name:
            cells = nbformat.read(path, 4).cells
            sources = ["".join(cell.source) for cell in cells if cell.cell_type == "code"]
            sources = [s for s in sources if not s.startswith("%%")]
        else:
            continue
        found = [what for source in sources for what in complaints(source)]
        assert [what.split(": ")[1] for what in found] == ALLOWED.get(name, []), f"{name}: {found}"
        seen += 1
    assert seen > 5


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)", "torch.load(path, weights_only=False)", "pickle.load(file)", "yaml.load(text, Loader=L)",
        "np.load(path, allow_pickle=True)", "np.load(path, allow_pickle=choice)", "subprocess.run(name, shell=True)",
        "os.system(name)", "tar.extractall(folder)", "tar.extractall(folder, filter='tar')", "urlopen(url)",
        "eval(text)", "joblib.load(path)", "pooch.retrieve(url, None)", "torch.hub.load(name, 'net')",
        "pd.read_pickle(path)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(line):
    assert complaints(line)


def test_the_search_lets_the_harmless_pass():
    assert not complaints(
        "torch.load(p, weights_only=True); yaml.safe_load(t); model.eval(); tar.extractall(f, filter='data')\n"
        "subprocess.run([name], shell=False); pooch.retrieve(url, 'md5:1'); json.load(f); Run.load(f); load('shapes')"
    )


class Payload:
    """Unpickled it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """A file that must not appear; here is shown that it would."""
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()
    mark.unlink()
    yield mark
    assert not mark.exists(), "code out of a file was run"


def test_a_pickle_in_an_archive_of_another_hash_is_not_loaded(mark, archive, server, own_cache):  # noqa: F811
    own_cache.mkdir()
    content = pickle.dumps(Payload(mark))
    with tarfile.open(own_cache / archive.name, "w:gz") as tar:
        for name in ("data_batch_1", "data_batch_2", "test_batch", "batches.meta"):
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    server.body = (own_cache / archive.name).read_bytes()  # the mirror's is as bad
    with pytest.raises(ConnectionError, match="wrong md5"):
        load("cifar10", "train")


def test_a_pickle_beside_an_unpacked_archive_is_not_loaded(mark, archive, server, own_cache):  # noqa: F811
    server.body = archive.read_bytes()
    load("cifar10", "test")
    for name in ("test_batch", "batches.meta"):
        data._cifar.cache_clear()
        (own_cache / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Payload(mark)))
        assert len(load("cifar10", "test")) == 40  # unpacked anew


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_in_the_place_of_weights_is_not_loaded(mark, tmp_path, monkeypatch, own_cache, form):  # noqa: F811
    content = io.BytesIO()
    (pickle.dump if form == "pickle" else lambda it, file: torch.save(it, file))(Payload(mark), content)
    run = train(Recipe(**SMALL | {"epochs": 1}), tmp_path / "run", progress=False)
    (run.folder / "weights.safetensors").write_bytes(content.getvalue())
    with pytest.raises(ValueError, match="does not match its receipt"):
        run.model()
    run.weights = hashlib.sha256(content.getvalue()).hexdigest()  # even if the receipt says so
    with pytest.raises(Exception, match="header"):
        run.model()
    with monkeypatch.context() as patch, pytest.raises(stop_after(patch, 1)):
        train(Recipe(**SMALL), tmp_path / "stopped", progress=False)
    (tmp_path / "stopped" / "checkpoint.safetensors").write_bytes(content.getvalue())
    with pytest.raises(ValueError, match="cannot be used"):
        train(Recipe(**SMALL), tmp_path / "stopped", progress=False)
    load("shapes", "test")
    (path,) = own_cache.iterdir()
    data._shapes.cache_clear()
    path.write_bytes(content.getvalue())
    assert len(load("shapes", "test")) == 2000  # made anew


def special(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.devmajor, member.devminor = kind, target, 1, 3
    return member


HOSTILE = {
    "parent": [tarfile.TarInfo("cifar/../../../../escaped")],
    "absolute": [tarfile.TarInfo("ABSOLUTE")],
    "symlink": [special("cifar/link", tarfile.SYMTYPE, ".."), tarfile.TarInfo("cifar/link/../escaped")],
    "symlink out": [special("cifar/link", tarfile.SYMTYPE, "/"), tarfile.TarInfo("cifar/link/escaped")],
    "hard link": [special("cifar/link", tarfile.LNKTYPE, "../../secret")],
    "device": [special("cifar/null", tarfile.CHRTYPE)],
    "pipe": [special("cifar/pipe", tarfile.FIFOTYPE)],
}


@pytest.fixture(params=HOSTILE)
def hostile(request, tmp_path):
    """A tar file that means harm, in a folder whose other content must stay as it is."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "outer" / "secret").write_text("secret")
    path = inner / "hostile.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(special("cifar", tarfile.DIRTYPE))
        for member in HOSTILE[request.param]:
            member.name = member.name.replace("ABSOLUTE", str(tmp_path / "outer" / "escaped"))
            content = b"" if member.type != tarfile.REGTYPE else b"harm"
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    yield path
    outside = [p for p in (tmp_path / "outer").rglob("*") if inner not in p.parents and p != inner]
    assert [p.name for p in outside] == ["secret"] and not any(tmp_path.glob("escaped"))
    for made in inner.rglob("*"):
        assert not made.is_symlink() and not made.is_char_device() and not made.is_fifo(), made
        assert not made.is_file() or made.stat().st_nlink == 1, made


def test_archives_do_not_leave_their_folder(hostile):
    """The filter refuses them; of an absolute name the slash is dropped, so that it lies within."""
    folder = hostile.parent / "cifar"
    try:
        data._unpack(hostile, folder)
    except tarfile.FilterError:
        assert not folder.exists()


def test_archives_of_images_do_not_leave_their_folder(hostile, capsys):
    try:
        root = images(hostile, hostile.parent / "runs")
        assert root.parent == hostile.parent
    except tarfile.FilterError:
        with pytest.raises(SystemExit):
            main([str(hostile), str(hostile.parent / "runs")])
        assert "error: " in capsys.readouterr().err.splitlines()[-1]


NAMES = [
    "$(touch mark)",
    "`touch mark`",
    "x; touch mark",
    "x | touch mark",
    "x & touch mark",
    "x' ; touch mark #",
    "-rf",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_do_not_reach_a_shell(tmp_path, monkeypatch, name):
    """As a folder a hostile name is a name; as a field of a recipe it is refused."""
    monkeypatch.chdir(tmp_path)
    run = train(Recipe(**SMALL | {"epochs": 1}), name, progress=False)
    assert Run.load(name).weights == run.weights and [p.name for p in tmp_path.iterdir()] == [name]
    for field in ("student", "dataset", "method", "schedule", "augment", "mapping", "form", "precision", "teacher"):
        with pytest.raises(ValueError, match="is unknown|is not possible|uses none"):
            Recipe(**{field: name})
    with pytest.raises(FileNotFoundError, match="no run in"):
        train(Recipe(method="at"), "out", teacher=f"teacher {name}", progress=False)
    assert not (tmp_path / "mark").exists()


def test_provenance_calls_git_without_a_shell(monkeypatch):
    seen = []
    monkeypatch.setattr(training.runs.subprocess, "run", lambda command, **how: seen.append((command, how)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training.runs._git_commit()
    assert isinstance(seen[0][0], list) and not seen[0][1].get("shell")
