import math

import pytest
import torch

from atbook.mechanisms.two_level import cluster_filters, fuse, keep, object_score, part_places, similarity


def test_the_surest_window_is_kept_even_if_no_window_will_do():
    confidence = torch.tensor([[0.9, 0.2, 0.6], [0.1, 0.3, 0.2]])
    assert keep(confidence).tolist() == [[True, False, True], [False, True, False]]


def test_object_score_coded_anew():
    torch.manual_seed(0)
    p, kept = torch.rand(4, 6, 3), torch.rand(4, 6) < 0.5
    kept[:, 0] = True
    for n in range(4):
        chosen = [p[n, i] for i in range(6) if kept[n, i]]
        torch.testing.assert_close(object_score(p, kept)[n], sum(chosen) / len(chosen))


def test_similarity_coded_anew():
    torch.manual_seed(0)
    weight = torch.randn(4, 2, 3, 3)
    for i in range(4):
        for j in range(4):
            a, b = weight[i].flatten().tolist(), weight[j].flatten().tolist()
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            expected = dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
            assert similarity(weight)[i, j].item() == pytest.approx(expected, abs=1e-5)


def test_filters_of_one_kind_are_clustered_whatever_their_size():
    torch.manual_seed(0)
    kinds = torch.eye(3)[:, :, None, None].repeat(1, 1, 2, 2)
    kind = torch.tensor([0, 1, 2, 2, 1, 0, 0, 1, 2])
    weight = (kinds[kind] + 0.05 * torch.randn(9, 3, 2, 2)) * torch.rand(9, 1, 1, 1).add(0.1)
    clusters = cluster_filters(weight, parts=3)
    assert clusters.dtype == torch.int64 and set(clusters.tolist()) == {0, 1, 2}
    assert ((clusters[:, None] == clusters) == (kind[:, None] == kind)).all()


def test_a_part_is_where_the_sum_of_its_filters_is_highest():
    torch.manual_seed(0)
    activation, clusters = torch.rand(5, 4, 3, 6), torch.tensor([1, 0, 1, 1])
    allowed = torch.rand(5, 3, 6) < 0.5
    allowed[:, 1, 1] = True
    places = part_places(activation, clusters, allowed)
    for n in range(5):
        for part, filters in ((0, [1]), (1, [0, 2, 3])):
            at = {(r, c): activation[n, filters, r, c].sum().item() for r in range(3) for c in range(6)}
            best = max((place for place in at if allowed[n][place]), key=at.get)
            assert tuple(places[n, part].tolist()) == best


def test_fused_by_hand():
    fused = fuse(torch.tensor([[0.2, 0.8]]), torch.tensor([[3.0, -1.0]]))
    torch.testing.assert_close(fused, torch.tensor([[1.7, 0.3]]))
