"""What a network looks at: attention maps from activations and from gradients.

Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, sections 3.1 and 3.2.
`A` is an activation tensor `(N, C, H, W)`, `Q` an attention map `(N, H, W)`, `J` the gradient of a loss with respect
to the input, of the input's shape. The mapping functions make a map of a gradient as they do of an activation:
``f_max(J)`` is the saliency map of Simonyan et al. (2014), ``f_sum(J)`` its sum over the colours.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_HALF = (torch.float16, torch.bfloat16)


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
    A = _at_least_float32(A)
    return A.square() if p == 2 else A.abs().pow(p)  # a square needs no absolute value, and is three times as fast


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _HALF else x


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

    A module that runs more than once is read the last time.

    Args:
        model: any module that is not compiled: a compiled one skips hooks that come later. Tap the module that was
            given to `torch.compile`, which shares its weights.
        names: module paths as in ``model.named_modules()``, or one of them.

    Raises:
        ValueError: at once, if a name is unknown or a part of the model is compiled; on reading, if the module did not
            run, gave something else than a tensor, or its output was overwritten by the layer after it.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        modules = dict(model.named_modules())
        if any(isinstance(m, _COMPILED) or m._compiled_call_impl is not None for m in modules.values()):
            raise ValueError("the model is compiled and would skip the taps: tap the model that was given to compile")
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            if name not in modules:
                near = ", ".join(n for n in modules if n.count(".") <= 1 and n)
                raise ValueError(f"the model has no module {name!r}: choose among {near} or deeper ones")
        self._modules = {name: modules[name] for name in names}
        self._outputs: dict[str, object] = {}
        self._versions: dict[str, int | None] = {}
        self._handles: list = []

    def __enter__(self) -> Self:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._keep(name)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _keep(self, name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            self._outputs[name], self._versions[name] = output, _version(output)

        return hook

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._outputs:
            raise ValueError(f"no output of {name!r} was seen: run the model inside the with statement first")
        output = self._outputs[name]
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise ValueError(f"module {name!r} gives a {kind}, not a tensor: tap the module inside it that gives one")
        if self._versions[name] not in (None, _version(output)):
            raise ValueError(f"the output of {name!r} was overwritten: tap the layer after it, or set inplace=False")
        return output

    def __iter__(self) -> Iterator[Tensor]:
        """The outputs, in the order of the names."""
        return (self[name] for name in self._modules)


_COMPILED = torch._dynamo.eval_frame.OptimizedModule


def _version(output: object) -> int | None:
    """How often a tensor was changed in place, where torch counts: not in inference mode, not in compiled code."""
    if torch.compiler.is_compiling() or not isinstance(output, Tensor) or output.is_inference():
        return None
    return output._version


# From gradients ------------------------------------------------------------------------------------------------------


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, batch norm uses its running means and variances, and does not change them.

    So the gradient of an image's loss does not depend on the other images of the batch.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for module in norms:
        module.training = False
    try:
        yield
    finally:
        for module in norms:
            module.training = True


def input_gradient(
    model: nn.Module, x: Tensor, y: Tensor, create_graph: bool = False, frozen: bool = True
) -> Tensor:
    """J: how each input value changes the cross-entropy of its own image (section 3.2, before equation 4).

    The cross-entropy is summed over the batch, not averaged, so that J of an image has the same size in every batch.

    Args:
        model: gives logits `(N, K)` of images.
        x: images `(N, C, H, W)`.
        y: labels `(N,)`.
        create_graph: keep the graph, so that a loss on J can be differentiated again with respect to the weights
            (double backpropagation).
        frozen: batch norm uses its running statistics (see `frozen_statistics`). The paper's networks have no batch
            norm and it leaves the question open. If False the model runs as it is, and in training mode J of an image
            depends on its batch, and the running statistics move.

    Returns:
        `(N, C, H, W)`, detached unless ``create_graph``.

    Raises:
        ValueError: if the logits do not depend on `x` by differentiable operations.
    """

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(_at_least_float32(logits), y, reduction="sum")

    return _gradient(model, x, loss, create_graph, frozen)


def guided_backprop(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the logit of class `y`, keeping only what excites each ReLU (Springenberg et al., 2015).

    On the way back every ReLU also passes positive gradients alone. The result is sharp, but much of it is the image:
    see the sanity checks of Adebayo et al. (2018). Works for `nn.ReLU` and for the function alike.

    Args, result and errors are those of `input_gradient`.
    """
    with _GuidedReLUs():
        return _gradient(model, x, lambda logits: logits.gather(1, y[:, None]).sum())


def grad_cam(model: nn.Module, layer: str, x: Tensor, y: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al., 2017): the channels of a layer, weighted by their mean gradient, then a ReLU.

    A sum over channels like F_sum, but with signed weights that belong to one class.

    Args:
        model: gives logits `(N, K)` of images; batch norm is frozen here.
        layer: module path, as in `Taps`.
        x: images `(N, C, H, W)`.
        y: the classes asked about, `(N,)`.

    Returns:
        Maps `(N, H, W)` of the layer's size, zero or more.

    Raises:
        ValueError: as `Taps`; or if the logits do not depend on the layer by differentiable operations.
    """
    with frozen_statistics(model), torch.enable_grad(), Taps(model, [layer]) as taps:
        logits = model(x.detach().requires_grad_())
        A = taps[layer]
        (gradient,) = _grad(logits.gather(1, y[:, None]).sum(), A)
    return (gradient.mean(dim=(2, 3), keepdim=True) * A.detach()).sum(dim=1).relu()


def _gradient(model, x, target, create_graph: bool = False, frozen: bool = True) -> Tensor:
    x = x.detach().requires_grad_()
    with frozen_statistics(model) if frozen else nullcontext(), torch.enable_grad():
        (J,) = _grad(target(model(x)), x, create_graph)
    return J


def _grad(target: Tensor, x: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
    try:
        return torch.autograd.grad(target, x, create_graph=create_graph)
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"no gradient reaches the input ({why}): the model must be differentiable, without detach or no_grad"
        ) from None


class _GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient.clamp(min=0) * (x > 0)


class _GuidedReLUs(TorchFunctionMode):
    """Replaces ReLU, however it is called, while a model runs forward."""

    RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.RELUS:
            return _GuidedReLU.apply(args[0] if args else kwargs["input"])
        return function(*args, **(kwargs or {}))
