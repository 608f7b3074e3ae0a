import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from atbook import doctor
from atbook.cli import app


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


def test_data_that_is_here_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("ATBOOK_DATA", str(tmp_path))
    for folder in ("cifar-10-batches-py", "cifar-100-python"):
        (tmp_path / folder).mkdir()
    (tmp_path / "shapes-0-test.safetensors").touch()
    assert found("CIFAR").mend is None and "shapes made" in found("data").found


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


def test_nothing_raises_where_torch_cannot_be_imported(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch is broken')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from atbook import doctor; sys.exit(doctor.main())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr == ""
    assert "cannot be told (ImportError: libtorch is broken)" in result.stdout
