"""``atbook doctor``: what is installed and found here, what is missing, and the command that mends it.

``python -m atbook.doctor`` does the same where not even the command line's own packages are installed.
"""

import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from atbook import __version__

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NEEDED = ("atbook", "chapters")  # parts of requirements.txt without which no chapter runs


class Finding(NamedTuple):
    """One line: what was looked at, what was found, how to mend it (None: all is well), whether the book needs it."""

    what: str
    found: str
    mend: str | None = None
    needed: bool = False


def examine() -> list[Finding]:
    """Look at everything, quickly and without network. Nothing is raised: what cannot be told is said to be so."""
    looks = python, packages, pins, device, kernel, shapes, cifar, receipts, disk, browser
    return [_safely(look) for look in looks]


def can_run(findings: list[Finding]) -> bool:
    """Whether nothing is wrong that a chapter needs."""
    return not any(finding.mend and finding.needed for finding in findings)


def lines(findings: list[Finding]) -> str:
    """The findings as text: a mark, what, what was found, and below it the command that mends it."""
    width = max(len(finding.what) for finding in findings)
    marks = {(True, True): "missing", (True, False): "note"}
    shown = []
    for what, found, mend, needed in findings:
        mark = marks.get((mend is not None, needed), "ok")
        shown.append(f"{mark:<7}  {what:<{width}}  {found}")
        if mend:
            shown.append(f"{'':<9}{'':<{width}}  mend it: {mend}")
    return "\n".join(shown)


def _safely(look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except Exception as error:  # a broken installation is what this is for
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return Finding(look.__name__, f"cannot be told ({what})", _install(), look in (packages, device, receipts))


def _install() -> str:
    if (ROOT / "requirements.txt").exists():
        return f'{sys.executable} -m pip install -r "{ROOT / "requirements.txt"}"'
    return f"{sys.executable} -m pip install --upgrade atbook"


def _pinned() -> dict[str, tuple[str, str]]:
    """Package to its pin and the part of requirements.txt that it stands in; empty without the repository."""
    path, part, found = ROOT / "requirements.txt", "", {}
    for line in path.read_text().splitlines() if path.exists() else []:
        if heading := re.fullmatch(r"# (\w+)", line):
            part = heading[1]
        elif pin := re.match(r"([\w.-]+)==(\S+)", line):
            found[pin[1]] = pin[2], part
    return found


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def python() -> Finding:
    found = f"{platform.python_version()} at {sys.executable}"
    mend = None if sys.version_info >= (3, 11) else "install Python 3.11 or newer, then: make install PYTHON=python3.11"
    return Finding("Python", found, mend, needed=True)


def packages() -> Finding:
    """What cannot run without: atbook itself, torch, and the other packages of the chapters."""
    missing = [name for name, (_, part) in _pinned().items() if part in NEEDED and _installed(name) is None]
    missing += [name for name in ("torch", "torchvision") if _installed(name) is None and name not in missing]
    found = f"atbook {__version__}, torch {_installed('torch')}, torchvision {_installed('torchvision')}"
    if not missing:
        return Finding("packages", found, needed=True)
    return Finding("packages", f"{found}; not installed: {', '.join(missing)}", _install(), needed=True)


def pins() -> Finding:
    pinned = _pinned()
    if not pinned:
        return Finding("tested versions", "the book's requirements.txt is not here, nothing to compare with")
    held = {name: _installed(name) for name in pinned}
    other = [
        f"{name} {held[name] or 'not installed'} (tested: {pin})"
        for name, (pin, _) in pinned.items()
        if (held[name] or "").partition("+")[0] != pin
    ]
    return Finding("tested versions", ", ".join(other) or f"all {len(pinned)} as tested", _install() if other else None)


def device() -> Finding:
    import torch

    if torch.cuda.is_available():
        fast = "fast" if torch.cuda.is_bf16_supported(including_emulation=False) else "not supported"
        found = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, bfloat16 {fast}"
    else:
        found = f"CPU ({os.cpu_count()} cores), no GPU that torch can use, bfloat16 {_bfloat16()}"
    return Finding("device", f"{found}, threads {torch.get_num_threads()}", needed=True)


def _bfloat16() -> str:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "works"
    return "fast" if re.search(r"amx_bf16|avx512_bf16|\bbf16\b", flags) else "works, but is not faster"


def kernel() -> Finding:
    from jupyter_client.kernelspec import KernelSpecManager

    found = KernelSpecManager().find_kernel_specs().get("python3")
    mend = None if found else f"{sys.executable} -m ipykernel install --sys-prefix"
    return Finding("Jupyter kernel", f"python3 at {found}" if found else "no kernel python3", mend, needed=True)


def _cache() -> Path:
    from atbook.data import cache_folder

    return cache_folder()


def shapes() -> Finding:
    from atbook.data import _read

    cache, said = _cache(), "ATBOOK_DATA" if os.environ.get("ATBOOK_DATA") else "default"
    try:
        tempfile.TemporaryFile(dir=_existing(cache)).close()
    except OSError as error:
        found = f"{cache} ({said}) cannot be written to ({error.strerror}): shapes are made anew each time, no CIFAR"
        return Finding("data", found, "export ATBOOK_DATA=FOLDER, one of your own")
    made = sorted(cache.glob("shapes-*.safetensors"))
    try:
        state = "made" if [_read(path) for path in made] else "are made on first use, in seconds"
    except Exception:
        state = "are damaged, and will be made anew on their next use"
    return Finding("data", f"{cache} ({said}): shapes {state}")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def cifar() -> Finding:
    from atbook.compat import torchvision

    sets = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}
    states = {name: _state(dataset, _cache()) for name, dataset in sets.items()}
    found = ", ".join(f"{name} {state}" for name, state in states.items())
    wanted = [name for name, state in states.items() if state != "here"]
    mend = f"only where it is wanted: atbook train dataset={wanted[0]} downloads it" if wanted else None
    return Finding("CIFAR", found, mend)


def _state(dataset: type, root: Path) -> str:
    """Whether the unpacked files are there, and those of torchvision's hashes: a second for the real ones."""
    folder = root / dataset.base_folder
    if not folder.is_dir():
        return "not here"
    listed = [*dataset.train_list, *dataset.test_list]
    sound = all((folder / f).is_file() and hashlib.md5((folder / f).read_bytes()).hexdigest() == h for f, h in listed)
    return "here" if sound else "damaged"


def receipts() -> Finding:
    from atbook.runs import Run, book_runs, load_runs

    try:
        folder = book_runs()
    except FileNotFoundError as error:
        return Finding("receipts", str(error), "run this inside a clone of the repository", needed=True)
    try:
        found = load_runs(folder)
        Run.load(folder / "shapes" / "teacher").model()  # chapters are taught by it
    except (ValueError, OSError) as error:
        return Finding("receipts", str(error), f'git -C "{folder.parents[1]}" checkout -- book/runs', needed=True)
    finished = sum(run.status == "finished" for run in found)
    return Finding("receipts", f"{finished} finished of {len(found)} in {folder}", needed=True)


def disk() -> Finding:
    place = _existing(_cache())
    free = shutil.disk_usage(place).free / 1e9
    return Finding("free disk", f"{free:.1f} GB at {place}", None if free > 1 else "make room, or set ATBOOK_DATA")


def browser() -> Finding:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    return Finding("browser", path or "none; the site's tests are skipped", None if path else "apt install chromium")


def main() -> int:
    """Print the findings; returns 0 if the book can run, else 1."""
    findings = examine()
    print(lines(findings))
    return 0 if can_run(findings) else 1


if __name__ == "__main__":
    sys.exit(main())
