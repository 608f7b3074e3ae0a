"""What chapter 11 shows of the runs besides their receipts: every run's predictions, and a few pictures with maps.

The test images are not part of the book. So that it can show where a method helps, the predicted classes are kept; and
of one test image for each class, the first in the order of the data set, the picture and the attention maps.
"""

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from atbook.attention import f_sum
from atbook.data import load, standardize
from atbook.models import Network
from atbook.runs import Run, load_runs, write

MAPPED = ("teacher", "student-0", "at-0")


@torch.no_grad()
def predicted(model: Network, images: Tensor) -> Tensor:
    """The class of each image, uint8 `(N,)`."""
    return torch.cat([model(standardize(x)).argmax(dim=1).to(torch.uint8) for x in images.split(500)])


@torch.no_grad()
def maps(model: Network, images: Tensor) -> list[Tensor]:
    """Of each group the maps, each scaled to its own peak, uint8 `(N, h, w)`."""
    Q = [f_sum(A, p=2) for A in model.groups(standardize(images))[1]]
    return [(255 * q / q.amax(dim=(1, 2), keepdim=True)).round().to(torch.uint8) for q in Q]


def evidence(runs: list[Run], root: Path) -> dict[str, Tensor]:
    """All of it, out of finished runs with their weights.

    Raises:
        ValueError: if a run's predictions do not give the error of its receipt.
    """
    test = load("folder", "test", root)
    pictures = torch.stack([test.images[test.labels == c][0] for c in range(len(test.classes))])
    kept = {"labels": test.labels.to(torch.uint8), "pictures": pictures}
    for run in runs:
        model, name = run.model(), run.folder.name
        kept[f"predicted.{name}"] = predicted(model, test.images)
        error = 100 * (kept[f"predicted.{name}"] != kept["labels"]).float().mean().item()
        if abs(error - run.test_error) > 0.1:
            said = run.test_error
            raise ValueError(f"the weights of {name!r} give an error of {error:.2f} %, its receipt says {said:.2f} %")
        if name in MAPPED:
            kept |= {f"maps.{name}.{j}": q for j, q in enumerate(maps(model, pictures))}
    return kept


def collect(out: Path, root: Path) -> None:
    """Write ``evidence.safetensors`` beside the finished runs below ``out``."""
    finished = [run for run in load_runs(out) if run.status == "finished"]
    write(out / "evidence.safetensors", save(evidence(finished, root)))
