"""Each mechanism of `atbook.mechanisms` on a small task that needs it, beside controls: one file each.

Every file has the same few names. ``CHANCE``: the score of a guess. ``ARMS``: what is compared, the mechanism and its
controls. ``run(arm, seed, steps)``: train it; returns the score in percent on images it has not seen, and the tensors
of a picture. ``python book/_tools/demos.py`` records all of them for five seeds, and `recorded` reads that.
"""

import json

import pandas as pd
from safetensors.torch import load_file
from torch import Tensor

from atbook.names import choose
from atbook.runs import book_runs, change


def recorded(name: str) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """What a demonstration gave when it was recorded.

    Args:
        name: of the file of the demonstration, for example ``"squeeze_excitation"``.

    Returns:
        A table of mean, lowest and highest score, the number of seeds and seconds of one training, a row for each arm;
        and the tensors of the pictures of seed 0, under ``"arm/tensor"``.

    Raises:
        FileNotFoundError: if it has not been recorded.
    """
    record = _record(name)
    scores = pd.DataFrame(record["scores"])
    table = pd.DataFrame({"mean": scores.mean(), "lowest": scores.min(), "highest": scores.max()})
    table = table.assign(seeds=len(scores), seconds=pd.Series(record["seconds"]))
    pictures = load_file(book_runs() / "demos" / f"{name}.safetensors")
    return table, {key: part.float() if part.is_floating_point() else part for key, part in pictures.items()}


def against(name: str, baseline: str) -> pd.DataFrame:
    """Differences in score to one arm, seed by seed: their mean and its 95 percent t-interval, for each other arm.

    Raises:
        FileNotFoundError: if the demonstration has not been recorded.
        ValueError: if it has no such arm.
    """
    scores = _record(name)["scores"]
    plain = scores[choose("arm", baseline, tuple(scores))]
    gaps = {arm: [a - b for a, b in zip(own, plain, strict=True)] for arm, own in scores.items() if arm != baseline}
    return (
        pd.DataFrame({arm: change(gap)._asdict() for arm, gap in gaps.items()}).T[["mean", "low", "high"]].astype(float)
    )


def _record(name: str) -> dict:
    folder = book_runs() / "demos"
    if not (folder / f"{name}.json").is_file():
        have = ", ".join(sorted(path.stem for path in folder.glob("*.json"))) or "none"
        raise FileNotFoundError(f"demonstration {name!r} is not recorded (recorded: {have}): run book/_tools/demos.py")
    return json.loads((folder / f"{name}.json").read_text())
