import hashlib
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from atbook import data, doctor
from atbook.cli import app

ROOT = Path(__file__).parents[1]


def found(what: str) -> doctor.Finding:
    (one,) = (finding for finding in doctor.examine() if finding.what == what)
    return one


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the doctor asked the network"))


def test_one_screen_and_exit_code_0_where_the_book_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ATBOOK_DATA", str(tmp_path))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) <= 24
    for words in ("Python", "torch", "bfloat16", "threads", f"{tmp_path} (ATBOOK_DATA)", "finished of", "GB at"):
        assert words in result.output
    assert "made on first use" in result.output and "cifar10 not here" in result.output


def test_shapes_are_made_or_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("ATBOOK_DATA", str(tmp_path))
    data._shapes.cache_clear()
    data.load("shapes", "test")
    assert found("data").found.endswith("shapes made") and found("data").mend is None
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "shapes are damaged, and will be made anew" in found("data").found
    data._shapes.cache_clear()


def test_cifar_is_here_if_its_files_are_those_of_its_hashes(tmp_path, monkeypatch):
    monkeypatch.setenv("ATBOOK_DATA", str(tmp_path))
    listed = [("data_batch_1", hashlib.md5(b"one").hexdigest())], [("test_batch", hashlib.md5(b"two").hexdigest())]
    for name in ("CIFAR10", "CIFAR100"):
        fake = SimpleNamespace(base_folder=name, train_list=listed[0], test_list=listed[1])
        monkeypatch.setattr(f"torchvision.datasets.{name}", fake)
        (tmp_path / name).mkdir()
        (tmp_path / name / "data_batch_1").write_bytes(b"one")
    (tmp_path / "CIFAR100" / "test_batch").write_bytes(b"two")
    one = found("CIFAR")
    assert one.found == "cifar10 damaged, cifar100 here" and "atbook train dataset=cifar10" in one.mend
    (tmp_path / "CIFAR10" / "test_batch").write_bytes(b"two")
    assert found("CIFAR") == ("CIFAR", "cifar10 here, cifar100 here", None, False)


@pytest.mark.parametrize("place", ["file", "/proc/nowhere"])
def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, monkeypatch, place):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ATBOOK_DATA", str(tmp_path / place))
    one = found("data")
    assert "cannot be written to" in one.found and one.mend.startswith("export ATBOOK_DATA=") and not one.needed


@pytest.mark.parametrize("name", ["receipt.json", "weights.safetensors"])
def test_damaged_receipts_and_weights_are_told(tmp_path, monkeypatch, name):
    teacher = tmp_path / "book" / "runs" / "shapes" / "teacher"
    shutil.copytree(ROOT / "book" / "runs" / "shapes" / "teacher", teacher)
    monkeypatch.chdir(tmp_path)
    assert found("receipts").found == f"1 finished of 1 in {tmp_path / 'book' / 'runs'}"
    (teacher / name).write_bytes((teacher / name).read_bytes()[:-9])
    one = found("receipts")
    assert "teacher" in one.found and one.mend == f'git -C "{tmp_path}" checkout -- book/runs' and one.needed
    (teacher / name).unlink()
    assert found("receipts").mend == one.mend


def test_a_missing_package_is_named_with_the_command_and_exit_code_1(monkeypatch, capsys):
    version = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name == "papermill" else version(name))
    one = found("packages")
    assert "not installed: papermill" in one.found and "-m pip install -r" in one.mend and one.needed
    assert doctor.main() == 1 and "missing  packages" in capsys.readouterr().out


def test_another_version_is_a_note(monkeypatch):
    version = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: "1.0" if name == "numpy" else version(name))
    one = found("tested versions")
    assert one.found.startswith("numpy 1.0 (tested: ") and one.mend and not one.needed
    assert found("packages").mend is None


def test_without_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr("atbook.runs.__file__", str(tmp_path / "atbook" / "runs.py"))
    monkeypatch.chdir(tmp_path)
    findings = doctor.examine()
    assert not doctor.can_run(findings) and "clone of the repository" in found("receipts").mend
    assert "nothing to compare" in found("tested versions").found


def test_other_missing_things_are_notes(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**8))
    assert found("browser").mend == "apt install chromium" and found("free disk").mend.startswith("make room")
    assert doctor.can_run([found("browser"), found("free disk")])


def test_the_command_itself_says_so_where_it_lacks_a_package():
    code = "import sys; sys.modules['yaml'] = None; from atbook.__main__ import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr and "yaml" in result.stderr
    assert "tested versions" in result.stdout


def test_nothing_raises_where_torch_cannot_be_imported(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch is broken')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from atbook import doctor; sys.exit(doctor.main())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr == ""
    assert "cannot be told (ImportError: libtorch is broken)" in result.stdout
