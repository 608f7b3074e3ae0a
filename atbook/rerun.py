"""A chapter run again with other parameters: checked before a kernel starts, recorded whatever happens, resumable.

``OUT/rerun.json`` is the record, ``OUT/NN-name.ipynb`` and ``.html`` the executed chapter, ``OUT/runs`` the receipts of
what it trained (where the chapter has a parameter ``out``), ``OUT/.lock`` what its process holds as long as it lives.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atbook.parameters import checked, find

__all__ = ["Record", "rerun"]

FILE, LOCK, PARTIAL = "rerun.json", ".lock", "partial.ipynb"


class Record(BaseModel):
    """One rerun, as its folder tells it.

    Attributes:
        folder: where it lies; not part of the file.
        chapter: name of the notebook; ``source`` is the hash of its code.
        parameters: all of them, typed.
        key: hash of source, parameters, the package's code and the version of torch: what makes a rerun the same.
        status: ``running``, ``finished`` or ``failed``; ``killed`` is never written: it is a ``running`` one whose
            process is gone. ``reason`` says why it failed.
        started, ended: in UTC, ISO 8601. ``seconds`` is measured by a clock that never goes back.
        environment: by which code, libraries and machine, as in a receipt.
    """

    model_config = ConfigDict(extra="forbid")

    folder: Path = Field(exclude=True)
    chapter: str
    source: str
    parameters: dict[str, object]
    key: str
    status: Literal["running", "finished", "failed", "killed"] = "running"
    reason: str | None = None
    started: str
    ended: str | None = None
    seconds: float | None = None
    environment: dict[str, str | int | bool | None]

    @classmethod
    def load(cls, out: str | Path) -> Self:
        """Read the record in a folder.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged.
        """
        path = Path(out) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"no rerun in {str(out)!r} (no {FILE}): give a folder that atbook rerun wrote")
        held = _is_held(path.parent)  # asked first: who ends in between has written its last word
        try:
            record = cls(folder=path.parent, **json.loads(path.read_text(encoding="utf-8")))
        except (ValidationError, ValueError, TypeError) as error:
            what = str(error).splitlines()[0]
            raise ValueError(f"record {str(path)!r} is damaged ({what}): remove its folder and rerun") from None
        if record.status == "running" and not held:
            record.status, record.reason = "killed", "its process ended before it was done"
        return record

    def save(self) -> None:
        """Write the record, whole or not at all."""
        from atbook.runs import write

        write(self.folder / FILE, (self.model_dump_json(indent=1) + "\n").encode())


def rerun(
    chapter: str | Path,
    values: Mapping[str, object],
    out: str | Path,
    resume: bool = False,
    progress: bool = True,
) -> Record:
    """Run a chapter with other parameters, in a kernel of its own; relative paths start at the working folder.

    A finished rerun of the same key is returned at once. Where the chapter has a parameter ``out`` that is empty, its
    trainings go to ``OUT/runs``, so that a resumed rerun goes on from their last finished epoch.

    Args:
        chapter: its number, its name or the path of a notebook.
        values: some of its parameters.
        out: the folder of the results, made if missing.
        resume: run the chapter again in a folder that holds this rerun already, whatever became of it.
        progress: show a bar of the cells, and what the cells write to stderr: the bars of trainings.

    Returns:
        The record, ``finished`` or ``failed``.

    Raises:
        ValueError: if a parameter is unknown or impossible, ``out`` is in use, or holds anything else.
        OSError: if ``out`` cannot be written to.
    """
    from atbook.runs import remove_halves

    notebook, typed, folder = find(chapter), checked(chapter, values), Path(out)
    if _is_foreign(folder):
        raise ValueError(f"{str(out)!r} holds other files and no rerun: choose an empty or a new folder")
    with _held(folder):
        remove_halves(folder, (FILE, f"{notebook.stem}.html"))
        record = _new(notebook, typed, folder)
        if (folder / FILE).exists():
            old = Record.load(folder)
            _refuse_another(old, record)
            if old.status == "finished" and not resume:
                return old
            if not resume:
                status = "killed" if old.status == "running" else old.status
                raise ValueError(f"{str(out)!r} holds this rerun, {status}: say --resume to go on")
        record.save()
        _go(notebook, record, progress)
    return record


def _go(notebook: Path, record: Record, progress: bool) -> None:
    """Execute, and write what came of it."""
    start = time.monotonic()
    values = dict(record.parameters)
    if values.get("out") == "":
        values["out"] = str((record.folder / "runs").resolve())
    try:
        _execute(notebook, values, record.folder, progress)
        record.status = "finished"
    except Exception as error:
        record.status, record.reason = "failed", _reason(error)
    record.ended, record.seconds = _now(), time.monotonic() - start
    record.save()


def _execute(notebook: Path, values: dict[str, object], folder: Path, progress: bool) -> None:
    """Run the notebook; what was executed is kept, as a notebook and as HTML, also when a cell fails."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    partial = folder / PARTIAL
    bars = {"progress_bar": progress, "stderr_file": sys.stderr if progress else None}
    try:
        papermill.execute_notebook(notebook, partial, values, kernel_name="python3", language="python", **bars)
    except (papermill.PapermillExecutionError, DeadKernelError):
        _keep(partial, notebook.name)
        raise
    except OSError:
        partial.unlink(missing_ok=True)  # half-written, where the disk is full
        raise
    cells = json.loads(partial.read_text(encoding="utf-8"))["cells"]
    _keep(partial, notebook.name)
    if any(c["cell_type"] == "code" and c["source"] and c["execution_count"] is None for c in cells):
        raise RuntimeError("the kernel died before the last cell")  # papermill calls such cells completed


def _keep(partial: Path, name: str) -> None:
    from atbook.page import render

    notebook = partial.replace(partial.with_name(name))
    render(notebook, notebook.with_suffix(".html"))


def _reason(error: Exception) -> str:
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError

    if isinstance(error, PapermillExecutionError):
        return f"cell [{error.exec_count}]: {error.ename}: {error.evalue}"
    if isinstance(error, DeadKernelError):
        return "the kernel died: it was killed, or the machine ran out of memory"
    return f"{type(error).__name__}: {error}"


def _new(notebook: Path, typed: dict[str, object], folder: Path) -> Record:
    import torch

    from atbook.runs import provenance

    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    source = hashlib.sha256(json.dumps(code).encode()).hexdigest()[:16]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    environment = {name: value for name, value in provenance(device, False).items() if name != "compiled"}
    parts = [source, typed, environment["code"], environment["torch"]]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    named = {"chapter": notebook.name, "source": source, "parameters": typed, "key": key}
    return Record(folder=folder, **named, started=_now(), environment=environment)


def _refuse_another(old: Record, new: Record) -> None:
    """Raise ValueError, naming the difference, if two records are not of one rerun."""
    if old.key == new.key:
        return
    names = [n for n in {**old.parameters, **new.parameters} if old.parameters.get(n) != new.parameters.get(n)]
    what = [f"{n} {old.parameters.get(n)!r} there, {new.parameters.get(n)!r} now" for n in names]
    if old.chapter != new.chapter:
        what = [f"chapter {old.chapter!r} there, {new.chapter!r} now"]
    elif old.source != new.source:
        what.append("another version of the chapter")
    changed = [name for name in ("code", "torch") if old.environment.get(name) != new.environment[name]]
    what += [f"another version of {dict(code='atbook', torch='torch')[name]}" for name in changed]
    where = str(new.folder)
    raise ValueError(f"{where!r} holds another rerun ({'; '.join(what)}): choose another folder, or remove it")


def _is_foreign(folder: Path) -> bool:
    """Whether there are files that no rerun wrote; one that was killed at once leaves hidden ones."""
    if not folder.is_dir() or (folder / FILE).exists():
        return False
    return any(not path.name.startswith(".") for path in folder.iterdir())


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the system lets go of it when the process ends, however that happens."""
    lock = FileLock(folder / LOCK, timeout=1)  # a reader of the record holds it for a moment
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ValueError(f"{str(folder)!r} is in use by another rerun: wait for it, or choose another folder") from None
    except OSError as error:
        why = f"cannot write into {str(folder)!r} ({error.strerror}): choose another folder"
        raise OSError(error.errno, why) from None
    try:
        yield
    finally:
        lock.release()


def _is_held(folder: Path) -> bool:
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, blocking=False):
            return False
    except OSError:  # Timeout is one too; where the lock may not be touched, its holder has the benefit of the doubt
        return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
