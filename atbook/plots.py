"""Figures out of maps and runs. Every function returns the matplotlib figure, which a notebook shows by itself."""

import itertools
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from atbook.runs import Run

# Okabe and Ito's, which colour-blind readers can tell apart
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def show_maps(images: Tensor, maps: Mapping[str, Tensor], titles: Sequence[str] = (), size: float = 1.3) -> Figure:
    """Images in the first row, and below them, a row for each kind of attention map, drawn over the images.

    Each map is scaled to its own peak and enlarged bilinearly to the image; bright is where the attention is.

    Args:
        images: uint8 `(N, 3, H, W)`.
        maps: row label to maps `(N, h, w)`.
        titles: one for each column, for example the class names.
        size: width of one picture in inches.

    Raises:
        ValueError: if a row has not one map for each image.
    """
    for name, Q in maps.items():
        if len(Q) != len(images):
            raise ValueError(f"row {name!r} has {len(Q)} maps for {len(images)} images: give one map for each image")
    rows, columns = 1 + len(maps), len(images)
    figsize = size * columns, size * rows * images.shape[2] / images.shape[3]
    figure, axes = plt.subplots(rows, columns, figsize=figsize, squeeze=False, layout="constrained")
    for n in range(columns):
        picture = images[n].permute(1, 2, 0).cpu().numpy()
        axes[0, n].imshow(picture)
        axes[0, n].set_title(titles[n] if n < len(titles) else "", fontsize=9)
        for axis, Q in zip(axes[1:, n], maps.values(), strict=True):
            axis.imshow(picture)
            axis.imshow(_fit(Q[n], images.shape[2:]), cmap="inferno", alpha=0.75)
    for axis, name in zip(axes[:, 0], ("image", *maps), strict=True):
        axis.set_ylabel(name, fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    plt.close(figure)  # else a notebook draws it twice: as the cell's value and as an open figure
    return figure


def _fit(Q: Tensor, size: Sequence[int]) -> np.ndarray:
    Q = F.interpolate(Q.detach().float().cpu()[None, None], size=tuple(size), mode="bilinear", align_corners=False)[
        0, 0
    ]
    return (Q / Q.amax().clamp(min=1e-30)).numpy()


def show_curves(runs: Mapping[str, Run], column: str = "test_error", label: str = "test error in %") -> Figure:
    """A column of the runs' histories against the epoch, one line a run.

    Args:
        runs: legend label to run.
        column: of `Run.history`.
        label: of the vertical axis.
    """
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for (name, run), colour in zip(runs.items(), itertools.cycle(COLOURS), strict=False):
        epochs, values = [row["epoch"] for row in run.history], [row[column] for row in run.history]
        axis.plot(epochs, values, "o-", color=colour, label=name, markersize=4)
    axis.set(xlabel="epoch", ylabel=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    plt.close(figure)
    return figure
