import pytest
import torch
from scipy.stats import spearmanr

from atbook.scores import (
    chance,
    chance_iou,
    energy,
    expected_calibration_error,
    iou,
    pointing_game,
    rank_correlation,
)


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


def test_iou_of_known_maps(masks):
    Q = torch.rand(2, 8, 8)
    Q[0, :4, :4] += 1  # the brightest quarter is the object
    Q[1, 4:, 4:] += 1
    torch.testing.assert_close(iou(Q, masks, 0.75), torch.tensor([1.0, 0.0]))
    Q[0, 0, :] -= 2  # of the object's four columns in the first row none is left
    assert iou(Q, masks, 1 - 12 / 64)[0] == pytest.approx(12 / 16)


def test_a_random_map_has_the_iou_of_chance(masks):
    torch.manual_seed(0)
    many = masks[:1].expand(4000, 8, 8)
    assert iou(torch.rand(4000, 8, 8), many).mean().item() == pytest.approx(chance_iou(many).mean().item(), abs=0.01)


@pytest.mark.parametrize("quantile", [0.0, 1.0, -1, float("nan")])
def test_a_quantile_that_is_none_is_refused(masks, quantile):
    with pytest.raises(ValueError, match="between 0 and 1"):
        iou(torch.ones(2, 8, 8), masks, quantile)


def test_rank_correlation_equals_scipys_image_by_image():
    torch.manual_seed(0)
    Q, other = torch.rand(2, 5, 6, 6).unbind()
    Q = (4 * Q).round()  # with ties
    expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(Q, other, strict=True)]
    assert rank_correlation(Q, other).tolist() == pytest.approx(expected)


def test_rank_correlation_ignores_powers_and_has_chance_level_zero():
    torch.manual_seed(0)
    Q, other = torch.rand(2, 500, 8, 8).unbind()
    torch.testing.assert_close(rank_correlation(Q**3, Q), torch.ones(500, dtype=torch.float64))
    torch.testing.assert_close(rank_correlation(-Q, Q), -torch.ones(500, dtype=torch.float64))
    assert abs(rank_correlation(Q, other).mean()) < 0.02
    assert rank_correlation(torch.ones(1, 4, 4), torch.rand(1, 4, 4)).isnan()


def test_rank_correlation_refuses_other_sizes():
    with pytest.raises(ValueError, match="of one shape"):
        rank_correlation(torch.ones(2, 8, 8), torch.ones(2, 4, 4))
    with pytest.raises(ValueError, match="of one shape"):
        rank_correlation(torch.ones(8, 8), torch.ones(8, 8))


def ece_by_definition(confidence, right, bins):
    total = 0.0
    for b in range(bins):
        held = [
            (c, r)
            for c, r in zip(confidence.tolist(), right.tolist(), strict=True)
            if b / bins < c <= (b + 1) / bins or (b == 0 and c == 0)
        ]
        if held:
            accuracy = sum(r for _, r in held) / len(held)
            sureness = sum(c for c, _ in held) / len(held)
            total += len(held) / len(right) * abs(accuracy - sureness)
    return total


@pytest.mark.parametrize("bins", [1, 7, 10, 15])
def test_calibration_error_equals_its_definition(bins):
    torch.manual_seed(0)
    confidence = torch.cat([torch.rand(300, dtype=torch.float64), torch.arange(11, dtype=torch.float64) / 10])
    right = torch.rand(311) < 0.6
    found = expected_calibration_error(confidence, right, bins)
    assert found == pytest.approx(ece_by_definition(confidence, right, bins), abs=1e-12)
    assert found >= abs(confidence.mean() - right.double().mean()).item() - 1e-12


def test_calibration_error_of_known_answers():
    right = torch.tensor([True, True, True, False])
    assert expected_calibration_error(torch.full((4,), 0.75), right) == pytest.approx(0)
    assert expected_calibration_error(torch.ones(4, dtype=torch.float16), right) == pytest.approx(0.25)
    assert expected_calibration_error(torch.tensor([0.9, 0.9, 0.1, 0.1]), right, bins=2) == pytest.approx(0.25)
    assert expected_calibration_error(torch.tensor([0.9, 0.9, 0.1, 0.1]), right, bins=1) == pytest.approx(0.25)
    assert expected_calibration_error(torch.tensor([1.0, 1.0, 0.0, 1.0]), right, bins=2) == pytest.approx(0.5)
    assert expected_calibration_error(torch.tensor([1.0, 1.0, 0.0, 1.0]), right, bins=1) == pytest.approx(0)


@pytest.mark.parametrize(
    ("confidence", "right", "bins", "said"),
    [
        (torch.rand(3), torch.ones(2, dtype=torch.bool), 15, "same N"),
        (torch.rand(2, 1), torch.ones(2, 1, dtype=torch.bool), 15, "same N"),
        (torch.rand(0), torch.ones(0, dtype=torch.bool), 15, "at least one"),
        (torch.rand(2), torch.ones(2), 15, "right bool"),
        (torch.tensor([0.5, 1.5]), torch.ones(2, dtype=torch.bool), 15, "between 0 and 1"),
        (torch.tensor([0.5, -0.1]), torch.ones(2, dtype=torch.bool), 15, "between 0 and 1"),
        (torch.tensor([0.5, float("nan")]), torch.ones(2, dtype=torch.bool), 15, "between 0 and 1"),
        (torch.rand(2), torch.ones(2, dtype=torch.bool), 0, "1 or more"),
    ],
)
def test_calibration_error_refuses_bad_input(confidence, right, bins, said):
    with pytest.raises(ValueError, match=said):
        expected_calibration_error(confidence, right, bins)
