"""Where the runs of a sweep are done: in processes of this machine, or on the machines of a Ray cluster.

Both do the same: `attempt` trains one run under a lock, and `dispatch` hands the runs out until all have ended.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Protocol, Self

from filelock import FileLock, Timeout

from atbook.jobs import Job
from atbook.runs import write

BUSY = "busy"
RESTARTS = 3  # of a run whose worker dies
LOCKED = 1.0  # seconds that a worker waits for a run which another process trains, before it turns to another
REFRESH = 1.0  # seconds between two looks at the receipts


class Engine(Protocol):
    """Takes a run and promises its end; ``room`` is how many it takes at once, ``restarts`` how often one more time."""

    room: int
    restarts: int

    def submit(self, job: Job) -> Future: ...


def finish(jobs: Sequence[Job], engine: Engine, notify: Callable[..., None]) -> dict[Job, str]:
    """Do what is not finished yet; see `dispatch`.

    Raises:
        OSError: if the folder of the sweep cannot be written to.
    """
    for folder in {_lock(job).parent for job in jobs}:
        write(folder / "README", b"While a run is trained, its file here is locked.\n")
    return dispatch([job for job in jobs if job.state().status != "finished"], engine, notify)


def attempt(job: Job) -> str:
    """Bring one run to its end, unless it is finished or in other hands. The lock dies with its process.

    Returns:
        Nothing where the run is finished, else ``busy`` or the reason why it failed.
    """
    try:
        with FileLock(_lock(job), timeout=LOCKED):
            if job.state().status != "finished":
                job.go()
    except Timeout:
        return BUSY
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _lock(job: Job) -> Path:
    return job.folder.parent / ".locks" / job.folder.name


def dispatch(jobs: Sequence[Job], engine: Engine, notify: Callable[..., None]) -> dict[Job, str]:
    """Hand out runs until all have ended; one whose worker died is started again and goes on from its last epoch.

    Args:
        notify: called with the runs in hand, and with the one that has ended and its failure, if any, or None.

    Returns:
        The reason of each run that failed.
    """
    waiting, ended, deaths = deque(jobs), SimpleQueue(), Counter()
    flying: dict[Future, Job] = {}
    failed: dict[Job, str] = {}
    while waiting or flying:
        while waiting and len(flying) < engine.room:
            future = engine.submit(waiting[0])
            flying[future] = waiting.popleft()
            future.add_done_callback(ended.put)
        try:
            future = ended.get(timeout=REFRESH)
        except Empty:
            notify(flying.values())
            continue
        job, reason = flying.pop(future), _outcome(future)
        if reason is None and deaths[job] < engine.restarts:
            deaths[job] += 1
            waiting.appendleft(job)
        elif reason == BUSY:
            waiting.append(job)
        else:
            reason = f"its worker died: {future.exception()}" if reason is None else reason
            failed |= {job: reason} if reason else {}
            notify(flying.values(), job, reason)
    return failed


def _outcome(future: Future) -> str | None:
    """What `attempt` said; None if it could not, for its process is gone."""
    return None if future.exception() else future.result()


class Local:
    """Processes of this machine. Each is kept for many runs, since importing torch takes seconds.

    Every process has a pool of its own: in a shared one the death of one process would end all.
    """

    restarts = RESTARTS

    def __init__(self, workers: int) -> None:
        self.room = workers
        self.ours, self.theirs = multiprocessing.get_context("spawn").Pipe()
        self.idle = [self._pool() for _ in range(workers)]

    def _pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # CUDA and OpenMP do not survive a fork
        return ProcessPoolExecutor(1, context, _begin, (self.theirs,))

    def submit(self, job: Job) -> Future:
        pool = self.idle.pop()
        try:
            future = pool.submit(attempt, job)
        except BrokenExecutor:
            pool = self._pool()
            future = pool.submit(attempt, job)
        future.add_done_callback(lambda _: self.idle.append(pool))
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type | None, *rest: object) -> None:
        if error:
            self.ours.close()  # the processes end at once; their runs can be resumed
        for pool in self.idle:
            pool.shutdown()


def _begin(parent: Connection) -> None:
    """In a new process: one thread, deaf to Ctrl-C, gone when the sweep is, however that ended."""
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: Connection) -> None:
    parent.poll(None)  # nothing is ever sent: this ends when the other side is closed
    os._exit(1)


class Ray:
    """The machines of a Ray cluster, which see the same folders and have the same package.

    Ray gives each run one core and a part of a GPU, and starts it again elsewhere when its machine is lost.
    """

    room, restarts = sys.maxsize, 0  # the cluster queues and restarts

    def __init__(self, address: str | None, gpus: float) -> None:
        try:
            import ray
        except ImportError:
            mend = "pip install -e '.[ray]' in the book's folder"
            raise ValueError(f"the engine 'ray' is not installed: {mend}") from None
        self.ray = ray
        address = address or os.environ.get("RAY_ADDRESS")
        try:
            _knock(address or "")
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except (OSError, OverflowError, ValueError, RuntimeError) as error:
            mend = "start one with ray start --head; if it has a token, set RAY_AUTH_MODE=token"
            why = f"no Ray cluster at {address!r} ({str(error).splitlines()[0]}): {mend}"
            raise ValueError(why) from None
        if (there := ray.cluster_resources().get("GPU", 0)) < gpus:  # more may come, if the cluster grows by itself
            print(f"atbook: a run takes {gpus:g} GPUs, the cluster has {there:g}: all wait for more", file=sys.stderr)
        self.task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RESTARTS)(attempt)

    def submit(self, job: Job) -> Future:
        return self.task.remote(job).future()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *rest: object) -> None:
        self.ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError or OverflowError if nothing answers at HOST:PORT: Ray itself would go on trying for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
