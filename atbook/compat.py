"""What differs between installations: torchvision, which only this module imports, and a compiler for torch.

``from atbook.compat import torchvision``. On PyPI, torchvision for Linux is built for CUDA, and its compiled part
cannot load beside a CPU-only torch. It is written to go on without, but while it is imported two decorators still look
for the operators ``nms`` and ``qnms``. Where they are missing, they are given a name here, without a kernel: calling
``torchvision.ops.nms`` raises torchvision's own error, everything else works. Where torch and torchvision fit, this is
a plain import.
"""

from pathlib import Path

import torch

__all__ = ["check_compiler", "torchvision"]

try:
    import torchvision
except RuntimeError as error:
    if "operator torchvision::" not in str(error):
        raise
    _operators = torch.library.Library("torchvision", "FRAGMENT")  # the names live as long as this object
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision


def check_compiler() -> None:
    """See whether `torch.compile` can work here, before anything is trained.

    Raises:
        ValueError: if there is no C++ compiler, or torch lies in a folder with a space in its name: torch passes that
            name on unquoted.
    """
    from torch._inductor import cpp_builder, exc

    if " " in torch.__file__:
        where = str(Path(torch.__file__).parent)
        raise ValueError(f"torch.compile fails below a folder with a space, here {where!r}: leave compile out")
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        what = "torch.compile needs a C++ compiler, and none is found: install g++, or leave compile out"
        raise ValueError(what) from None
