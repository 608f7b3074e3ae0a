"""What a network looks at: attention maps from activations.

Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.1.
`A` is an activation tensor `(N, C, H, W)`, `Q` an attention map `(N, H, W)`.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn


def f_sum(A: Tensor, p: float = 1) -> Tensor:
    """F_sum^p: the sum over channels of abs(A)^p.

    Absolute values always: the paper's definition, and an odd or fractional power of a negative activation is no
    attention. Half precision is promoted to float32, since squares overflow float16 from 256 on.

    Args:
        A: activations `(N, C, H, W)`.
        p: power, 1 or more; a large p listens to the strongest channels only.

    Returns:
        Maps `(N, H, W)`, zero or more.

    Raises:
        ValueError: if `A` is not 4-dimensional, or `p` is below 1.
    """
    return _magnitude(A, p).sum(dim=1)


def f_max(A: Tensor, p: float = 1) -> Tensor:
    """F_max^p: the maximum over channels of abs(A)^p.

    Arguments, result and errors are those of `f_sum`.
    """
    return _magnitude(A, p).amax(dim=1)


def _magnitude(A: Tensor, p: float) -> Tensor:
    if A.ndim != 4:
        raise ValueError(f"an activation has 4 dimensions (N, C, H, W), got shape {tuple(A.shape)}")
    if not 1 <= p < float("inf"):
        raise ValueError(f"p is {p}: the power of a mapping function is a finite number, 1 or more")
    return _at_least_float32(A).abs().pow(p)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def normalize(Q: Tensor) -> Tensor:
    """Each map as a vector of length one: Q / ||Q||_2 (the text below equation 2).

    An all-zero map stays zero, with finite gradients. Dividing by the peak first changes neither the value nor the
    gradient, for the result does not depend on the scale, and keeps tiny and huge maps exact.

    Args:
        Q: attention maps `(N, H, W)`.

    Returns:
        Vectors `(N, H*W)` of l2 norm 1 (or 0).

    Raises:
        ValueError: if `Q` is not 3-dimensional.
    """
    if Q.ndim != 3:
        raise ValueError(f"attention maps have 3 dimensions (N, H, W), got shape {tuple(Q.shape)}")
    q = _at_least_float32(Q).flatten(1)
    peak = q.detach().abs().amax(dim=1, keepdim=True)
    q = q / peak.where(peak > 0, 1.0)
    norm = torch.linalg.vector_norm(q, dim=1, keepdim=True)
    return q / norm.where(peak > 0, 1.0)


class Taps:
    """Read the outputs of named modules of any torch model.

    Use it in a ``with`` statement; the hooks are gone on exit, also after an exception::

        with Taps(model, ["layer3", "layer4"]) as taps:
            model(x)
        Q = f_sum(taps["layer4"], p=2)

    Args:
        model: any module that is not compiled (tap first, compile later: a compiled model skips late hooks).
        names: module paths as in ``model.named_modules()``.

    Raises:
        ValueError: on entering, if a name is unknown or the model is compiled; on reading, if a module did not run.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
            raise ValueError("the model is compiled and would skip the taps: tap the model that was given to compile")
        modules = dict(model.named_modules())
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            if name not in modules:
                near = ", ".join(n for n in modules if n.count(".") <= 1 and n)
                raise ValueError(f"the model has no module {name!r}: choose among {near} or deeper ones")
        self._modules = {name: modules[name] for name in names}
        self._outputs: dict[str, Tensor] = {}
        self._handles: list = []

    def __enter__(self) -> Self:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._keep(name)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _keep(self, name: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            self._outputs[name] = output

        return hook

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._outputs:
            raise ValueError(f"no output of {name!r} was seen: run the model inside the with statement first")
        return self._outputs[name]

    def __iter__(self):
        """The outputs, in the order of the names."""
        return (self[name] for name in self._modules)
