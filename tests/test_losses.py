from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from atbook.attention import f_max, f_sum
from atbook.losses import attention_transfer, distillation


@pytest.fixture
def pair():
    torch.manual_seed(0)
    shapes = [(4, 3, 8, 8), (4, 5, 4, 4)]
    student = [torch.randn(s, dtype=torch.float64) for s in shapes]
    return student, [torch.randn(n, 2 * c, h, w, dtype=torch.float64) for n, c, h, w in shapes]


def equation_2(student, teacher, power_of_norm):
    """Equation (2) from the paper, image by image: the norm of the difference of unit maps, to a power."""
    total = 0.0
    for A_S, A_T in zip(student, teacher, strict=True):
        norms = []
        for a_S, a_T in zip(A_S.numpy(), A_T.numpy(), strict=True):
            q_S, q_T = (np.sum(np.abs(a) ** 2, axis=0).ravel() for a in (a_S, a_T))
            norms.append(np.linalg.norm(q_S / np.linalg.norm(q_S) - q_T / np.linalg.norm(q_T)) ** power_of_norm)
        total += np.mean(norms) / (1 if power_of_norm == 1 else q_S.size)
    return total


@pytest.mark.parametrize(("form", "power"), [("norm", 1), ("squared", 2)])
def test_both_forms_equal_equation_2_coded_anew(pair, form, power):
    assert attention_transfer(*pair, form=form).item() == pytest.approx(equation_2(*pair, power), rel=1e-12)


def test_squared_form_is_the_closed_form_of_the_cosine(pair):
    student, teacher = pair[0][0], pair[1][0]
    cosine = F.cosine_similarity(f_sum(student, 2).flatten(1), f_sum(teacher, 2).flatten(1))
    expected = (2 / 64) * (1 - cosine).mean()
    torch.testing.assert_close(attention_transfer([student], [teacher]), expected)


@pytest.mark.parametrize("form", ["squared", "norm"])
def test_zero_iff_maps_agree_up_to_scale(pair, form):
    student, teacher = pair
    assert attention_transfer(student, [3 * A for A in student], form=form) < 1e-7
    assert attention_transfer(student, [torch.cat([-A, A], 1) for A in student], form=form) < 1e-7
    assert attention_transfer(student, teacher, form=form) > 1e-3


def test_the_larger_map_is_averaged_to_the_smaller_not_the_features(pair):
    large, small = pair[0][0], pair[1][1]
    Q = f_sum(large, 2).reshape(4, 4, 2, 4, 2).mean((2, 4))
    expected = attention_transfer([Q[:, None].sqrt()], [small])
    torch.testing.assert_close(attention_transfer([large], [small]), expected)
    torch.testing.assert_close(attention_transfer([small], [large]), expected)


def test_mapping_is_used(pair):
    maximum = attention_transfer(*pair, mapping=partial(f_max, p=1))
    assert not torch.isclose(maximum, attention_transfer(*pair))


@pytest.mark.parametrize("form", ["squared", "norm"])
def test_gradients(pair, form):
    student = [A.requires_grad_() for A in pair[0]]
    teacher = [A.requires_grad_() for A in pair[1]]
    assert torch.autograd.gradcheck(lambda *A: attention_transfer(A, pair[1], form=form), student)
    attention_transfer(student, teacher, form=form).backward()
    assert all(A.grad is None for A in teacher)  # the teacher is not trained


@pytest.mark.parametrize("form", ["squared", "norm"])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_gradients_are_finite_for_equal_and_for_zero_maps(form, scale):
    A = (scale * torch.ones(2, 3, 4, 4)).requires_grad_()
    attention_transfer([A], [A.detach().clone()], form=form).backward()
    assert A.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted(pair, dtype):
    student, teacher = ([(200 * A).to(dtype) for A in side] for side in pair)
    loss = attention_transfer(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, attention_transfer(*pair).float(), rtol=0.02, atol=0)


def test_bad_input_is_refused(pair):
    student, teacher = pair
    with pytest.raises(ValueError, match="got 2 and 1"):
        attention_transfer(student, teacher[:1])
    with pytest.raises(ValueError, match="got 0 and 0"):
        attention_transfer([], [])
    with pytest.raises(ValueError, match="form 'cosine' is unknown"):
        attention_transfer(student, teacher, form="cosine")
    with pytest.raises(ValueError, match="batches of 4 and 2"):
        attention_transfer(student, [A[:2] for A in teacher])
    with pytest.raises(ValueError, match="do not nest"):
        attention_transfer([torch.ones(1, 1, 4, 8)], [torch.ones(1, 1, 8, 4)])


@pytest.mark.parametrize("T", [0.5, 1, 4])
def test_distillation_equals_its_formula(T):
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(2, 6, 10))
    p_S, p_T = (np.exp(z / T) / np.exp(z / T).sum(1, keepdims=True) for z in (s, t))
    expected = T**2 * (p_T * np.log(p_T / p_S)).sum(1).mean()
    assert distillation(torch.tensor(s), torch.tensor(t), T).item() == pytest.approx(expected, rel=1e-12)


def test_distillation_at_high_temperature_matches_centred_logits():
    """Hinton et al., equation (4): for large T, the gradient tends to the difference of centred logits over K."""
    s, t = torch.randn(2, 5, 10, dtype=torch.float64).unbind()
    s.requires_grad_()
    (gradient,) = torch.autograd.grad(distillation(s, t, 1e4), s)
    expected = ((s - s.mean(1, keepdim=True)) - (t - t.mean(1, keepdim=True))) / 10 / 5
    torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-5)


def test_distillation_is_zero_for_equal_logits_and_does_not_train_the_teacher():
    t = torch.randn(3, 4, requires_grad=True)
    s = (t.detach() + 7).requires_grad_()  # a constant added to all logits changes no probability
    loss = distillation(s, t)
    loss.backward()
    assert loss.abs() < 1e-6 and t.grad is None


def test_distillation_in_half_precision():
    s, t = 30 * torch.randn(2, 8, 10)
    half = distillation(s.half(), t.half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, distillation(s, t), rtol=1e-2, atol=0)


def test_distillation_refuses_bad_input():
    with pytest.raises(ValueError, match="temperature is 0"):
        distillation(torch.zeros(2, 3), torch.zeros(2, 3), 0)
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        distillation(torch.zeros(2, 3), torch.zeros(2, 4))
