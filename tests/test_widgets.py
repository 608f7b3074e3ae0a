"""Interactive figures, in a real browser and from file://: their formulas against the package's, keyboard, pointer."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import atbook
from atbook.attention import f_max, f_sum, normalize
from atbook.data import load, standardize
from atbook.losses import attention_transfer, distillation
from atbook.models import build
from atbook.recipes import Recipe
from atbook.runs import Data, Run
from atbook.scores import energy, pointing_game
from atbook.widgets import attention_explorer, loss_lab, runs_lab, temperature_lab, transfer_lab

STATIC = Path(atbook.__file__).with_name("static")
FIGURE = '<figure id="fig"><a href="#"><img src="data:," alt="still"></a><figcaption>Caption</figcaption></figure>'


@pytest.fixture
def show(browser, tmp_path):
    """Opens a page with a lab, as a file; a message of the console is an error."""

    def opened(body: str, javascript: bool = True, **options):
        page = browser.new_context(java_script_enabled=javascript, **options).new_page()
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.said = said
        head = f'<meta charset="utf-8"><link rel="stylesheet" href="{STATIC.as_uri()}/labs.css">'
        place = tmp_path / "page.html"
        place.write_text(f'{head}{body}<script src="{STATIC.as_uri()}/labs.js"></script>', encoding="utf-8")
        page.goto(place.as_uri())
        return page

    return opened


@pytest.fixture
def math(show):
    page = show("")
    return lambda call, **given: page.evaluate(
        """([call, given]) =>
        new Function('m', ...Object.keys(given), 'return m.' + call)(atbookLabs.math, ...Object.values(given))""",
        [call, {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in given.items()}],
    )


@pytest.mark.parametrize("p", [1.0, 2.0, 2.7, 16.0])
def test_maps_are_those_of_the_package(math, p):
    A = torch.randn(1, 5, 4, 4, dtype=torch.float64)
    for call, f in (("fSum(A, 5, p)", f_sum), ("fMax(A, 5, p)", f_max)):
        found = torch.tensor(math(call, A=A.flatten(), p=p), dtype=torch.float64)
        torch.testing.assert_close(found, f(A, p=p).flatten())


def test_losses_and_gradient_are_those_of_the_package(math):
    s, t = torch.rand(2, 1, 1, 3, 3, dtype=torch.float64)
    identity = lambda A: A[:, 0]  # noqa: E731  maps instead of activations
    s.requires_grad_()
    given = {"Q": s.detach().flatten(), "R": t.flatten()}
    for call, form in (("squaredLoss(Q, R)", "squared"), ("normLoss(Q, R)", "norm")):
        loss = attention_transfer([s], [t], mapping=identity, form=form)
        assert math(call, **given) == pytest.approx(loss.item(), rel=1e-9)
    attention_transfer([s], [t], mapping=identity).backward()
    torch.testing.assert_close(torch.tensor(math("squaredGradient(Q, R)", **given)).double(), s.grad.flatten())
    unit = torch.tensor(math("normalize(Q)", **given)).double()
    torch.testing.assert_close(unit, normalize(s.detach()[:, 0])[0])
    assert math("normalize([0, 0, 0])") == [0, 0, 0]


@pytest.mark.parametrize("T", [1.0, 4.0, 20.0])
def test_distillation_is_that_of_the_package(math, T):
    z_S, z_T = 3 * torch.randn(2, 1, 6, dtype=torch.float64)
    given = {"S": z_S[0], "Z": z_T[0], "T": T}
    assert math("distillation(S, Z, T)", **given) == pytest.approx(distillation(z_S, z_T, T).item(), rel=1e-9)
    p = (z_T / T).softmax(dim=1)
    assert math("entropy(m.softmax(Z, T))", **given) == pytest.approx(-(p * p.log()).sum().item(), rel=1e-9)
    assert math("softmax([1000, 0], 1)") == [1, 0]


@pytest.mark.parametrize("size", [3, 8, 16])
def test_enlarging_and_scores_are_those_of_the_package(math, size):
    Q, mask = torch.rand(1, size, size), torch.rand(1, 32, 32) > 0.7
    large = math("enlarge(Q, size, 32)", Q=Q.flatten(), size=size)
    expected = F.interpolate(Q[None], size=32, mode="bilinear", align_corners=False).flatten()
    torch.testing.assert_close(torch.tensor(large), expected, rtol=1e-5, atol=1e-6)
    given = {"Q": torch.tensor(large), "mask": mask.int().flatten()}
    assert math("energy(Q, mask)", **given) == pytest.approx(energy(Q, mask).item(), rel=1e-5)
    assert math("pointing(Q, mask)", **given) == pointing_game(Q, mask).item()


@pytest.fixture(scope="module")
def shapes():
    return load("shapes", "test").take(10)


def test_the_explorer_answers_the_keyboard_with_the_packages_numbers(show, shapes):
    torch.manual_seed(0)
    network = build("wrn-10-1").eval()
    lab = attention_explorer(shapes, {"one": network, "two": build("wrn-10-1").eval()}, chosen=(3, 5), figure="fig")
    assert len(lab.html()) < 300_000
    page = show(FIGURE + lab.html())
    assert not page.locator("img").is_visible() and page.locator("figure figcaption").is_visible()
    page.get_by_label("image").first.select_option("1")
    page.get_by_label("group").select_option("1")
    page.get_by_label("p", exact=True).focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    p = 2 ** (1 + 10 * 0.05)
    with torch.no_grad():
        A = network.groups(standardize(shapes.images[5:6]))[1][2].abs()
    unit = network_unit(lab, 1)
    A = (torch.stack([A / unit]).round() * unit)[0]  # as it was sent
    expected = energy(f_sum(A, p=p), shapes.masks[5:6]).item()
    assert float(page.locator(".atbook-lab").get_attribute("data-energy")) == pytest.approx(expected, rel=1e-4)
    assert page.locator("output").inner_text() == f"{p:.2f}"
    page.get_by_label("mapping").select_option("1")
    expected = energy(f_max(A, p=p), shapes.masks[5:6]).item()
    assert float(page.locator(".atbook-lab").get_attribute("data-energy")) == pytest.approx(expected, rel=1e-4)
    assert page.said == []


def network_unit(lab, group: int) -> float:
    return lab.content["networks"][0]["groups"][group]["scale"]


def test_the_loss_laboratory_answers_pointer_and_keyboard(show):
    Q_S, Q_T = torch.rand(2, 4, 4).double().round(decimals=4)
    page = show(loss_lab(Q_S, Q_T).html())
    place, cell = page.locator(".atbook-lab"), page.locator(".lab-grid button")

    def agree():
        for form, key in (("squared", "data-squared"), ("norm", "data-norm")):
            loss = attention_transfer([Q_S[None, None]], [Q_T[None, None]], mapping=lambda A: A[:, 0], form=form)
            assert float(place.get_attribute(key)) == pytest.approx(loss.item(), rel=1e-6)

    agree()
    high = Q_S.max().item()
    cell.nth(5).dispatch_event("pointerdown")
    Q_S[1, 1] += high / 8
    agree()
    cell.nth(0).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("+")
    Q_S[1, 1] += high / 8
    agree()
    before = float(place.get_attribute("data-squared"))
    page.get_by_role("button", name="twice as strong").click()
    assert float(place.get_attribute("data-squared")) == pytest.approx(before, rel=1e-9)
    page.get_by_role("button", name="one step").click()
    assert float(place.get_attribute("data-squared")) < before
    page.get_by_role("button", name="the teacher's").click()
    assert float(place.get_attribute("data-squared")) == pytest.approx(0, abs=1e-12)
    assert page.said == []


def test_the_temperature_laboratory_shows_the_packages_loss(show):
    z_S, z_T = 3 * torch.randn(2, 3, 4).double().round(decimals=3)
    page = show(temperature_lab(z_S, z_T, torch.tensor([0, 3, 1]), ["a", "b", "c", "d"]).html())
    page.get_by_label("image").select_option("2")
    page.get_by_label("temperature").focus()
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    expected = distillation(z_S[2:], z_T[2:], 2**2.0).item()
    assert float(page.locator(".atbook-lab").get_attribute("data-loss")) == pytest.approx(expected, rel=1e-3)
    assert page.locator("text.lab-right").text_content() == "b" and page.said == []


@pytest.fixture
def moving(shapes):
    """A student's map on its way to the teacher's, in five steps."""
    Q_S, Q_T = torch.rand(2, 8, 8)
    return transfer_lab(shapes.images[0], Q_T, {n * n: Q_S + n / 4 * (Q_T - Q_S) for n in range(5)}, figure="fig")


def test_the_moving_picture_moves_and_can_be_stopped_with_the_keyboard(show, moving):
    page = show(FIGURE + moving.html())
    place, time = page.locator(".atbook-lab"), page.get_by_label("steps of training")
    page.wait_for_function("document.querySelector('input[type=range]').value === '2'")
    page.get_by_role("button", name="pause").focus()
    page.keyboard.press("Space")
    before = time.input_value()
    page.wait_for_timeout(400)
    assert time.input_value() == before and page.get_by_role("button", name="play").count() == 1
    time.focus()
    page.keyboard.press("Home")
    assert page.locator("output").inner_text().startswith("0, ")
    first = float(place.get_attribute("data-cosine"))
    page.keyboard.press("End")
    assert page.locator("output").inner_text() == "16, cosine of the two maps 1.00"
    assert float(place.get_attribute("data-cosine")) == pytest.approx(1, abs=1e-9) and first < 0.95
    assert page.said == []


def test_the_moving_picture_shows_the_packages_cosine(show, shapes):
    Q_S, Q_T = torch.rand(2, 8, 8)
    page = show(transfer_lab(shapes.images[0], Q_T, {0: Q_S}).html())
    expected = (normalize(Q_S[None]) * normalize(Q_T[None])).sum().item()
    shown = float(page.locator(".atbook-lab").get_attribute("data-cosine"))
    assert shown == pytest.approx(expected, abs=2e-3)  # maps are sent in 255 steps


def test_the_moving_picture_stands_still_where_less_motion_is_asked_for(show, moving):
    page = show(FIGURE + moving.html(), reduced_motion="reduce")
    assert page.get_by_role("button", name="play").is_visible()
    page.wait_for_timeout(400)
    assert page.locator("output").inner_text().startswith("16, ") and page.said == []


@pytest.fixture
def runs(tmp_path):
    data = Data(label="shapes", train=100, test=20, classes=10, fingerprint="0")
    made = []
    for method, seed, errors in (("student", 0, (50.0, 40.0)), ("at", 0, (45.0, 30.0)), ("at", 1, (44.0, 35.5))):
        history = [{"epoch": n + 1, "test_error": error} for n, error in enumerate(errors)]
        teacher = {} if method == "student" else {"teacher": "wrn-16-2"}
        fields = {"recipe": Recipe(method=method, seed=seed, epochs=2, **teacher), "history": history, "provenance": {}}
        made.append(Run(folder=tmp_path / f"{method}-{seed}", key="0", status="finished", data=data, **fields))
    return made


def test_the_table_of_runs_sorts_and_filters(show, runs):
    page = show(runs_lab(runs).html())
    first = page.locator("tbody tr td:first-child")
    page.get_by_role("button", name="test error").click()
    assert first.all_inner_texts() == ["at-0", "at-1", "student-0"]
    page.get_by_role("button", name="test error").click()
    assert first.all_inner_texts() == ["student-0", "at-1", "at-0"]
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("test error")
    page.get_by_label("filter").fill("method=at seed=1")
    assert first.all_inner_texts() == ["at-1"] and "1 of 3 runs" in page.locator(".lab-said").inner_text()
    page.get_by_label("filter").fill("at- nothing")
    assert first.count() == 0 and page.said == []


def test_without_javascript_the_picture_stands(show, shapes):
    lab = attention_explorer(shapes, {"one": build("wrn-10-1").eval()}, chosen=(0,), figure="fig")
    page = show(FIGURE + lab.html(), javascript=False)
    assert page.locator("img").is_visible() and page.locator("canvas").count() == 0


def test_a_word_in_the_data_cannot_end_it(show):
    lab = temperature_lab(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), ["</script><b>", "b"])
    page = show(lab.html())
    assert page.locator("b").count() == 0 and "</script><b>" in page.locator("svg text").first.text_content()


def test_in_jupyter_it_is_a_widget_and_elsewhere_html():
    bundle, _ = loss_lab(torch.ones(2, 2), torch.ones(2, 2))._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle and bundle["text/plain"] == "<Lab loss>"
    held = bundle["text/html"].partition('json">')[2].partition("</script>")[0]
    assert json.loads(held) == {"size": 2, "student": [1.0] * 4, "teacher": [1.0] * 4}


def test_what_does_not_fit_is_refused(shapes):
    with pytest.raises(ValueError, match="has no object masks"):
        attention_explorer(type(shapes)(shapes.images, shapes.labels, shapes.classes, None, "x"), {}, (0,))
    with pytest.raises(ValueError, match=r"one size, got \(2, 3\)"):
        loss_lab(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="negative"):
        loss_lab(-torch.ones(2, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="at least one of the student"):
        transfer_lab(shapes.images[0], torch.ones(2, 2), {})
    with pytest.raises(ValueError, match="negative"):
        transfer_lab(shapes.images[0], torch.ones(2, 2), {0: -torch.ones(2, 2)})
    with pytest.raises(ValueError, match="for 3 labels and 2 classes"):
        temperature_lab(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(3), ["a", "b"])
