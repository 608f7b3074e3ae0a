"""Any command, killed at random moments or just before a chosen change of a file, and what must hold afterwards."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

LONG = os.environ.get("ATBOOK_FAULTS") == "long"  # set by `make test-faults`; `make test` tries less of everything
DIE = Path(__file__).parent / "die"


class Job(NamedTuple):
    """A command that goes on where it was stopped, and what can be seen of it."""

    command: list[str]
    folder: Path  # everything that it writes
    progress: Callable[[], int]  # how much is done; raises if what is there cannot be read
    result: Callable[[], object]  # what must not depend on any kill


def start(job: Job, **environment: str) -> subprocess.Popen:
    """The command, in a process group of its own."""
    return subprocess.Popen(
        job.command,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(job: Job) -> float:
    """Run the command to its end; how many seconds that took."""
    begin, process = time.monotonic(), start(job)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said[-3000:]
    return time.monotonic() - begin


def kill_after(job: Job, seconds: float, whole: bool = True) -> bool:
    """Kill -9 the command after so many seconds; False if it had ended by itself before. See `kill`."""
    process = start(job)
    try:
        _, said = process.communicate(timeout=seconds)
        assert process.returncode == 0, said[-3000:]
        return False
    except subprocess.TimeoutExpired:
        kill(process, whole)
        return True


def kill(process: subprocess.Popen, whole: bool) -> None:
    """Kill -9 a process; if ``whole``, all that it started too, as when a machine dies. Else that ends by itself."""
    os.kill(process.pid, signal.SIGSTOP)  # so that it starts nothing between the look and the end
    parent = psutil.Process(process.pid)
    started = parent.children(recursive=True)
    for one in [parent, *started] if whole else [parent]:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate(timeout=60)
    assert not psutil.wait_procs(started, 60)[1], "something outlives the process that started it"


def kill_before_change(job: Job, number: int) -> bool:
    """Kill -9 the command just before its so-manieth change of a file in its folder; False if it made fewer.

    What it started ends by itself, and with it the command's output.
    """
    path = os.pathsep.join(filter(None, [str(DIE), os.environ.get("PYTHONPATH")]))
    process = start(job, PYTHONPATH=path, DIE_AT=str(number), DIE_BELOW=str(job.folder))
    _, said = process.communicate(timeout=600)
    assert process.returncode in (0, -signal.SIGKILL), said[-3000:]
    return process.returncode != 0


def kill_until_done(job: Job, generator: random.Random, seconds: float) -> int:
    """Start the command again and again until it ends, each time killed at a random moment; how many kills.

    The moments lie between 0.2 and 0.8 of the ``seconds`` that the whole takes, which covers all of what is left the
    second time. Half of the kills are of the command alone, half of all that it started too.
    """
    kills, done = 0, 0
    while kill_after(job, generator.uniform(0.2, 0.8) * seconds, generator.random() < 0.5):
        kills, before, done = kills + 1, done, job.progress()
        assert done >= before, "more was lost than what was in hand"
        seconds *= 1.1  # so that it ends, however slow the machine has become
    return kills
