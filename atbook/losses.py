"""What a student is asked to match.

Attention transfer and the paper's other losses: Zagoruyko and Komodakis, ICLR 2017, equations (2), (4) and (6).
Knowledge distillation: Hinton, Vinyals and Dean, 2015 (arXiv 1503.02531).
Hints: Romero et al., "FitNets", ICLR 2015. The gradient penalty: Drucker and LeCun, "Improving generalization
performance using double backpropagation", 1992.
No loss here holds a weight or the factor one half of the paper's equations: those are the caller's.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbook.attention import _at_least_float32, f_sum, input_gradient, normalize

FORMS = ("squared", "norm")
F_SUM_2 = partial(f_sum, p=2)  # the mapping function of the paper's main results


def attention_transfer(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    mapping: Callable[[Tensor], Tensor] = F_SUM_2,
    form: str = "squared",
) -> Tensor:
    """How far the student's attention is from the teacher's, summed over groups; without any beta.

    ``form="squared"`` is what the authors' code computes: the mean over all N*H*W elements of the squared
    difference of normalized maps, which equals (2/d)(1 - cos) per image with d = H*W. ``form="norm"`` is the paper's
    equation (2) as printed, without its factor one half: the l2 norm of the difference, averaged over the batch.

    Args:
        student: activations `(N, C, H, W)`, one per group.
        teacher: activations of the same groups, in the same order, detached here: the teacher is given, not trained.
            Channels may differ. Where heights or widths differ the larger *map* is resized to the smaller by area.
        mapping: from `(N, C, H, W)` to `(N, H, W)`.
        form: ``"squared"`` or ``"norm"``.

    Returns:
        A scalar, zero if and only if all maps agree up to scale.

    Raises:
        ValueError: if the lists are empty or of unlike length, the batches differ, neither map of a pair fits
            inside the other, or the form is unknown.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r} is unknown: choose 'squared' (the authors' code) or 'norm' (equation 2)")
    if not student or len(student) != len(teacher):
        got = f"{len(student)} and {len(teacher)}"
        raise ValueError(f"student and teacher must give the same number of groups, at least one; got {got}")
    pairs = zip(student, teacher, strict=True)
    return torch.stack([_map_distance(mapping(s), mapping(t.detach()), form) for s, t in pairs]).sum()


def _map_distance(Q_S: Tensor, Q_T: Tensor, form: str) -> Tensor:
    if len(Q_S) != len(Q_T):
        raise ValueError(f"batches of {len(Q_S)} and {len(Q_T)} images: student and teacher must see the same images")
    difference = normalize(_fit(Q_S, Q_T)) - normalize(_fit(Q_T, Q_S))
    if form == "squared":
        return difference.square().mean()
    return torch.linalg.vector_norm(difference, dim=1).mean()


def _fit(Q: Tensor, other: Tensor) -> Tensor:
    """`Q`, averaged down to the size of the other map where that one is smaller."""
    size, wanted = Q.shape[1:], other.shape[1:]
    smaller = all(a <= b for a, b in zip(size, wanted, strict=True))
    larger = all(a >= b for a, b in zip(size, wanted, strict=True))
    if not smaller and not larger:
        raise ValueError(f"maps of size {tuple(size)} and {tuple(wanted)} do not nest: choose groups of like shape")
    return Q if smaller else F.adaptive_avg_pool2d(Q, tuple(wanted))


SCALES = ("code", "per-sample", "paper", "cosine", "kd-zoo")


def convert_beta(beta: float, source: str, target: str, size: int, batch: int = 1, groups: int = 1) -> float:
    """The weight of attention transfer on another scale, for the same gradient.

    What each scale weights, for one group of `size` places:

    - ``"code"``: the squared difference, mean over images and places (the authors' code, RepDistiller, mdistiller, and
      ``form="squared"`` here);
    - ``"per-sample"``: summed over places, mean over images;
    - ``"paper"``: summed over places and images (the text below equation 2: 10^3 over elements and batch size);
    - ``"cosine"``: 1 - cos of the maps, mean over images;
    - ``"kd-zoo"``: as ``"code"``, but the mean over `groups` instead of their sum (Knowledge-Distillation-Zoo).

    An unsquared norm has no such factor: its gradient has another shape.

    Args:
        beta: the weight on the scale `source`.
        source, target: two of the names above.
        size: d, places in a map (height times width).
        batch: images in a batch, for ``"paper"``.
        groups: how many groups are averaged, for ``"kd-zoo"``.

    Returns:
        The weight on the scale `target`.

    Raises:
        ValueError: if a scale is unknown, or a count is below 1.
    """
    for name, count in {"size": size, "batch": batch, "groups": groups}.items():
        if count < 1:
            raise ValueError(f"{name} is {count}: it must be 1 or more")
    weight_of_code = {
        "code": 1.0,
        "per-sample": 1 / size,
        "paper": 1 / (size * batch),
        "cosine": 2 / size,
        "kd-zoo": groups,
    }
    for scale in (source, target):
        if scale not in weight_of_code:
            raise ValueError(f"scale {scale!r} is unknown: choose one of {', '.join(map(repr, SCALES))}")
    return beta * weight_of_code[target] / weight_of_code[source]


def distillation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """Knowledge distillation: KL(teacher || student) of the softened logits, times T squared, batch mean.

    The factor T squared keeps the gradient's size when the temperature changes (Hinton et al., section 2).

    Args:
        student_logits: `(N, K)`.
        teacher_logits: `(N, K)`, detached here.
        temperature: T, above 0; the attention-transfer paper uses 4.

    Returns:
        A scalar, zero if and only if both give the same softened probabilities.

    Raises:
        ValueError: if the shapes differ or the temperature is not above 0.
    """
    if student_logits.shape != teacher_logits.shape:
        shapes = f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        raise ValueError(f"student and teacher logits have shapes {shapes}: both must be (N, classes), of the same")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}: it must be a finite number above 0 (the paper uses 4)")
    log_p_S = F.log_softmax(_at_least_float32(student_logits) / temperature, dim=1)
    log_p_T = F.log_softmax(_at_least_float32(teacher_logits.detach()) / temperature, dim=1)
    return F.kl_div(log_p_S, log_p_T, reduction="batchmean", log_target=True) * temperature**2


# Activations: FitNets and full-activation transfer -------------------------------------------------------------------


def regressor(student: Tensor, teacher: Tensor) -> nn.Conv2d:
    """A linear map from the student's activation to the teacher's shape: a convolution with its own weights.

    1x1 where the sizes agree; where the student's is larger, 3x3 with a stride if it is a whole multiple, else the
    unpadded convolution that just fits (FitNets, section 2.2).

    Args:
        student: an activation `(N, C, H, W)`, for its shape.
        teacher: an activation `(N, C', H', W')`, for its shape.

    Raises:
        ValueError: if they are not 4-dimensional, not square, or the student's is the smaller.
    """
    if student.ndim != 4 or teacher.ndim != 4:
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"activations have 4 dimensions (N, C, H, W), got shapes {shapes}")
    (C_S, H, W), (C_T, H_T, W_T) = student.shape[1:], teacher.shape[1:]
    if H != W or H_T != W_T or H < H_T:
        sizes = f"{H}x{W} and {H_T}x{W_T}"
        raise ValueError(f"no regressor between activations of {sizes}: both must be square, the student's not smaller")
    if H == H_T:
        return nn.Conv2d(C_S, C_T, 1)
    if H % H_T == 0:
        return nn.Conv2d(C_S, C_T, 3, stride=H // H_T, padding=1)
    return nn.Conv2d(C_S, C_T, H - H_T + 1)


def hint(student: Tensor, teacher: Tensor, regressor: Callable[[Tensor], Tensor]) -> Tensor:
    """FitNets: the squared error of the student's activation, put through a regressor, to the teacher's.

    Equation (3) of FitNets sums over an image's elements; here it is their mean, as in the public implementations, so
    that the weight does not depend on the layer's size.

    Args:
        student: the guided layer's activation `(N, C, H, W)`.
        teacher: the hint layer's activation `(N, C', H', W')`, detached here.
        regressor: from the first shape to the second, trained with the student.

    Returns:
        A scalar.

    Raises:
        ValueError: if the regressor does not give the teacher's shape.
    """
    guided = regressor(_at_least_float32(student))
    _same_shape(guided, teacher)
    return (guided - _at_least_float32(teacher.detach())).square().mean()


def activation_transfer(
    student: Sequence[Tensor], teacher: Sequence[Tensor], regressors: Sequence[Callable[[Tensor], Tensor]] | None = None
) -> Tensor:
    """F-ActT, the paper's baseline: match whole activations, each divided by its l2 norm, summed over groups.

    The paper (section 4.1.1) normalises, and puts a 1x1 convolution where the widths differ; it gives no formula. Ours
    has the scale of `attention_transfer`: the squared distance of an image's normalised activations, over d = H*W,
    averaged over the batch, which is (2/d)(1 - cos). So beta weighs both alike.

    Args:
        student: activations `(N, C, H, W)`, one per group.
        teacher: activations `(N, C', H, W)` of the same groups, detached here.
        regressors: one per group, to the teacher's width; None if the widths agree.

    Returns:
        A scalar.

    Raises:
        ValueError: if the lists are empty or of unlike length, or the shapes differ after the regressors.
    """
    regressors = regressors or [nn.Identity()] * len(student)
    if not student or not len(student) == len(teacher) == len(regressors):
        got = f"{len(student)}, {len(teacher)} and {len(regressors)}"
        raise ValueError(f"student, teacher and regressors must be lists of one length, at least one; got {got}")
    losses = []
    for A_S, A_T, r in zip(student, teacher, regressors, strict=True):
        guided = r(_at_least_float32(A_S))
        _same_shape(guided, A_T)
        difference = _unit(guided) - _unit(A_T.detach())
        losses.append(difference.square().sum(dim=1).mean() / A_T.shape[2:].numel())
    return torch.stack(losses).sum()


def _unit(A: Tensor) -> Tensor:
    """Each image's whole activation as a vector of length one."""
    return normalize(A.flatten(2))


def _same_shape(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"student and teacher have shapes {shapes}: give a regressor from the first to the second")


# Gradients: double backpropagation -----------------------------------------------------------------------------------


def gradient_transfer(student_gradient: Tensor, teacher_gradient: Tensor) -> Tensor:
    """Match the gradients of the loss with respect to the input (equation 4): squared l2 per image, batch mean.

    Printed as a norm, but equation (5) is the derivative of its square. J is that of `atbook.attention.input_gradient`,
    from the summed cross-entropy, so that beta does not depend on the batch.

    Args:
        student_gradient: `(N, C, H, W)`, with its graph (``create_graph=True``).
        teacher_gradient: `(N, C, H, W)`, detached here.

    Returns:
        A scalar.

    Raises:
        ValueError: if the shapes differ.
    """
    if student_gradient.shape != teacher_gradient.shape:
        shapes = f"{tuple(student_gradient.shape)} and {tuple(teacher_gradient.shape)}"
        raise ValueError(f"the gradients have shapes {shapes}: student and teacher must see the same images")
    return gradient_penalty(student_gradient - teacher_gradient.detach())


def gradient_penalty(gradient: Tensor) -> Tensor:
    """Squared l2 norm of the input gradient per image, batch mean: "min-l2" (Drucker and LeCun, 1992).

    Args:
        gradient: J, `(N, C, H, W)`.

    Raises:
        ValueError: if it is not 4-dimensional.
    """
    if gradient.ndim != 4:
        raise ValueError(f"a gradient has 4 dimensions (N, C, H, W), got shape {tuple(gradient.shape)}")
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def gradient_symmetry(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """How far the gradient of the mirrored image is from the mirrored gradient (equation 6): squared l2, batch mean.

    Args:
        model, x, y: as for `atbook.attention.input_gradient`.

    Returns:
        A scalar, differentiable in the model's weights.

    Raises:
        ValueError: if the logits do not depend on `x` by differentiable operations.
    """
    J = input_gradient(model, torch.cat([x, x.flip(3)]), torch.cat([y, y]), create_graph=True)
    straight, mirrored = J.chunk(2)
    return gradient_penalty(straight - mirrored.flip(3))
