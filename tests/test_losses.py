from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from atbook.attention import f_max, f_sum, input_gradient
from atbook.losses import (
    SCALES,
    activation_transfer,
    attention_transfer,
    convert_beta,
    distillation,
    gradient_penalty,
    gradient_symmetry,
    gradient_transfer,
    hint,
    regressor,
)


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


def test_maps_that_are_larger_in_one_direction_only():
    torch.manual_seed(0)
    large, small = torch.rand(2, 3, 4, 8), torch.rand(2, 3, 4, 4)
    for a, b in ((large, small), (large.transpose(2, 3), small)):
        Q = F.adaptive_avg_pool2d(f_sum(a, 2), (4, 4))
        expected = attention_transfer([Q[:, None].sqrt()], [b])
        torch.testing.assert_close(attention_transfer([a], [b]), expected)
        torch.testing.assert_close(attention_transfer([b], [a]), expected)


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


numbers = st.floats(-10, 10, width=32).map(lambda v: v if abs(v) > 1e-3 else 0)
values = arrays(np.float64, (1, 3, 4, 4), elements=numbers)


@given(values, values)
def test_bounds_and_the_relation_of_the_two_forms(student, teacher):
    student, teacher = [torch.tensor(student)], [torch.tensor(teacher)]
    norm, squared = (attention_transfer(student, teacher, form=form).item() for form in ("norm", "squared"))
    assert 0 <= norm <= 2**0.5 + 1e-12
    assert squared == pytest.approx(norm**2 / 16, abs=1e-15)  # one image, one group of d = 16 places


def test_order_of_images_and_a_batch_twice_change_nothing(pair):
    student, teacher = pair
    turned = [[A[[2, 0, 3, 1]] for A in side] for side in pair]
    twice = [[torch.cat([A, A]) for A in side] for side in pair]
    for form in ("squared", "norm"):
        loss = attention_transfer(student, teacher, form=form)
        torch.testing.assert_close(attention_transfer(*turned, form=form), loss)
        torch.testing.assert_close(attention_transfer(*twice, form=form), loss)


def test_groups_are_summed(pair):
    each = [attention_transfer([s], [t]) for s, t in zip(*pair, strict=True)]
    torch.testing.assert_close(attention_transfer(*pair), each[0] + each[1])


def test_second_derivatives(pair):
    small = [A[:1, :, :2, :2].clone().requires_grad_() for A in pair[0]]
    teacher = [A[:1, :, :2, :2] for A in pair[1]]
    assert torch.autograd.gradgradcheck(lambda *A: attention_transfer(A, teacher), small)


# Each scale written out, for unit maps q_S and q_T of shape (groups, images, places)
WRITTEN_OUT = {
    "code": lambda q_S, q_T: (q_S - q_T).square().mean((1, 2)).sum(),
    "per-sample": lambda q_S, q_T: (q_S - q_T).square().sum(2).mean(1).sum(),
    "paper": lambda q_S, q_T: (q_S - q_T).square().sum(),
    "cosine": lambda q_S, q_T: (1 - (q_S * q_T).sum(2)).mean(1).sum(),
    "kd-zoo": lambda q_S, q_T: (q_S - q_T).square().mean(),
}


@pytest.mark.parametrize("source", SCALES)
@pytest.mark.parametrize("target", SCALES)
def test_beta_gives_the_same_gradient_on_every_scale(source, target):
    torch.manual_seed(0)
    groups, batch, size = 2, 5, 9
    Q = torch.rand(groups, batch, size, dtype=torch.float64, requires_grad=True)
    q_S, q_T = F.normalize(Q, dim=2), F.normalize(torch.rand_like(Q).detach(), dim=2)
    beta = convert_beta(1000.0, source, target, size, batch, groups)
    old, new = 1000.0 * WRITTEN_OUT[source](q_S, q_T), beta * WRITTEN_OUT[target](q_S, q_T)
    torch.testing.assert_close(torch.autograd.grad(new, Q, retain_graph=True), torch.autograd.grad(old, Q))


def test_the_papers_about_0_1():
    assert [round(convert_beta(1000, "code", "paper", n * n, 128), 4) for n in (32, 16, 8)] == [0.0076, 0.0305, 0.1221]


def test_batch_and_groups_are_one_unless_given():
    assert convert_beta(8.0, "code", "paper", 4) == 2 and convert_beta(8.0, "code", "kd-zoo", 4) == 8


def test_beta_is_not_converted_from_nonsense():
    with pytest.raises(ValueError, match="scale 'mean' is unknown"):
        convert_beta(1, "mean", "code", 64)
    with pytest.raises(ValueError, match="scale 'norm' is unknown"):
        convert_beta(1, "code", "norm", 64)
    for counts in ({"size": 0}, {"size": 64, "batch": 0}, {"size": 64, "groups": -1}):
        with pytest.raises(ValueError, match="must be 1 or more"):
            convert_beta(1, "code", "paper", **counts)


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


def test_the_temperature_is_the_papers_unless_given():
    s, t = torch.randn(2, 3, 4)
    assert distillation(s, t) == distillation(s, t, 4.0) != distillation(s, t, 5.0)


def test_distillation_refuses_bad_input():
    for temperature in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"temperature is {temperature}"):
            distillation(torch.zeros(2, 3), torch.zeros(2, 3), temperature)
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        distillation(torch.zeros(2, 3), torch.zeros(2, 4))


def test_temperature_leaves_the_size_of_the_gradient():
    """The gradient of the soft part is of order 1/T^2, and T squared takes that away (Hinton et al., section 2)."""
    s, t = torch.randn(2, 50, 10, dtype=torch.float64).unbind()
    s.requires_grad_()
    size = [torch.autograd.grad(distillation(s, t, T), s)[0].norm().item() for T in (20, 40, 80)]
    assert size[1] / size[0] == pytest.approx(1, abs=0.1) and size[2] / size[1] == pytest.approx(1, abs=0.05)


def test_gradient_of_distillation():
    s, t = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    assert torch.autograd.gradcheck(lambda s: distillation(s, t, 3.0), [s.requires_grad_()])


# Activations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher", "kernel", "stride"),
    [
        ((4, 8, 8), (6, 8, 8), 1, 1),
        ((4, 8, 8), (6, 4, 4), 3, 2),
        ((4, 16, 16), (6, 4, 4), 3, 4),
        ((4, 8, 8), (6, 5, 5), 4, 1),
    ],
)
def test_regressors_reach_the_teachers_shape(student, teacher, kernel, stride):
    r = regressor(torch.zeros(1, *student), torch.zeros(1, *teacher))
    assert r.kernel_size == (kernel, kernel) and r.stride == (stride, stride) and r.bias is not None
    assert r(torch.zeros(2, *student)).shape == (2, *teacher)


@pytest.mark.parametrize(
    ("student", "teacher"), [((1, 4, 4, 4), (1, 4, 8, 8)), ((1, 4, 4, 8), (1, 4, 4, 4)), ((1, 4, 8, 8), (1, 4, 4, 8))]
)
def test_a_regressor_that_cannot_be_is_refused(student, teacher):
    with pytest.raises(ValueError, match="no regressor between"):
        regressor(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize(("student", "teacher"), [((4, 4, 4), (1, 4, 4, 4)), ((1, 4, 4, 4), (4, 4, 4))])
def test_a_regressor_of_something_else_is_refused(student, teacher):
    with pytest.raises(ValueError, match="4 dimensions"):
        regressor(torch.zeros(student), torch.zeros(teacher))


def test_hint_is_the_mean_squared_error_after_the_regressor(pair):
    student, teacher = pair[0][0], pair[1][0].requires_grad_()
    r = nn.Conv2d(3, 6, 1).double()
    W, b = r.weight.detach().numpy()[:, :, 0, 0], r.bias.detach().numpy()
    guided = np.einsum("oc,nchw->nohw", W, student.numpy()) + b[:, None, None]
    loss = hint(student, teacher, r)
    assert loss.item() == pytest.approx(np.mean((guided - teacher.detach().numpy()) ** 2), rel=1e-12)
    loss.backward()
    assert teacher.grad is None and r.weight.grad.abs().sum() > 0


def test_hint_in_half_precision_and_of_another_shape(pair):
    student, teacher = pair[0][0].half() * 200, pair[1][0].half() * 200
    loss = hint(student, teacher, lambda A: torch.cat([A, A], 1))  # squares overflow float16
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert hint(student.double(), student.double(), nn.Identity()) == 0
    with pytest.raises(ValueError, match=r"\(4, 3, 8, 8\) and \(4, 6, 8, 8\): give a regressor"):
        hint(student, teacher, nn.Identity())


def test_activation_transfer_is_the_cosine_of_whole_activations(pair):
    student, teacher = [torch.cat([A, A.roll(1, 0)], 1) for A in pair[0]], pair[1]
    cosines = [F.cosine_similarity(s.flatten(1), t.flatten(1)) for s, t in zip(student, teacher, strict=True)]
    expected = 2 / 64 * (1 - cosines[0]).mean() + 2 / 16 * (1 - cosines[1]).mean()
    torch.testing.assert_close(activation_transfer(student, teacher), expected)
    assert activation_transfer(student, [3 * A for A in student]) < 1e-15


def test_activation_transfer_through_regressors(pair):
    student, teacher = pair
    regressors = [nn.Conv2d(A.shape[1], 2 * A.shape[1], 1).double() for A in student]
    teacher = [A.requires_grad_() for A in teacher]
    loss = activation_transfer(student, teacher, regressors)
    expected = activation_transfer([r(A) for r, A in zip(regressors, student, strict=True)], teacher)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert regressors[1].weight.grad.abs().sum() > 0 and all(A.grad is None for A in teacher)


def test_activation_transfer_at_zero_and_in_half_precision(pair):
    A = torch.zeros(2, 3, 4, 4, dtype=torch.float16, requires_grad=True)
    activation_transfer([A], [A.detach().clone()]).backward()
    assert A.grad.isfinite().all()
    loud = [(200 * A).half() for A in pair[0]]
    assert activation_transfer(loud, [A.roll(1, 0) for A in loud]).dtype == torch.float32


def test_activation_transfer_refuses_bad_input(pair):
    student, teacher = pair
    with pytest.raises(ValueError, match="got 2, 1 and 2"):
        activation_transfer(student, teacher[:1])
    with pytest.raises(ValueError, match="got 2, 2 and 1"):
        activation_transfer(student, teacher, [nn.Identity()])
    with pytest.raises(ValueError, match="got 0, 0 and 0"):
        activation_transfer([], [])
    with pytest.raises(ValueError, match="give a regressor"):
        activation_transfer(student, teacher)


# Gradients -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)]
    return nn.Sequential(*layers).double()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(4, 3, 6, 6, dtype=torch.float64), torch.tensor([0, 4, 2, 1])


def test_gradient_transfer_is_the_squared_distance_per_image(pair):
    J_S, J_T = pair[0][0].requires_grad_(), pair[0][0].detach().roll(1, 0).requires_grad_()
    loss = gradient_transfer(J_S, J_T)
    difference = (J_S - J_T).detach().numpy().reshape(4, -1)
    assert loss.item() == pytest.approx(np.mean(np.linalg.norm(difference, axis=1) ** 2), rel=1e-12)
    loss.backward()
    assert J_T.grad is None and gradient_transfer(J_S, J_S) == 0


def test_equation_5_is_the_gradient_of_half_the_squared_form(network, batch):
    """Equation (5): beta (J_S - J_T) times the mixed derivative, per image, with the half of equation (4)."""
    x, y = batch
    J_T = torch.randn_like(x)
    weight = network[0].weight
    J_S = input_gradient(network, x, y, create_graph=True)
    (ours,) = torch.autograd.grad(gradient_transfer(J_S, J_T) / 2, weight, retain_graph=True)
    (mixed,) = torch.autograd.grad(J_S, weight, grad_outputs=(J_S - J_T).detach() / len(x))
    torch.testing.assert_close(ours, mixed)


def test_gradient_penalty_is_the_mean_squared_length(batch):
    J = batch[0]
    expected = np.mean([np.linalg.norm(j) ** 2 for j in J.numpy()])
    assert gradient_penalty(J).item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(gradient_penalty(torch.cat([J, J])), gradient_penalty(J))


def test_gradients_are_refused_where_they_do_not_fit(batch):
    J = batch[0]
    with pytest.raises(ValueError, match="must see the same images"):
        gradient_transfer(J, J[:2])
    with pytest.raises(ValueError, match="4 dimensions"):
        gradient_penalty(J[0])


def test_symmetry_equals_equation_6_image_by_image(network, batch):
    x, y = batch
    total = 0.0
    for image, label in zip(x, y, strict=True):
        J = input_gradient(network, image[None], label[None])
        mirrored = input_gradient(network, image[None].flip(-1), label[None])
        total += (J - mirrored.flip(-1)).square().sum().item()
    assert gradient_symmetry(network, x, y).item() == pytest.approx(total / 4, rel=1e-9)


def test_symmetry_is_zero_for_a_mirrored_network_and_trains_another(network, batch):
    x, y = batch
    loss = gradient_symmetry(network, x, y)
    loss.backward()
    assert loss > 0 and network[0].weight.grad.abs().sum() > 0

    class Mirrored(nn.Module):
        def forward(self, x):
            return network.eval()(x) + network(x.flip(3))

    assert gradient_symmetry(Mirrored(), x, y) < 1e-20


def test_gradient_losses_have_finite_gradients_for_equal_networks(network, batch):
    J_T = input_gradient(network, *batch)
    gradient_transfer(input_gradient(network, *batch, create_graph=True), J_T).backward()
    assert all(weight.grad.isfinite().all() for weight in (network[0].weight, network[5].weight))
