import pytest
import torch

from atbook import protocols
from atbook.names import METHODS
from atbook.recipes import Recipe, learning_rate, stage, weights


def test_defaults_are_the_papers():
    recipe = Recipe()
    assert (recipe.batch, recipe.lr, recipe.momentum, recipe.weight_decay) == (128, 0.1, 0.9, 5e-4)
    assert (recipe.beta, recipe.alpha, recipe.temperature, recipe.mapping, recipe.p) == (1000, 0.9, 4, "f_sum", 2)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"epocs": 3}, r"recipe field 'epocs' is unknown: .*did you mean 'epochs'"),
        ({"colour": 3}, "recipe field 'colour' is unknown"),
        ({"epochs": "3"}, r"epochs='3' is not possible: input should be a valid integer"),
        ({"epochs": 0}, r"epochs=0 is not possible: .*greater than or equal to 1"),
        ({"epochs": True}, "epochs=True is not possible"),
        ({"lr": float("nan")}, "lr=nan is not possible"),
        ({"method": "att"}, "method 'att' is unknown: .*did you mean 'at'"),
        ({"dataset": "cifar"}, "dataset 'cifar' is unknown"),
        ({"student": "wrn-17-1"}, "depth 17, which is not 6n"),
        ({"p": 0.5}, "p=0.5 is not possible"),
        ({"groups": (4,)}, r"groups.0=4 is not possible"),
        ({"groups": (1, 3)}, r"groups=\[1, 3\] is not possible: wrn-16-1 has groups 0 to 2"),
        ({"groups": (3,), "student": "resnet18", "method": "at", "teacher": "resnet20"}, "resnet20 has groups 0 to 2"),
        ({"frozen_groups": 4}, "frozen_groups=4 is not possible: wrn-16-1 has 3 groups"),
        ({"frozen_groups": -1}, "frozen_groups=-1"),
        ({"image_size": 224}, "image_size is for dataset 'folder', not 'shapes'"),
        ({"image_size": 16, "dataset": "folder"}, "image_size=16"),
        ({"transfer_from": 30, "method": "at"}, "transfer_from=30 is not possible with epochs=30"),
        ({"transfer_from": 3, "method": "fitnet"}, "stages of its own: leave transfer_from out"),
        ({"groups": ()}, "groups="),
        ({"groups": (2, 2)}, r"groups=\[2, 2\] is not possible: name each group once"),
        ({"self": 3}, "recipe field 'self' is unknown"),
        ({"teacher": "wrn-16-2"}, "method 'student' uses none"),
        ({"teacher": "wrn-16-2", "method": "min-l2"}, "method 'min-l2' uses none"),
        ({"hint_part": 1.0}, "hint_part=1.0"),
        ({"student": "resnet21"}, "network 'resnet21' is unknown"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_fields_are_refused_in_one_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        Recipe(**fields)
    assert "\n" not in str(caught.value)


def test_recipes_are_frozen_and_survive_json():
    recipe = Recipe(method="at", teacher="wrn-16-2", groups=(2,))
    with pytest.raises(ValueError):
        recipe.epochs = 5
    assert Recipe(**recipe.model_dump(mode="json")) == recipe


def test_typed_in_text():
    recipe = Recipe.from_strings({"epochs": "3", "lr": "1e-3", "method": "at", "groups": "[2]", "train_images": "null"})
    assert recipe == Recipe(epochs=3, lr=1e-3, method="at", groups=(2,))
    named = Recipe.from_strings({"transfer_from": "50"}, protocols.fields("imagenet"))
    assert (named.transfer_from, named.epochs, named.student) == (50, 100, "resnet18")
    for fields in ({"epochs": "three"}, {"epochs": "3.5"}, {"method": "3"}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            Recipe.from_strings(fields)


@pytest.mark.parametrize(
    ("method", "start", "end"),
    [
        ("student", {"ce": 1}, {"ce": 1}),
        ("at", {"ce": 1, "at": 1000}, {"ce": 1, "at": 1000}),
        ("kd", {"ce": 0.1, "kd": 0.9}, {"ce": 0.1, "kd": 0.9}),
        ("at+kd", {"ce": 0.1, "kd": 0.9, "at": 1000}, {"ce": 0.1, "kd": 0.9, "at": 0}),
        ("f-act", {"ce": 1, "f-act": 1000}, {"ce": 1, "f-act": 0}),
        ("fitnet", {"hint": 1}, {"ce": 0.1, "kd": 0.9}),
        ("at+fitnet", {"hint": 1}, {"ce": 1, "at": 1000}),
        ("grad-at", {"ce": 1, "grad-at": 0.05}, {"ce": 1, "grad-at": 0.05}),
        ("symmetry", {"ce": 1, "symmetry": 0.05}, {"ce": 1, "symmetry": 0.05}),
        ("min-l2", {"ce": 1, "min-l2": 0.05}, {"ce": 1, "min-l2": 0.05}),
    ],
)
def test_weights_of_the_methods(method, start, end):
    assert weights(Recipe(method=method), 0.0) == pytest.approx(start)
    assert weights(Recipe(method=method), 1.0) == pytest.approx(end)


def test_every_method_has_weights_all_through():
    for method in METHODS:
        assert all(weights(Recipe(method=method), tenth / 10) for tenth in range(11))


def test_beta_is_the_methods_own_unless_given():
    assert Recipe(method="at+fitnet").beta == 1000 and Recipe(method="min-l2").beta == 0.1
    assert Recipe(method="min-l2", beta=3.0).beta == 3 and Recipe(method="at", beta=0.0).beta == 0


def test_two_stages_have_a_schedule_each():
    recipe = Recipe(method="fitnet", schedule="one-cycle", hint_part=0.25)
    assert [stage(recipe, at) for at in (0.0, 0.125, 0.25, 0.625, 1.0)] == [
        ("hint", 0), ("hint", 0.5), ("kd", 0), ("kd", 0.5), ("kd", 1),
    ]  # fmt: skip
    alone = Recipe(schedule="one-cycle")
    assert learning_rate(recipe, 0.125) == learning_rate(alone, 0.5) == learning_rate(recipe, 0.625)
    steps = Recipe(method="at+fitnet")  # the steps of 30, 60 and 80 % in each stage
    assert [learning_rate(steps, at) for at in (0.299, 0.3, 0.5, 0.52)] == pytest.approx([0.0008, 0.1, 0.1, 0.02])


def test_step_schedule_drops_at_the_authors_epochs():
    rates = [learning_rate(Recipe(), epoch / 200) for epoch in (0, 59, 60, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008])


def test_the_imagenet_protocol_is_the_papers():
    recipe = Recipe(**protocols.fields("imagenet"), method="at")
    rates = [learning_rate(recipe, epoch / 100) for epoch in (0, 29, 30, 59, 60, 89, 90, 99)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])
    assert weights(recipe, 59.999 / 100) == {"ce": 1.0} and weights(recipe, 60 / 100) == {"ce": 1.0, "at": 1000.0}
    assert (recipe.batch, recipe.weight_decay, recipe.groups, recipe.epochs) == (256, 1e-4, (2, 3), 100)


@pytest.mark.parametrize("epochs", [7, 100, 173])
def test_the_transfer_begins_with_its_epoch_to_the_step(epochs):
    for first in range(1, epochs):
        recipe = Recipe(method="at", epochs=epochs, transfer_from=first)
        assert "at" in weights(recipe, first / epochs) and "at" not in weights(recipe, (first - 0.001) / epochs)


def test_one_cycle_equals_torchs_own():
    steps, recipe = 101, Recipe(schedule="one-cycle", lr=0.3)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3, momentum=0.9)
    peak = (0.3 * (steps - 1) + 1) / steps  # puts torch's peak at 30 % of the way from the first step to the last
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.3, total_steps=steps, pct_start=peak, cycle_momentum=False
    )
    for step in range(steps):
        assert learning_rate(recipe, step / (steps - 1)) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step < steps - 1:
            theirs.step()
