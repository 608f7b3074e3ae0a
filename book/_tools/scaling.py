"""How far a sweep scales, for chapter 13: ``python book/_tools/scaling.py``. Prints the figures and keeps them.

Three measurements, each through the scheduler that `atbook sweep` uses, locks and receipts included:

1. simulated: 1 to 256 workers that sleep instead of training, each with three runs; ideal is the time of three runs
   (five minutes, hardly any of them busy);
2. overhead: what two minutes of work in one process become in a sweep, from the cost of a run that does nothing;
3. measured: four real trainings, by one process and by two that have begun already. Needs two quiet cores.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from record import record

from atbook.engines import Engine, Local, attempt, finish
from atbook.jobs import Job, Training, plan
from atbook.recipes import Recipe
from atbook.runs import MODULES, Run
from atbook.sweep import Sweep

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DATA = {"label": "none", "train": 1, "test": 1, "classes": 10, "fingerprint": ""}


@dataclass(frozen=True, eq=False)
class Sleep(Training):
    """A run that sleeps instead of training, `seconds` in all, and logs when it begins and ends."""

    seconds: float = 1.0

    def go(self) -> None:
        run = self._resumed()
        self._log("start")
        while len(run.history) < self.recipe.epochs:
            time.sleep(self.seconds / self.recipe.epochs)
            run.history.append({"epoch": len(run.history) + 1, "test_error": 10.0 + self.seed, "seconds": 0.0})
            run.status = "running" if len(run.history) < self.recipe.epochs else "finished"
            run.save()
        self._log("end")

    def _resumed(self) -> Run:
        try:
            return Run.load(self.folder)
        except FileNotFoundError:
            return Run(folder=self.folder, key="", recipe=self.recipe, data=DATA, provenance={})

    def _log(self, what: str) -> None:
        with (self.folder.parent / "log.txt").open("a") as file:
            file.write(f"{what} {self.folder.name}\n")


def sleeps(out: Path, runs: int, seconds: float, epochs: int = 1) -> list[Sleep]:
    """So many runs that sleep."""
    recipe = Recipe(epochs=epochs)
    return [Sleep(out / f"sleep-{i}", {}, i, recipe, None, None, seconds) for i in range(runs)]


class Threads:
    """An engine of threads: enough for runs that sleep."""

    restarts = 0

    def __init__(self, workers: int) -> None:
        self.room, self.pool = workers, ThreadPoolExecutor(workers)

    def submit(self, job: Job) -> Future:
        return self.pool.submit(attempt, job)


def seconds_of(jobs: list[Job], engine: Engine) -> float:
    start = time.monotonic()
    assert not finish(jobs, engine, lambda *_: None)
    return time.monotonic() - start


def simulated(seconds: float = 10.0, each: int = 3) -> list[dict[str, float]]:
    """Weak scaling: each worker has the same number of runs, however many workers there are."""
    rows = []
    for workers in WORKERS:
        with tempfile.TemporaryDirectory() as folder:
            took = seconds_of(sleeps(Path(folder), each * workers, seconds), Threads(workers))
        rows.append({"workers": workers, "runs": each * workers, "seconds": took, "efficiency": each * seconds / took})
    return rows


def overhead(runs: int = 20, minutes: float = 2.0) -> dict[str, float]:
    """Seconds that one worker process needs to begin, and for each run that does nothing, beside `minutes` of work."""
    with tempfile.TemporaryDirectory() as folder, Local(1) as engine:
        begin = seconds_of(sleeps(Path(folder) / "first", 1, 0.0), engine)
        each = seconds_of(sleeps(Path(folder) / "rest", runs, 0.0), engine) / runs
    part = {f"of {n} runs, %": 100 * (begin + n * each) / (n * 60 * minutes) for n in (1, 5, 20)}
    return {"begin, seconds": begin, "run, seconds": each, "minutes": minutes} | part


def measured(runs: int = 4, epochs: int = 9, images: int = 2000) -> list[dict[str, float]]:
    """Real trainings by one and by two processes, without the seconds in which these begin."""
    recipes = [Recipe(student="wrn-16-1", train_images=images, epochs=epochs, seed=seed) for seed in range(runs)]
    sweep = Sweep([{}], list(range(runs)), recipes)
    rows = []
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder, Local(workers) as engine:
            seconds_of(sleeps(Path(folder) / "first", workers, 1.0), engine)
            rows.append({"workers": workers, "runs": runs, "seconds": seconds_of(plan(sweep, folder), engine)})
            rows[-1]["times one"] = rows[0]["seconds"] / rows[-1]["seconds"]
    return rows


def main(arguments: list[str]) -> int:
    parts: dict[str, Callable[[], object]] = {"simulated": simulated, "overhead": overhead, "measured": measured}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *parts], default=[], help="which; all if none is named")
    for name in parser.parse_args(arguments).parts or parts:
        value = parts[name]()
        print(name, *(value if isinstance(value, list) else [value]), sep="\n  ")
        record(f"sweep {name}", value, (*MODULES, "engines", "jobs", "sweep"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
