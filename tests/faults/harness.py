"""Any command, killed at random moments or just before a chosen change of a file, and what must hold afterwards."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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


def kill_after(job: Job, seconds: float) -> bool:
    """Kill -9 the command and all that it started after so many seconds; False if it had ended by itself before."""
    process = start(job)
    try:
        _, said = process.communicate(timeout=seconds)
        assert process.returncode == 0, said[-3000:]
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True


def kill_before_change(job: Job, number: int) -> bool:
    """Kill -9 the command just before its so-manieth change of a file in its folder; False if it made fewer."""
    path = os.pathsep.join(filter(None, [str(DIE), os.environ.get("PYTHONPATH")]))
    process = start(job, PYTHONPATH=path, DIE_AT=str(number), DIE_BELOW=str(job.folder))
    _, said = process.communicate(timeout=600)
    assert process.returncode in (0, -signal.SIGKILL), said[-3000:]
    return process.returncode != 0


def kill_until_done(job: Job, generator: random.Random, seconds: float) -> int:
    """Start the command again and again until it ends, each time killed at a random moment; how many kills.

    The moments lie between 0.4 and 1.0 of the ``seconds`` that it takes: before, Python is still loading.
    """
    kills, done = 0, 0
    while kill_after(job, generator.uniform(0.4, 1.0) * seconds):
        kills, before, done = kills + 1, done, job.progress()
        assert done >= before, "more was lost than what was in hand"
        seconds *= 1.1  # so that it ends, however slow the machine has become
    return kills
