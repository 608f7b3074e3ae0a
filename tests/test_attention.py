import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import GuidedBackprop, LayerGradCam, Saliency
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from atbook.attention import (
    Taps,
    f_max,
    f_sum,
    frozen_statistics,
    grad_cam,
    guided_backprop,
    input_gradient,
    normalize,
)

floats = st.floats(-100, 100, width=32, allow_subnormal=False)
activations = arrays(np.float64, (2, 3, 4, 5), elements=floats)
powers = st.sampled_from([1, 1.5, 2, 3]) | st.floats(1, 5)


@given(activations, powers)
def test_mapping_functions_equal_the_papers_formulas(A, p):
    by_sum, by_max = np.zeros((2, 4, 5)), np.zeros((2, 4, 5))
    for n, h, w in np.ndindex(2, 4, 5):
        values = [abs(A[n, c, h, w]) ** p for c in range(3)]
        by_sum[n, h, w], by_max[n, h, w] = sum(values), max(values)
    np.testing.assert_allclose(f_sum(torch.tensor(A), p), by_sum, rtol=1e-12)
    np.testing.assert_allclose(f_max(torch.tensor(A), p), by_max, rtol=1e-12)


def test_the_power_is_one_unless_given():
    A = torch.tensor([-2.0, 3.0]).reshape(1, 2, 1, 1)
    assert f_sum(A).item() == 5 and f_max(A).item() == 3


@given(activations, powers)
def test_order_of_channels_does_not_matter(A, p):
    A = torch.tensor(A)
    torch.testing.assert_close(f_sum(A, p), f_sum(A[:, [2, 0, 1]], p))
    torch.testing.assert_close(f_max(A, p), f_max(A[:, [2, 0, 1]], p))


@pytest.mark.parametrize("mapping", [f_sum, f_max])
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_signs_do_not_matter_and_gradients_are_finite_at_zero(mapping, p):
    A = torch.tensor([-2.0, 0.0, 1.0]).reshape(1, 3, 1, 1).requires_grad_()
    torch.testing.assert_close(mapping(A, p), mapping(-A, p))
    (gradient,) = torch.autograd.grad(mapping(A, p).sum(), A)
    assert gradient.isfinite().all() and gradient[0, 0] < 0


@pytest.mark.parametrize("mapping", [f_sum, f_max])
def test_half_precision_is_promoted(mapping):
    A = torch.full((1, 2, 2, 2), 300.0, dtype=torch.float16)  # 300 squared overflows float16
    assert mapping(A, 2).dtype == torch.float32 and mapping(A, 2).isfinite().all()
    assert mapping(A.double(), 2).dtype == torch.float64


@pytest.mark.parametrize("mapping", [f_sum, f_max])
def test_bad_input_is_refused(mapping):
    with pytest.raises(ValueError, match="p is 0.5"):
        mapping(torch.zeros(1, 1, 1, 1), 0.5)
    for p in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"p is {p}"):
            mapping(torch.zeros(1, 1, 1, 1), p)
    with pytest.raises(ValueError, match=r"4 dimensions .* \(3, 4, 4\)"):
        mapping(torch.zeros(3, 4, 4))


@given(arrays(np.float64, (3, 4, 5), elements=st.floats(0.01, 100)), st.floats(1e-30, 1e30))
def test_normalized_maps_have_length_one_whatever_the_scale(Q, scale):
    Q = torch.tensor(Q)
    torch.testing.assert_close(normalize(Q * scale), torch.nn.functional.normalize(Q.flatten(1)))


def test_normalize_works_image_by_image():
    Q = torch.rand(3, 4, 4)
    torch.testing.assert_close(normalize(Q)[1:2], normalize(Q[1:2]))


def test_an_all_zero_map_stays_zero_with_finite_gradients():
    Q = torch.zeros(2, 3, 3, requires_grad=True)
    normalize(Q).sum().backward()
    assert not normalize(Q).any() and Q.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tiny_maps_keep_their_direction(dtype):
    Q = torch.tensor([[[3.0, 4.0]]]).to(dtype) * 2**-20
    torch.testing.assert_close(normalize(Q), torch.tensor([[0.6, 0.8]]))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_maps_neither_vanish_nor_overflow(scale):
    Q = (torch.tensor([[[3.0, 4.0]]]) * scale).requires_grad_()
    torch.testing.assert_close(normalize(Q), torch.tensor([[0.6, 0.8]]))
    (gradient,) = torch.autograd.grad(normalize(Q)[0, 0] * scale, Q)  # 0.8^2 / 5 and -0.6 * 0.8 / 5, over the scale
    torch.testing.assert_close(gradient, torch.tensor([[[0.128, -0.096]]]))


def test_gradient_of_normalize():
    Q = torch.rand(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalize, Q)


def test_normalize_refuses_activations():
    with pytest.raises(ValueError, match="3 dimensions"):
        normalize(torch.zeros(1, 2, 3, 3))


@pytest.fixture
def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(inplace=False), nn.Conv2d(4, 5, 3)))


def test_taps_read_named_modules_and_leave(network):
    x = torch.rand(2, 3, 8, 8)
    with Taps(network, ["0", "1.1"]) as taps:
        y = network(x)
    torch.testing.assert_close(taps["0"], network[0](x))
    assert [tuple(A.shape) for A in taps] == [(2, 4, 6, 6), (2, 5, 4, 4)]
    assert torch.equal(taps["1.1"], y)
    assert not any(module._forward_hooks for module in network.modules())


def test_taps_leave_after_an_exception(network):
    with pytest.raises(RuntimeError), Taps(network, ["0"]):
        network(torch.rand(2, 1, 8, 8))
    assert not any(module._forward_hooks for module in network.modules())


def test_taps_refuse_what_they_cannot_read(network):
    network.add_module("2", nn.Sequential(nn.Sequential(nn.Identity())))
    with pytest.raises(ValueError, match="no module 'layer9': choose among 0, 1, 1.0, 1.1, 2, 2.0 or deeper ones"):
        Taps(network, ["layer9"])
    with pytest.raises(ValueError, match="compiled"):
        Taps(torch.compile(network), ["0"])
    with pytest.raises(ValueError, match="run the model inside"), Taps(network, ["0"]) as taps:
        taps["0"]


def test_one_name_may_be_given_alone(network):
    with Taps(network, "1.1") as taps:
        y = network(torch.rand(2, 3, 8, 8))
    assert torch.equal(taps["1.1"], y)


def test_taps_read_under_autocast_and_inference_mode(network):
    with Taps(network, ["1.1"]) as taps, torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        y = network(torch.rand(2, 3, 8, 8))
    assert taps["1.1"].dtype == torch.bfloat16 and torch.equal(taps["1.1"], y)


def test_a_part_that_was_compiled_is_refused_and_a_tapped_model_may_be_compiled_later(network):
    network[1].compile(backend="eager")
    with pytest.raises(ValueError, match="compiled"):
        Taps(network, ["0"])
    plain = nn.Sequential(nn.Conv2d(3, 4, 3))
    with Taps(plain, ["0"]) as taps:
        y = torch.compile(plain, backend="eager")(torch.rand(2, 3, 8, 8))
    torch.testing.assert_close(taps["0"], y)


def test_an_output_overwritten_in_place_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    with Taps(model, ["0"]) as taps:
        model(torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="output of '0' was overwritten"):
        taps["0"]


def test_an_output_that_is_no_tensor_is_refused():
    model = nn.Sequential(nn.LSTM(3, 4))
    with Taps(model, ["0"]) as taps:
        model(torch.rand(5, 2, 3))
    with pytest.raises(ValueError, match="'0' gives a tuple"):
        taps["0"]


# Gradients -----------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Two convolutions with batch norm in between; ReLU as a function, in place, or as a module."""

    def __init__(self, relu, batch_norm=True):
        super().__init__()
        self.conv0, self.conv1 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3)
        self.bn = nn.BatchNorm2d(6) if batch_norm else nn.Identity()
        self.relu0, self.relu1 = (nn.ReLU(), nn.ReLU()) if relu == "module" else (relu, relu)
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        x = self.relu0(self.bn(self.conv0(x)))
        return self.fc(self.relu1(self.conv1(x)).mean(dim=(2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Small("module").double()
    model(torch.randn(20, 3, 9, 9, dtype=torch.float64))  # running statistics that are not 0 and 1
    return model


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(6, 3, 9, 9, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])


def test_input_gradient_of_a_linear_model_is_known(batch):
    """For softmax regression J = W^T (p - onehot)."""
    x, y = batch
    linear = nn.Linear(3 * 81, 4).double()
    W, b = linear.weight.detach().numpy(), linear.bias.detach().numpy()
    z = x.flatten(1).numpy() @ W.T + b
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    expected = (p - np.eye(4)[y]) @ W
    J = input_gradient(nn.Sequential(nn.Flatten(), linear), x, y)
    np.testing.assert_allclose(J.flatten(1).numpy(), expected, rtol=1e-10)
    assert J.shape == x.shape and not J.requires_grad


def test_input_gradient_equals_captums(model, batch):
    x, y = batch
    model.eval()
    theirs = Saliency(lambda x: -model(x).log_softmax(1)).attribute(x.clone().requires_grad_(), target=y, abs=False)
    torch.testing.assert_close(input_gradient(model, x, y), theirs)


def test_an_images_gradient_does_not_depend_on_its_batch(model, batch):
    x, y = batch
    before = {name: value.clone() for name, value in model.state_dict().items()}
    J = input_gradient(model.train(), x, y)
    torch.testing.assert_close(J[2:3], input_gradient(model, x[2:3], y[2:3]))
    torch.testing.assert_close(J, input_gradient(model.eval(), x, y))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not x.requires_grad and all(weight.grad is None for weight in model.parameters())


def test_batch_statistics_are_used_on_request(model, batch):
    mean = model.bn.running_mean.clone()
    J = input_gradient(model.train(), *batch, frozen=False)
    assert not torch.allclose(J, input_gradient(model, *batch))
    assert not torch.equal(model.bn.running_mean, mean)


def test_frozen_statistics_come_back(model):
    model.train()
    with pytest.raises(ZeroDivisionError), frozen_statistics(model):
        assert model.conv0.training and not model.bn.training
        raise ZeroDivisionError
    assert model.bn.training


def test_input_gradient_can_be_differentiated_again(batch):
    """Double backpropagation, against finite differences in the weights."""
    x, y = batch[0][:2, :, :5, :5].contiguous(), batch[1][:2]
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 4)).double()
    names, weights = zip(*model.named_parameters(), strict=True)

    def size_of_gradient(*weights):
        def call(x):
            return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (x,))

        call.modules = list  # what `frozen_statistics` asks a model for: here no module has statistics
        return input_gradient(call, x, y, create_graph=True).square().sum()

    assert torch.autograd.gradcheck(size_of_gradient, weights)


def test_gradients_are_found_inside_no_grad_and_in_half_precision(model, batch):
    x, y = batch
    with torch.no_grad():
        assert torch.equal(input_gradient(model, x, y), input_gradient(model, x, y, create_graph=True))
    J = input_gradient(model.bfloat16(), x.bfloat16(), y)
    assert J.dtype == torch.bfloat16 and J.isfinite().all()


def test_a_second_derivative_does_not_reach_what_made_the_images(model, batch):
    x, y = batch
    brightness = torch.ones(1, dtype=torch.float64, requires_grad=True)
    input_gradient(model, brightness * x, y, create_graph=True).square().sum().backward()
    assert brightness.grad is None and model.conv0.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("method", [input_gradient, guided_backprop])
def test_a_path_that_cannot_be_differentiated_is_refused(batch, method):
    class Cut(Small):
        def forward(self, x):
            return super().forward(x.detach()) * 1.0

    model = Cut("module").double()
    with pytest.raises(ValueError, match="must be differentiable"):
        method(model, *batch)
    with pytest.raises(ValueError, match="must be differentiable"):
        method(model.requires_grad_(False), *batch)


def test_saliency_of_simonyan_is_the_maximum_of_the_gradient(model, batch):
    J = input_gradient(model, *batch)
    torch.testing.assert_close(f_max(J), J.abs().max(dim=1).values)


def test_guided_backprop_equals_captums(model, batch):
    x, y = batch
    with pytest.warns(UserWarning, match="hooks"):
        theirs = GuidedBackprop(model.eval()).attribute(x.clone().requires_grad_(), target=y)
    torch.testing.assert_close(guided_backprop(model, x, y), theirs)
    torch.testing.assert_close(guided_backprop(model.train(), x, y), theirs)  # batch norm is frozen


@pytest.mark.parametrize(
    "relu",
    [F.relu, torch.relu, torch.relu_, F.relu_, torch.Tensor.relu, torch.Tensor.relu_, lambda x: torch.relu(input=x)],
)
def test_guided_backprop_finds_every_relu(model, batch, relu):
    other = Small(relu).double()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(guided_backprop(other, *batch), guided_backprop(model, *batch))
    assert not torch.allclose(guided_backprop(other, *batch), input_gradient(other, *batch))


def test_guided_backprop_lets_nothing_through_a_relu_at_zero():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    J = guided_backprop(model, torch.zeros(1, 1, 2, 2), torch.tensor([0]))
    assert not J.any() and not J.requires_grad


def test_grad_cam_equals_captums(model, batch):
    x, y = batch
    model.eval()
    theirs = LayerGradCam(model, model.conv1).attribute(x.clone(), target=y).relu()
    Q = grad_cam(model, "conv1", x, y)
    torch.testing.assert_close(Q, theirs[:, 0].detach())
    assert Q.shape == (6, 5, 5) and (Q > 0).any() and not Q.requires_grad
    with torch.no_grad():
        assert torch.equal(grad_cam(model.train(), "conv1", x, y), Q) and model.bn.training


def test_grad_cam_refuses_what_it_cannot_read(model, batch):
    with pytest.raises(ValueError, match="no module 'layer4'"):
        grad_cam(model, "layer4", *batch)
    assert not any(module._forward_hooks for module in model.modules())
