"""Records the demonstrations of `atbook.demos`, on one thread: each arm with seeds 0 to 4, the pictures of seed 0.

    python book/_tools/demos.py [NAME ...]

Without a name, all of them. What was recorded by the present code is left alone, so the same command goes on where an
earlier one stopped.
"""

import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from safetensors.torch import save

import atbook.demos
from atbook.names import choose
from atbook.runs import code_hash, provenance, write

OUT = Path(__file__).parents[1] / "runs" / "demos"
FOLDER = Path(atbook.demos.__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "toy")))
SEEDS = range(5)


def files(name: str) -> tuple[str, ...]:
    """The modules that a demonstration's result depends on: toy, itself, and what it names in ``USES``.

    One that names nothing shows the mechanism of its own name.
    """
    demo = importlib.import_module(f"atbook.demos.{name}")
    return ("demos/toy", f"demos/{name}", *getattr(demo, "USES", (f"mechanisms/{name}",)))


def record(name: str, out: Path = OUT, seeds: Sequence[int] = SEEDS, **options: int) -> None:
    """Run one demonstration and write ``NAME.json`` and ``NAME.safetensors``, whole or not at all."""
    demo = importlib.import_module(f"atbook.demos.{name}")
    code = code_hash(files(name))
    path = out / f"{name}.json"
    if path.exists() and json.loads(path.read_text())["code"] == code:
        return
    scores, seconds, pictures = {}, {}, {}
    for arm in demo.ARMS:
        start, found = time.perf_counter(), [demo.run(arm, seed, **options) for seed in seeds]
        seconds[arm] = round((time.perf_counter() - start) / len(seeds), 1)
        scores[arm] = [round(score, 2) for score, _ in found]
        pictures |= {f"{arm}/{key}": tensor.contiguous() for key, tensor in found[0][1].items()}
        print(f"{name}, {arm}: {fmean(scores[arm]):.1f} ({min(scores[arm]):.1f} to {max(scores[arm]):.1f})", flush=True)
    about = provenance(torch.device("cpu"), compiled=False) | {"code": code}
    write(out / f"{name}.safetensors", save(pictures))
    fields = {"code": code, "chance": demo.CHANCE, "seeds": list(seeds), "scores": scores, "seconds": seconds}
    write(path, (json.dumps(fields | {"provenance": about}, indent=1) + "\n").encode())


def main(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    for name in [choose("demonstration", name, NAMES) for name in names] or NAMES:
        record(name)


if __name__ == "__main__":
    main(sys.argv[1:])
