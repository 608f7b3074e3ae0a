"""What the book shows of recorded runs besides their receipts: ``python book/_tools/evidence.py RUNS [IMAGES]``.

Test images and some weights are not part of the book. So that it can show where a method helps, this keeps, for every
run below RUNS whose weights are there, the predicted class of each test image and its probability, and how alike the
run's attention maps are to those of the run named ``teacher``; and, of one test image for each class, the first in the
order of the data set, the picture and some runs' maps. All of it goes to ``RUNS/evidence.safetensors``.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from atbook.attention import f_sum, normalize
from atbook.data import Images, load, standardize
from atbook.models import Network
from atbook.runs import Run, load_runs, write

MAPPED = ("teacher", "student-0", "at-0")  # runs whose maps are shown


class Seen(NamedTuple):
    """What a network makes of the test images."""

    predicted: Tensor  # class, uint8 (N,)
    confidence: Tensor  # the class's probability, float16 (N,)
    maps: list[Tensor]  # of each group, normalised, float16 (N, d)


@torch.no_grad()
def look(model: Network, images: Tensor) -> Seen:
    parts = []
    for x in images.split(500):
        logits, groups = model.groups(standardize(x))
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        parts.append((predicted.to(torch.uint8), confidence.half(), *(normalize(f_sum(A, p=2)).half() for A in groups)))
    predicted, confidence, *maps = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Seen(predicted, confidence, maps)


def shown(model: Network, pictures: Tensor) -> list[Tensor]:
    """Of each group the maps, each scaled to its own peak, uint8 `(N, h, w)`."""
    with torch.no_grad():
        Q = [f_sum(A, p=2) for A in model.groups(standardize(pictures))[1]]
    return [(255 * q / q.amax(dim=(1, 2), keepdim=True)).round().to(torch.uint8) for q in Q]


def of_run(run: Run, test: Images, pictures: Tensor, taught: Seen) -> dict[str, Tensor]:
    """The evidence of one run; its maps are compared with those of the teacher, by the cosine, in each group.

    Raises:
        ValueError: if the run's predictions do not give the error of its receipt.
    """
    name, model = run.folder.name, run.model()
    seen = look(model, test.images)
    error = 100 * (seen.predicted != test.labels).float().mean().item()
    if abs(error - run.test_error) > 0.1:
        said = run.test_error
        raise ValueError(f"the weights of {name!r} give an error of {error:.2f} %, its receipt says {said:.2f} %")
    pairs = zip(seen.maps, taught.maps, strict=True)
    kept = {
        f"predicted.{name}": seen.predicted,
        f"confidence.{name}": seen.confidence,
        f"similarity.{name}": torch.stack([(a.float() * b.float()).sum(dim=1).mean() for a, b in pairs]),
    }
    maps = shown(model, pictures) if name in MAPPED else []
    return kept | {f"maps.{name}.{j}": Q for j, Q in enumerate(maps)}


def collect(out: Path, root: Path | None = None) -> None:
    """Write the evidence of the runs with weights below a folder; one of them is ``teacher``."""
    teacher = Run.load(out / "teacher")
    test = load(teacher.recipe.dataset, "test", root)
    first = torch.stack([test.images[test.labels == c][0] for c in range(len(test.classes))])
    taught, kept = look(teacher.model(), test.images), {"labels": test.labels.to(torch.uint8), "pictures": first}
    for run in load_runs(out):
        if (run.folder / "weights.safetensors").is_file():
            kept |= of_run(run, test, first, taught)
    write(out / "evidence.safetensors", save(kept))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    collect(*map(Path, sys.argv[1:]))
