import pytest
import torch

from atbook.scores import chance, energy, pointing_game


@pytest.fixture
def masks():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[:, :4, :4] = True  # a quarter of the image
    return masks


def test_pointing_game(masks):
    Q = torch.zeros(2, 8, 8)
    Q[0, 1, 2] = Q[1, 6, 6] = 1.0
    assert pointing_game(Q, masks).tolist() == [True, False]


def test_small_maps_are_enlarged(masks):
    Q = torch.zeros(2, 2, 2)
    Q[0, 0, 0] = Q[1, 1, 1] = 1.0
    assert pointing_game(Q, masks).tolist() == [True, False]
    assert energy(Q, masks)[0] > 0.6 > 0.1 > energy(Q, masks)[1]


def test_energy_of_known_maps(masks):
    Q = torch.ones(2, 8, 8)
    Q[1, :4, :4] = 3.0
    torch.testing.assert_close(energy(Q, masks), torch.tensor([0.25, 0.5]))
    torch.testing.assert_close(energy(Q[:1], masks[:1]), chance(masks[:1]))


def test_a_random_map_scores_chance(masks):
    torch.manual_seed(0)
    Q = torch.rand(4000, 8, 8)
    many = masks[:1].expand(4000, 8, 8)
    assert pointing_game(Q, many).float().mean().item() == pytest.approx(chance(many).mean().item(), abs=0.02)


def test_bad_input_is_refused(masks):
    with pytest.raises(ValueError, match="same N"):
        pointing_game(torch.ones(3, 8, 8), masks)
    with pytest.raises(ValueError, match="negative"):
        energy(-torch.ones(2, 8, 8), masks)
