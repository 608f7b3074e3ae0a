"""What a student is asked to match.

Attention transfer: Zagoruyko and Komodakis, ICLR 2017, equation (2).
Knowledge distillation: Hinton, Vinyals and Dean, 2015 (arXiv 1503.02531).
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from atbook.attention import f_sum, normalize

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
    dtype = torch.promote_types(student_logits.dtype, torch.float32)  # half precision loses small probabilities
    log_p_S = F.log_softmax(student_logits.to(dtype) / temperature, dim=1)
    log_p_T = F.log_softmax(teacher_logits.detach().to(dtype) / temperature, dim=1)
    return F.kl_div(log_p_S, log_p_T, reduction="batchmean", log_target=True) * temperature**2
