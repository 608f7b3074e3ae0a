import pytest
import torch

from atbook.attention import normalize
from atbook.demos import bridge as demo
from atbook.demos.toy import digits


@pytest.fixture
def few(monkeypatch):
    """A twentieth of the images, and no teacher from before."""
    task = demo.task
    monkeypatch.setattr(demo, "task", lambda n, *rest: task(n // 20, *rest))
    demo.teacher.cache_clear()
    yield
    demo.teacher.cache_clear()


def test_the_digit_is_whole_but_for_clutter_and_stands_on_its_square():
    images, labels, places = demo.task(50, True, 7)
    assert images.shape == (50, 1, 32, 32) and labels.shape == (50,) and places.shape == (50, 32, 32)
    known, classes = digits(True)
    for n in range(50):
        rows, columns = (places[n].amax(dim=d).nonzero()[:, 0] for d in (1, 0))
        assert len(rows) == len(columns) == 16 and places[n].sum() == 256
        patch = images[n, 0, rows[0] : rows[0] + 16, columns[0] : columns[0] + 16]
        under = (known <= patch).flatten(1).all(dim=1) & (classes == labels[n])
        assert under.any()
        assert images[n, 0][places[n] == 0].amax() > 0.5  # clutter elsewhere, bright


def test_new_images_have_digits_not_trained_on():
    images, _, places = demo.task(20, False, 7)
    known, _ = digits(True)
    new, _ = digits(False)
    exact = 0
    for image, place in zip(images[:, 0], places, strict=True):
        patch = image[place > 0].view(16, 16)
        assert not (known == patch).flatten(1).all(dim=1).any()
        exact += (new <= patch).flatten(1).all(dim=1).any()
    assert exact == 20


def test_the_activation_is_what_the_gate_let_through():
    torch.manual_seed(0)
    x, model = torch.rand(3, 1, 32, 32), demo.Network(width=4, gate=True).eval()
    F = model.first(x)
    logits, A = model(x)
    torch.testing.assert_close(A, F * model.gate.gates(F)[:, None])
    torch.testing.assert_close(logits, model.last(A))
    plain = demo.Network(width=4, gate=False).eval()
    assert torch.equal(plain(x)[1], plain.first(x))


def test_what_is_wanted_of_the_student(few):
    images, _, places = demo.task(400, True, 7)
    model = demo.teacher(100, 2)
    F = model.first(images)
    mask = model.gate.gates(F)[:, None]
    found = {arm: demo.wanted(arm, 100, 2, images, places) for arm in demo.ARMS[1:]}
    torch.testing.assert_close(found["teacher's mask"], mask)
    torch.testing.assert_close(found["another image's mask"], torch.cat([mask[-1:], mask[:-1]]))
    torch.testing.assert_close(found["attention transfer"], F * mask)
    assert torch.equal(found["true place"], places[:, None])


def test_the_map_is_weighed_against_the_labels(few, monkeypatch):
    asked = []
    monkeypatch.setattr(demo, "fit", lambda model, loss, data, *_, **__: asked.append((model, loss, data)))
    for arm in demo.ARMS[1:]:
        demo.teacher.cache_clear()
        demo.run(arm, 100, 2)
        model, loss, (x, y, target) = asked[-1]
        logits, A = model(x)
        p = 2 if arm == "attention transfer" else 1
        Q_S, Q_T = ((B.abs() ** p).sum(dim=1) for B in (A, target))
        if arm == "true place":
            Q_T = Q_T.view(-1, 16, 2, 16, 2).mean(dim=(2, 4))
        difference = (normalize(Q_S) - normalize(Q_T)).square().sum(dim=1).mean() / 256
        expected = torch.nn.functional.cross_entropy(logits, y) + demo.BETA * difference
        torch.testing.assert_close(loss(x, y, target), expected)


@pytest.mark.parametrize("arm", demo.ARMS)
def test_every_arm_runs_and_twice_the_same(arm, few):
    score, picture = demo.run(arm, seed=100, steps=2)
    demo.teacher.cache_clear()
    again, same = demo.run(arm, seed=100, steps=2)
    assert all(torch.equal(picture[key], same[key]) for key in picture)
    assert score == again and 0 <= score <= 100 and 0 <= picture["inside"] <= 100
    assert picture["images"].shape == (6, 1, 32, 32) and picture["map"].shape == (6, 16, 16)
    assert ("mask" in picture) == ("teacher" in picture) == (arm not in ("plain", "true place"))


def test_the_student_does_not_depend_on_whether_the_teacher_was_there(few):
    first, _ = demo.run("teacher's mask", seed=100, steps=2)
    assert demo.teacher.cache_info().misses == 1
    assert demo.run("teacher's mask", seed=100, steps=2)[0] == first
    assert demo.teacher.cache_info().misses == 1


def test_a_wrong_arm_is_refused_by_name():
    with pytest.raises(ValueError, match="'teacher mask' is unknown.*did you mean"):
        demo.run("teacher mask", seed=100)
