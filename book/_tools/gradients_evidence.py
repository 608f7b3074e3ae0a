"""What chapter 09 shows of its runs besides their receipts: ``python book/_tools/gradients_evidence.py RUNS``.

The teacher's weights are too large for the book. So this keeps what they make of the windows: for each run, how its
gradients and maps score against the true masks and agree with the teacher's; the teacher's gradients of a few training
windows, and the length of all; and maps of a few test windows. All of it goes to ``RUNS/evidence.safetensors``.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from gradients import WINDOWS, windows
from safetensors.torch import save
from torch import Tensor

from atbook.attention import f_max, f_sum, input_gradient, normalize
from atbook.data import Images, standardize
from atbook.models import Network
from atbook.runs import Run, load_runs, write
from atbook.scores import energy, pointing_game

KEPT = 64  # training windows whose teacher gradients are kept
SHOWN = range(0, 1000, 100)  # test windows that are shown: the first of each class
MAPPED = ("teacher", "student-0", "min-l2-0", "grad-at-0", "symmetry-0", "kd-0", "at-0")


def spread(count: int) -> Tensor:
    """Numbers of so many training windows, evenly over the classes."""
    return torch.arange(count) * WINDOWS.train // count


def gradient(model: Network, images: Images) -> Tensor:
    parts = zip(images.images.split(250), images.labels.split(250), strict=True)
    return torch.cat([input_gradient(model, standardize(x), y) for x, y in parts])


@torch.no_grad()
def middle(model: Network, images: Images) -> Tensor:
    """Attention maps of the second group, 8x8."""
    return torch.cat([f_sum(model.groups(standardize(x))[1][1], p=2) for x in images.images.split(250)])


def measures(model: Network, teacher: tuple[Tensor, Tensor], train: Images, test: Images) -> dict[str, float]:
    """Of one network: its gradients and the maps of its second group, on their own and beside the teacher's."""
    J, Q, (J_T, Q_T) = gradient(model, test), middle(model, test), teacher
    squares = gradient(model, train).square().sum(dim=(1, 2, 3))
    return {
        "J energy": energy(f_max(J), test.masks).nanmean().item(),
        "J pointing": pointing_game(f_max(J), test.masks).float().mean().item(),
        "Q energy": energy(Q, test.masks).nanmean().item(),
        "Q pointing": pointing_game(Q, test.masks).float().mean().item(),
        "J cosine": F.cosine_similarity(J.flatten(1), J_T.flatten(1)).mean().item(),
        "Q cosine": (normalize(Q) * normalize(Q_T)).sum(dim=1).mean().item(),
        "J squared, train": squares.mean().item(),
        "J squared, train median": squares.median().item(),
        "J squared, test": J.square().sum(dim=(1, 2, 3)).mean().item(),
    }


def collect(out: Path) -> None:
    train, test = windows("train", 0, WINDOWS.train), windows("test", 0, 1000)
    T = Run.load(out / "teacher").model()
    taught, few = (gradient(T, test), middle(T, test)), spread(KEPT)
    J_T, pictures = gradient(T, train), torch.tensor(SHOWN)
    kept = {"J_T": J_T[few], "J_T squared": J_T.square().sum(dim=(1, 2, 3)), "centre": train.masks.float().mean(dim=0)}
    for run in load_runs(out):
        name = run.folder.name
        if run.folder.parent != out or run.status != "finished":
            continue
        model = run.model()
        kept |= {f"{m}.{name}": torch.tensor(v) for m, v in measures(model, taught, train, test).items()}
        if name in MAPPED:
            shown = test.images[pictures], test.labels[pictures]
            kept[f"J.{name}"] = f_max(input_gradient(model, standardize(shown[0]), shown[1]))
            kept[f"Q.{name}"] = middle(model, Images(*shown, test.classes, None, "shown"))
        print(name, flush=True)
    write(out / "evidence.safetensors", save({name: tensor.contiguous() for name, tensor in kept.items()}))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    collect(Path(sys.argv[1]))
