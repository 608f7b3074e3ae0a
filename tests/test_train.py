import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from atbook import train as training
from atbook.attention import input_gradient
from atbook.compat import check_compiler
from atbook.data import Images, standardize
from atbook.losses import (
    activation_transfer,
    attention_transfer,
    distillation,
    gradient_penalty,
    gradient_symmetry,
    gradient_transfer,
    hint,
)
from atbook.models import build
from atbook.names import METHODS, TEACHERLESS
from atbook.recipes import Recipe
from atbook.runs import Run
from atbook.train import evaluate, train, train_together


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    """Random images with a hint of their class in the colour: 60 to train on, 40 to test on."""

    def load(name, split, root=None, image_size=None):
        generator = torch.Generator().manual_seed(len(split))
        labels = torch.arange(60 if split == "train" else 40) % 2
        images = torch.randint(0, 200, (len(labels), 3, 32, 32), dtype=torch.uint8, generator=generator)
        images[labels == 1, 0] += 50
        return Images(images, labels, ("dark", "red"), None, "two colours")

    monkeypatch.setattr(training, "load", load)


SMALL = {"student": "wrn-10-1", "batch": 25, "epochs": 3}


def weights_of(run):
    return (run.folder / "weights.safetensors").read_bytes()


@pytest.fixture
def teacher(tmp_path):
    return train(Recipe(**SMALL | {"epochs": 1, "seed": 9}), tmp_path / "teacher", progress=False)


def test_a_finished_run(tmp_path):
    run = train(Recipe(**SMALL), tmp_path / "run", progress=False)
    assert run == Run.load(run.folder) and run.status == "finished" and len(run.history) == 3
    assert run.data.label == "two colours" and run.data.train == 60
    assert {path.name for path in run.folder.iterdir()} == {"receipt.json", "weights.safetensors"}
    assert evaluate(run.model(), training.load("", "test")) == run.test_error
    assert run.history[-1]["train_error"] < 40 < run.history[0]["train_error"] + 20  # it learns


def test_regressors_whose_term_begins_late(tmp_path, teacher):
    """Weights without a gradient in the first epochs join the others, without a momentum, when they get one."""
    wide = train(Recipe(**SMALL | {"student": "wrn-10-2", "epochs": 1}), tmp_path / "wide", progress=False)
    late = {"method": "f-act", "teacher": "wrn-10-2", "transfer_from": 1, "schedule": "one-cycle"}  # no fresh start
    run = train(Recipe(**SMALL, **late), tmp_path / "run", teacher=wide, progress=False)
    assert run.status == "finished" and ["f-act" in row for row in run.history] == [False, True, True]


def test_same_recipe_same_weights_other_seed_other_weights(tmp_path):
    a, b = (weights_of(train(Recipe(**SMALL), tmp_path / name, progress=False)) for name in "ab")
    c = weights_of(train(Recipe(**SMALL, seed=1), tmp_path / "c", progress=False))
    assert a == b != c


def test_first_step_equals_plain_torch(tmp_path):
    """One step on the whole set without augmentation, against SGD written out by hand."""
    recipe = Recipe(student="wrn-10-1", batch=60, epochs=1, augment="none")
    trained = train(recipe, tmp_path / "run", progress=False).model()
    torch.manual_seed(recipe.seed)
    model, data = build("wrn-10-1", 2), training.load("", "train")
    loss = F.cross_entropy(model(standardize(data.images)), data.labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for new, old, gradient in zip(trained.parameters(), model.parameters(), gradients, strict=True):
        torch.testing.assert_close(new, old - 0.1 * (gradient + 5e-4 * old), rtol=1e-3, atol=1e-5)


def test_four_epochs_of_one_step_equal_plain_torch(tmp_path):
    """Momentum, weight decay and the drops at 30 and 60 %, after each of which momentum starts anew, by hand."""
    fields = {"lr": 0.02, "momentum": 0.8, "weight_decay": 0.5, "augment": "none"}
    run = train(Recipe(student="wrn-10-1", batch=60, epochs=4, **fields), tmp_path / "run", progress=False)
    torch.manual_seed(0)
    model, data = build("wrn-10-1", 2), training.load("", "train")
    weights, velocity = list(model.parameters()), None
    for epoch, factor in enumerate((1, 1, 0.2, 0.2**2)):
        loss = F.cross_entropy(model(standardize(data.images)), data.labels)
        gradients = [g + 0.5 * w.detach() for g, w in zip(torch.autograd.grad(loss, weights), weights, strict=True)]
        fresh = epoch in (0, 2, 3)
        velocity = gradients if fresh else [0.8 * v + g for v, g in zip(velocity, gradients, strict=True)]
        with torch.no_grad():
            for weight, v in zip(weights, velocity, strict=True):
                weight -= 0.02 * factor * v
    assert [row["lr"] for row in run.history] == pytest.approx([0.02, 0.02, 0.004, 0.0008])
    for ours, theirs in zip(run.model().parameters(), weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_every_epoch_has_all_images_in_an_order_of_its_own(tmp_path, monkeypatch, augment):
    cohorts = []
    monkeypatch.setattr(training._Cohort, "go", lambda self, progress: cohorts.append(self))
    train(Recipe(**SMALL, augment=augment), tmp_path / "run", progress=False)
    epochs = [list(cohorts[0]._batches(epoch)) for epoch in (0, 1, 0)]
    first, second, again = (torch.cat([images for images, *_ in batches]) for batches in epochs)
    assert [len(images) for images, *_ in epochs[0]] == [25, 25, 10] and [b[2] for b in epochs[0]] == [1, 1, 1]
    assert torch.equal(first, again) and not torch.equal(first, second)

    def sums(images):
        return sorted(images.sum(dim=(1, 2, 3)).tolist())

    same = sums(training.load("", "train").images)
    assert (sums(first) == same, sums(second) == same) == ((augment == "none",) * 2)


@pytest.mark.parametrize("method", ["at", "kd", "at+kd", "f-act", "fitnet", "grad-at", "min-l2", "symmetry"])
def test_methods_minimise_what_they_say(tmp_path, teacher, method):
    recipe = Recipe(student="wrn-10-2", batch=60, epochs=1, augment="none", method=method)
    used = None if method in TEACHERLESS else teacher
    row = train(recipe, tmp_path / "run", teacher=used, progress=False).history[0]
    torch.manual_seed(recipe.seed)
    data = training.load("", "train")
    x, y = standardize(data.images), data.labels
    model, T = build("wrn-10-2", 2), teacher.model()
    (logits, groups), (teacher_logits, teacher_groups) = model.groups(x), T.groups(x)
    ce, kd = F.cross_entropy(logits, y), distillation(logits, teacher_logits, 4)
    at = attention_transfer(groups, teacher_groups)
    J, J_T = (input_gradient(network, x, y) for network in (model, T))
    torch.manual_seed(recipe.seed)
    r = [torch.nn.Conv2d(2 * width, width, 1) for width in (16, 32, 64)]
    full = activation_transfer(groups, teacher_groups, r)
    torch.manual_seed(recipe.seed)
    expected = {
        "at": ce + 1000 * at,
        "kd": 0.1 * ce + 0.9 * kd,
        "at+kd": 0.1 * ce + 0.9 * kd + 1000 * at,
        "f-act": ce + 1000 * full,
        "fitnet": hint(groups[1], teacher_groups[1], torch.nn.Conv2d(64, 32, 1)),
        "grad-at": ce + 0.05 * gradient_transfer(J, J_T),
        "min-l2": ce + 0.05 * gradient_penalty(J),
        "symmetry": ce + 0.05 * gradient_symmetry(model, x, y),
    }[method]
    assert row["loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert row.get("at", at.item()) == pytest.approx(at.item(), rel=1e-3)


@pytest.mark.parametrize("method", ["at", "kd", "f-act", "grad-at", "min-l2", "symmetry"])
def test_a_term_of_weight_zero_leaves_the_plain_student(tmp_path, teacher, method):
    """What a method changes comes from its term: without it the weights are the plain student's, bit for bit.

    On a network without batch normalisation, whose running means the gradient terms' second forward pass moves.
    """
    common = SMALL | {"student": "nin-thin-nobn", "epochs": 1}
    used = None if method in TEACHERLESS else teacher
    zero = train(Recipe(**common, method=method, beta=0.0, alpha=0.0), tmp_path / method, teacher=used, progress=False)
    assert weights_of(zero) == weights_of(train(Recipe(**common), tmp_path / "plain", progress=False))


@pytest.mark.parametrize(("method", "part"), [*((method, 0.5) for method in METHODS), ("fitnet", 0.3)])
def test_every_method_trains_and_resumes_to_the_same_weights(tmp_path, monkeypatch, teacher, method, part):
    """Of methods with two stages, the kill falls into the first, or exactly between the two."""
    recipe = Recipe(**SMALL | {"student": "wrn-10-2"}, method=method, schedule="one-cycle", hint_part=part)
    used = None if method in TEACHERLESS else teacher
    whole = train(recipe, tmp_path / "whole", teacher=used, progress=False)
    with monkeypatch.context() as patch, pytest.raises(stop_after(patch, 1)):
        train(recipe, tmp_path / "part", teacher=used, progress=False)
    assert weights_of(train(recipe, tmp_path / "part", teacher=used, progress=False)) == weights_of(whole)
    assert not any("regressor" in name for name in load_file(whole.folder / "weights.safetensors"))
    assert all(row["loss"] > 0 for row in whole.history)


def test_regressors_are_trained_and_the_second_stage_starts_without_momentum(tmp_path, monkeypatch, teacher):
    students = []
    original = training._Student.__init__
    monkeypatch.setattr(training._Student, "__init__", lambda self, *a: (original(self, *a), students.append(self))[0])
    recipe = Recipe(**SMALL | {"student": "wrn-10-2"}, method="fitnet", hint_part=0.5)
    train(recipe, tmp_path / "run", teacher=teacher, progress=False)
    (student,) = students
    torch.manual_seed(recipe.seed)
    assert not torch.equal(student.regressors[0].weight, torch.nn.Conv2d(64, 32, 1).weight)
    held = {name for name, weight in student.parameters.items() if student.optimizer.state.get(weight)}
    assert held == {name for name in student.parameters if not name.startswith("regressor")}


@pytest.mark.parametrize("network", ["nin-thin-nobn", "resnet20"])
def test_other_networks_learn_from_a_wrn(tmp_path, teacher, network):
    recipe = Recipe(student=network, batch=20, epochs=1, method="at", lr=0.01)
    assert train(recipe, tmp_path / "run", teacher=teacher, progress=False).model()


def test_recipe_fields_of_the_attention_term_are_used(tmp_path, teacher):
    fields = SMALL | {"epochs": 1, "method": "at"}
    variants = [{}, {"p": 1.0}, {"mapping": "f_max"}, {"form": "norm"}, {"groups": (2,)}]
    rows = [
        train(Recipe(**fields | v), tmp_path / str(i), teacher=teacher, progress=False).history[0]["at"]
        for i, v in enumerate(variants)
    ]
    assert len(set(rows)) == len(variants)


def stop_after(monkeypatch, epochs):
    """Let the process die as by kill -9, from the training's point of view: no handler, no clean-up runs."""
    original = training._Cohort._epoch

    class Killed(BaseException):
        pass

    def epoch(self, students, number, bar):
        if number == epochs:
            raise Killed
        return original(self, students, number, bar)

    monkeypatch.setattr(training._Cohort, "_epoch", epoch)
    return Killed


@pytest.mark.parametrize("schedule", ["step", "one-cycle"])
def test_a_stopped_run_ends_with_the_same_weights(tmp_path, monkeypatch, teacher, schedule):
    """Of 5 epochs the steps drop the rate in the second, fourth and fifth, the kill falls after the second."""
    recipe = Recipe(**SMALL | {"epochs": 5}, schedule=schedule, method="at+kd")
    whole = train(recipe, tmp_path / "whole", teacher=teacher, progress=False)
    with monkeypatch.context() as patch:
        killed = stop_after(patch, 2)
        with pytest.raises(killed):
            train(recipe, tmp_path / "part", teacher=teacher, progress=False)
    assert Run.load(tmp_path / "part").status == "running" and len(Run.load(tmp_path / "part").history) == 2
    part = train(recipe, tmp_path / "part", teacher=teacher, progress=False)
    assert weights_of(part) == weights_of(whole)
    assert [r["loss"] for r in part.history] == [r["loss"] for r in whole.history]


def test_kill_9_on_shapes_resumes_bit_for_bit(tmp_path):
    """A real process, really killed, at a moment that falls where it falls."""
    command = [sys.executable, "-m", "atbook.cli", "train", "student=wrn-10-1", "train_images=200", "epochs=4", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, tmp_path / "whole"], check=True, env=environment, capture_output=True)
    process = subprocess.Popen([*command, tmp_path / "part"], env=environment, stderr=subprocess.DEVNULL)
    while not (tmp_path / "part" / "checkpoint.safetensors").exists():
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert Run.load(tmp_path / "part").status == "running"
    subprocess.run([*command, tmp_path / "part"], check=True, env=environment, capture_output=True)
    assert weights_of(Run.load(tmp_path / "part")) == weights_of(Run.load(tmp_path / "whole"))


def test_a_finished_run_is_returned_and_another_is_refused(tmp_path, monkeypatch):
    run = train(Recipe(**SMALL), tmp_path / "run", progress=False)
    monkeypatch.setattr(training, "_Cohort", None)  # nothing is trained again
    assert train(Recipe(**SMALL), tmp_path / "run", progress=False) == run
    with pytest.raises(ValueError, match=r"holds another run \(epochs 3 there, 4 now\)"):
        train(Recipe(**SMALL | {"epochs": 4}), tmp_path / "run", progress=False)


def test_a_loss_that_is_no_number_fails_the_run(tmp_path):
    recipe = Recipe(**SMALL | {"lr": 1e20})
    with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch \d, by step \d .*lower lr"):
        train(recipe, tmp_path / "run", progress=False)
    run = Run.load(tmp_path / "run")
    assert run.status == "failed" and "FloatingPointError" in run.reason and run.weights is None


@pytest.mark.parametrize("damage", ["cut", "another run", "not safetensors"])
def test_a_bad_checkpoint_is_refused(tmp_path, monkeypatch, damage):
    with monkeypatch.context() as patch, pytest.raises(stop_after(patch, 1)):
        train(Recipe(**SMALL), tmp_path / "run", progress=False)
    path = tmp_path / "run" / "checkpoint.safetensors"
    if damage == "another run":
        with monkeypatch.context() as patch, pytest.raises(stop_after(patch, 1)):
            train(Recipe(**SMALL, seed=1), tmp_path / "other", progress=False)
        path.write_bytes((tmp_path / "other" / "checkpoint.safetensors").read_bytes())
    else:
        path.write_bytes(path.read_bytes()[:1000] if damage == "cut" else b"pickle")
    with pytest.raises(ValueError, match=r"checkpoint .* cannot be used .*remove it") as caught:
        train(Recipe(**SMALL), tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)
    assert ("it belongs to another run" in str(caught.value)) == (damage == "another run")


def test_teachers_are_checked(tmp_path, teacher):
    with pytest.raises(ValueError, match="method 'at' needs a teacher"):
        train(Recipe(method="at"), tmp_path / "run")
    with pytest.raises(ValueError, match="uses no teacher"):
        train(Recipe(), tmp_path / "run", teacher=teacher)
    with pytest.raises(ValueError, match="'wrn-16-2', but 'teacher' holds a 'wrn-10-1'"):
        train(Recipe(method="at", teacher="wrn-16-2"), tmp_path / "run", teacher=teacher)
    with pytest.raises(ValueError, match="knows 5 classes, the images have 2"):
        wrong = teacher.model_copy(update={"data": teacher.data.model_copy(update={"classes": 5})})
        train(Recipe(method="at"), tmp_path / "run", teacher=wrong)
    unfinished = teacher.model_copy(update={"status": "running"})
    with pytest.raises(ValueError, match="is running, not finished"):
        train(Recipe(method="at"), tmp_path / "run", teacher=unfinished)
    assert not (tmp_path / "run").exists()


def test_changed_weights_are_refused(tmp_path, teacher):
    path = teacher.folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="does not match its receipt"):
        teacher.model()


def test_an_output_folder_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="cannot write receipt.json"):
        train(Recipe(**SMALL), tmp_path / "file" / "run", progress=False)


def test_compiling_changes_nothing_but_speed(tmp_path):
    try:
        check_compiler()
    except ValueError as error:
        pytest.skip(str(error))
    recipe = Recipe(**SMALL | {"epochs": 1})
    plain, compiled = (train(recipe, tmp_path / str(c), compile=c, progress=False) for c in (False, True))
    assert compiled.provenance["compiled"] and not plain.provenance["compiled"]
    assert compiled.history[0]["loss"] == pytest.approx(plain.history[0]["loss"], rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_in_bfloat16(tmp_path, teacher, method):
    """The wider student gives every method that has regressors some to learn."""
    recipe = Recipe(**SMALL | {"student": "wrn-10-2", "epochs": 2}, method=method, precision="bfloat16", hint_part=0.5)
    used = None if method in TEACHERLESS else teacher
    assert train(recipe, tmp_path / "run", teacher=used, progress=False).status == "finished"


def test_bfloat16_learns_as_well(tmp_path):
    run = train(Recipe(**SMALL, precision="bfloat16"), tmp_path / "run", progress=False)
    assert run.history[-1]["train_error"] < 40
    loss = train(Recipe(**SMALL), tmp_path / "float32", progress=False).history[0]["loss"]
    assert run.history[0]["loss"] != loss and run.history[0]["loss"] == pytest.approx(loss, rel=0.05)


def test_compiling_is_refused_before_training_where_torch_cannot(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__file__", "/a folder/torch/__init__.py")
    with pytest.raises(ValueError, match="below a folder with a space"):
        train(Recipe(**SMALL), tmp_path / "run", compile=True, progress=False)
    monkeypatch.setattr(torch, "__file__", "/folder/torch/__init__.py")
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler"):
        train(Recipe(**SMALL), tmp_path / "run", compile=True, progress=False)
    assert not (tmp_path / "run").exists()


def cohort(folder, **changes):
    """Recipes that see the same batches, one of them longer than the others."""
    fields = SMALL | {"student": "wrn-10-2", "schedule": "one-cycle"} | changes
    methods = {"student": {}, "at": {}, "kd": {"epochs": 2}, "fitnet": {}}
    methods["at-max"] = {"method": "at", "mapping": "f_max"}
    return {folder / name: Recipe(**fields | {"method": name} | extra) for name, extra in methods.items()}


def test_side_by_side_gives_the_weights_of_each_alone(tmp_path, teacher):
    together = train_together(cohort(tmp_path / "together"), teacher=teacher, progress=False)
    for run, (out, recipe) in zip(together, cohort(tmp_path / "alone").items(), strict=True):
        alone = train(recipe, out, teacher=None if recipe.method == "student" else teacher, progress=False)
        assert run.folder.name == out.name and run.key == alone.key and weights_of(run) == weights_of(alone)
        assert [row["loss"] for row in run.history] == [row["loss"] for row in alone.history]


def test_a_stopped_cohort_resumes_also_where_one_is_ahead(tmp_path, monkeypatch, teacher):
    whole = train_together(cohort(tmp_path / "whole"), teacher=teacher, progress=False)
    recipes = cohort(tmp_path / "part")
    with monkeypatch.context() as patch, pytest.raises(stop_after(patch, 2)):
        train_together(dict(list(recipes.items())[1:]), teacher=teacher, progress=False)
    assert [Run.load(out).status for out in list(recipes)[1:]] == ["running", "finished", "running", "running"]
    part = train_together(recipes, teacher=teacher, progress=False)
    assert [weights_of(run) for run in part] == [weights_of(run) for run in whole]


def test_the_teacher_passes_once_for_all(tmp_path, monkeypatch, teacher):
    calls = []
    original = training._Cohort._teach
    monkeypatch.setattr(training._Cohort, "_teach", lambda self, x: (calls.append(len(x)), original(self, x))[1])
    train_together(cohort(tmp_path / "a", epochs=2), teacher=teacher, progress=False)
    assert calls == 2 * [25, 25, 10]


def test_one_that_fails_does_not_stop_the_others(tmp_path, teacher):
    recipes = cohort(tmp_path)
    recipes[tmp_path / "at"] = Recipe(**recipes[tmp_path / "at"].model_dump() | {"lr": 1e20})
    with pytest.raises(FloatingPointError, match="the loss is"):
        train_together(recipes, teacher=teacher, progress=False)
    assert [Run.load(out).status for out in recipes] == ["finished", "failed", "finished", "finished", "finished"]


def test_runs_that_see_other_batches_are_refused(tmp_path, teacher):
    for field, value in {"seed": 1, "batch": 7, "augment": "none", "precision": "bfloat16", "train_images": 20}.items():
        recipes = {tmp_path / "a": Recipe(**SMALL), tmp_path / "b": Recipe(**SMALL | {field: value})}
        with pytest.raises(ValueError, match=f"must agree in {field}"):
            train_together(recipes)
    with pytest.raises(ValueError, match="there is no recipe"):
        train_together({})
    with pytest.raises(ValueError, match="method 'at' needs a teacher"):
        train_together({tmp_path / "a": Recipe(**SMALL), tmp_path / "b": Recipe(**SMALL, method="at")})
    assert not any(tmp_path.glob("[ab]"))


# Fine-tuning


def tensors_of(run):
    return load_file(run.folder / "weights.safetensors")


def test_fixed_norm_and_frozen_groups_stay_as_they_were_and_the_rest_learns(teacher, tmp_path):
    recipe = Recipe(**SMALL, fixed_norm=True, frozen_groups=1)
    run = train(recipe, tmp_path / "tuned", start=teacher, progress=False)
    before, after = tensors_of(teacher), tensors_of(run)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    norms = {name for name in before if ".bn" in name or name.startswith("bn.")}
    assert kept == norms | {name for name in before if name.startswith(("conv0", "group0"))}
    assert {"fc.weight", "group1.0.conv0.weight"} & kept == set()


def test_frozen_groups_alone_keep_their_statistics_too(teacher, tmp_path):
    run = train(Recipe(**SMALL, frozen_groups=2), tmp_path / "tuned", start=teacher.folder, progress=False)
    before, after = tensors_of(teacher), tensors_of(run)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {name for name in before if name.startswith(("conv0", "group0", "group1"))}


def test_a_step_of_fine_tuning_is_one_of_sgd_on_the_loss(teacher, tmp_path):
    """By hand: a model in evaluation mode, whose batch norms have no gradient, one batch of all 60 images."""
    recipe = Recipe(**SMALL | {"epochs": 1, "batch": 60}, augment="none", fixed_norm=True, method="at", groups=(1, 2))
    run = train(recipe, tmp_path / "tuned", teacher=teacher, start=teacher, progress=False)
    model, taught = teacher.model(), teacher.model()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    rest = [p for p in model.parameters() if not any(p is q for norm in norms for q in norm.parameters())]
    images = training.load("", "train")
    x = standardize(images.images)
    logits, groups = model.groups(x)
    with torch.no_grad():
        _, wanted = taught.groups(x)
    loss = F.cross_entropy(logits, images.labels) + 1000 * attention_transfer(groups[1:], wanted[1:])
    optimizer = torch.optim.SGD(rest, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    loss.backward()
    optimizer.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensors_of(run)[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_file_serves_as_a_run_does_and_the_key_knows_the_weights(teacher, tmp_path):
    recipe = Recipe(**SMALL | {"epochs": 1})
    runs = [
        train(recipe, tmp_path / name, start=start, progress=False)
        for name, start in (("run", teacher), ("file", teacher.folder / "weights.safetensors"), ("none", None))
    ]
    assert runs[0].weights == runs[1].weights != runs[2].weights
    assert runs[0].key == runs[1].key != runs[2].key and runs[0].start == teacher.weights and runs[2].start is None
    with pytest.raises(ValueError, match="other first weights"):
        train(recipe, tmp_path / "run", progress=False)


@pytest.mark.parametrize("fields", [{"fixed_norm": True}, {"frozen_groups": 1}])
def test_what_cannot_start_is_refused_and_nothing_is_written(fields, teacher, tmp_path):
    out = tmp_path / "new"
    with pytest.raises(ValueError, match="there are none: give them as `start`"):
        train(Recipe(**SMALL, **fields), out, progress=False)
    bad = tmp_path / "bad.safetensors"
    for gone in (bad, tmp_path / "resnet18.pth"):
        with pytest.raises(ValueError, match="cannot start from .*No such file.* give a finished run or a safetensors"):
            train(Recipe(**SMALL, **fields), out, start=gone, progress=False)
    bad.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot start from"):
        train(Recipe(**SMALL, **fields), out, start=bad, progress=False)
    with pytest.raises(ValueError, match="not those of this network"):
        train(Recipe(**SMALL | {"student": "wrn-10-2"}, **fields), out, start=teacher, progress=False)
    assert not out.exists()


def test_fine_tuning_resumes_to_the_last_bit(teacher, tmp_path, monkeypatch):
    recipe = Recipe(**SMALL, fixed_norm=True, frozen_groups=1, method="at", transfer_from=1)
    whole = train(recipe, tmp_path / "whole", teacher=teacher, start=teacher, progress=False)
    assert ["at" in row for row in whole.history] == [False, True, True]
    real, writes = training._checkpoint, []

    def stop(student):
        real(student)
        writes.append(student)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_checkpoint", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "stopped", teacher=teacher, start=teacher, progress=False)
    again = train(recipe, tmp_path / "stopped", teacher=teacher, start=teacher, progress=False)
    assert len(writes) == 2 and again.weights == whole.weights
