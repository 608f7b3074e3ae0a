"""Each mechanism of `atbook.mechanisms` on a small task that needs it, beside controls: one file each.

Every file has the same few names. ``CHANCE``: the score of a guess. ``ARMS``: what is compared, the mechanism and its
controls. ``run(arm, seed, steps)``: train it; returns the score in percent on images it has not seen, and the tensors
of a picture. ``python book/_tools/demos.py`` records all of them for five seeds, and `recorded` reads that.
"""

import json

import pandas as pd
from safetensors.torch import load_file
from torch import Tensor

from atbook.runs import book_runs


def recorded(name: str) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """What a demonstration gave when it was recorded.

    Args:
        name: of the file of the demonstration, for example ``"squeeze_excitation"``.

    Returns:
        A table with a row for each arm: mean, lowest and highest score, the number of seeds, seconds of one training;
        and the tensors of the pictures of seed 0, under ``"arm/tensor"``.

    Raises:
        FileNotFoundError: if it has not been recorded.
    """
    folder = book_runs() / "demos"
    if not (folder / f"{name}.json").is_file():
        have = ", ".join(sorted(path.stem for path in folder.glob("*.json"))) or "none"
        raise FileNotFoundError(f"demonstration {name!r} is not recorded (recorded: {have}): run book/_tools/demos.py")
    record = json.loads((folder / f"{name}.json").read_text())
    scores = pd.DataFrame(record["scores"])
    table = pd.DataFrame({"mean": scores.mean(), "lowest": scores.min(), "highest": scores.max()})
    table = table.assign(seeds=len(scores), seconds=pd.Series(record["seconds"]))
    pictures = load_file(folder / f"{name}.safetensors")
    return table, {key: part.float() if part.is_floating_point() else part for key, part in pictures.items()}
