"""The only place that imports torchvision: ``from atbook.compat import torchvision``.

On PyPI, torchvision for Linux is built for CUDA, and its compiled part cannot load beside a CPU-only torch. It is
written to go on without, but while it is imported two decorators still look for the operators ``nms`` and ``qnms``.
Where they are missing, they are given a name here, without a kernel: calling ``torchvision.ops.nms`` raises
torchvision's own error, everything else works. Where torch and torchvision fit, this is a plain import.
"""

import torch

__all__ = ["torchvision"]

try:
    import torchvision
except RuntimeError as error:
    if "operator torchvision::" not in str(error):
        raise
    _operators = torch.library.Library("torchvision", "FRAGMENT")  # the names live as long as this object
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
