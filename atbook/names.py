"""The names that recipes may use, checked without importing torch, so that a wrong one is refused at once."""

import difflib
import re

DATASETS = ("shapes", "cifar10", "cifar100", "folder")
# What each method adds to the student's own loss: see `atbook.recipes.weights`.
METHODS = (
    "student", "at", "kd", "at+kd", "f-act", "fitnet", "at+fitnet", "grad-at", "symmetry", "min-l2",
)  # fmt: skip
TEACHERLESS = ("student", "symmetry", "min-l2")
MAPPINGS = ("f_sum", "f_max")
NIN = ("nin-thin", "nin-wide", "nin-thin-nobn", "nin-wide-nobn")
RESNETS = ("resnet20", "resnet32", "resnet56", "resnet110", "resnet8x4", "resnet32x4")
IMAGENET = ("resnet18", "resnet34")  # torchvision's, for large images; four groups, where all others have three


def choose(what: str, name: str, allowed: tuple[str, ...]) -> str:
    """Return ``name`` if it is allowed.

    Raises:
        ValueError: naming the value, what is allowed and, where one is near, what was probably meant.
    """
    if name in allowed:
        return name
    near = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what} {name!r} is unknown: choose one of {', '.join(map(repr, allowed))}{hint}")


def count_groups(name: str) -> int:
    """How many groups of layers a network has whose activations can be read."""
    return 4 if name in IMAGENET else 3


def network(name: str) -> str:
    """Return the name of a network if there is such a one.

    Raises:
        ValueError: naming the value and what is allowed (see also `wrn_shape`).
    """
    if name in NIN + RESNETS + IMAGENET:
        return name
    if str(name).startswith(("nin", "resnet")):
        return choose("network", name, NIN + RESNETS + IMAGENET)
    wrn_shape(name)
    return name


def wrn_shape(name: str) -> tuple[int, int]:
    """Depth and width of a wide residual network: ``"wrn-16-2"`` gives ``(16, 2)``.

    Raises:
        ValueError: if the name is not ``wrn-DEPTH-WIDTH``, the depth is not 6n+4 with n >= 1
            (three groups of n blocks of two convolutions, and four more layers), or the width is 0.
    """
    match = re.fullmatch(r"wrn-(\d{1,4})-(\d{1,3})", str(name))
    if not match:
        others = f"for example 'wrn-16-1', or one of {', '.join(NIN + RESNETS + IMAGENET)}"
        raise ValueError(f"network {name!r} is unknown: write wrn-DEPTH-WIDTH, {others}")
    depth, width = int(match[1]), int(match[2])
    if depth < 10 or (depth - 4) % 6:
        lower = max(10, depth - (depth - 4) % 6)
        raise ValueError(f"network {name!r} has depth {depth}, which is not 6n+4: use {lower} or {lower + 6}")
    if width == 0:
        raise ValueError(f"network {name!r} has width 0: the width multiplies the channels and is 1 or more")
    return depth, width
