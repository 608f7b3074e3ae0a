import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from atbook.attention import Taps, f_max, f_sum, normalize

floats = st.floats(-100, 100, width=32, allow_subnormal=False)
activations = arrays(np.float64, (2, 3, 4, 5), elements=floats)
powers = st.floats(1, 5)


@given(activations, powers)
def test_mapping_functions_equal_the_papers_formulas(A, p):
    by_sum, by_max = np.zeros((2, 4, 5)), np.zeros((2, 4, 5))
    for n, h, w in np.ndindex(2, 4, 5):
        values = [abs(A[n, c, h, w]) ** p for c in range(3)]
        by_sum[n, h, w], by_max[n, h, w] = sum(values), max(values)
    np.testing.assert_allclose(f_sum(torch.tensor(A), p), by_sum, rtol=1e-12)
    np.testing.assert_allclose(f_max(torch.tensor(A), p), by_max, rtol=1e-12)


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
    with pytest.raises(ValueError, match="p is nan"):
        mapping(torch.zeros(1, 1, 1, 1), float("nan"))
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
    with pytest.raises(ValueError, match="no module 'layer9'"):
        Taps(network, ["layer9"])
    with pytest.raises(ValueError, match="compiled"):
        Taps(torch.compile(network), ["0"])
    with pytest.raises(ValueError, match="run the model inside"), Taps(network, ["0"]) as taps:
        taps["0"]
