"""One typed, validated description of a training run. Imports no torch, so that a wrong field is refused at once."""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from atbook.names import DATASETS, MAPPINGS, METHODS, TEACHERLESS, choose, count_groups, network

Network = Annotated[str, AfterValidator(network)]
# The weight of a method's own term where it is not 1000; for gradients the paper has no figure, and these are ours.
BETAS = {"grad-at": 0.1, "symmetry": 0.1, "min-l2": 0.1}
# Two stages: the first until `hint_part` of the training, the second from there on.
STAGED = {"fitnet": ("hint", "kd"), "at+fitnet": ("hint", "at")}
# Step schedules: what lr is multiplied with, and after which parts of the training. Both are the authors'.
STEPS = {"step": (0.2, (0.3, 0.6, 0.8)), "step-imagenet": (0.1, (0.3, 0.6, 0.9))}


def _one_of(what: str, allowed: tuple[str, ...]):
    return Annotated[str, AfterValidator(lambda name: choose(what, name, allowed))]


class Recipe(BaseModel):
    """What to train, on what, how. Defaults are the paper's and its authors' code, but for the number of epochs.

    Raises:
        ValueError: one sentence naming the unknown or impossible field, its value, and what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    dataset: _one_of("dataset", DATASETS) = Field("shapes", description="the images: " + ", ".join(DATASETS))
    image_size: int | None = Field(
        None, ge=32, description="for a folder of images of unlike size: their side after cropping, in pixels"
    )
    train_images: int | None = Field(None, ge=2, description="train on so many images, classes balanced; null for all")
    student: Network = Field("wrn-16-1", description="the network that is trained: wrn-16-1, nin-thin, resnet20 ...")
    teacher: Network | None = Field(None, description="the trained teacher's network; `train` fills it in")
    method: _one_of("method", METHODS) = Field("student", description="what the student matches: " + ", ".join(METHODS))
    epochs: int = Field(30, ge=1, description="passes over the training images (paper: 200)")
    batch: int = Field(128, ge=1, description="images per step")
    lr: float = Field(0.1, gt=0, description="peak learning rate")
    schedule: _one_of("schedule", (*STEPS, "one-cycle")) = Field(
        "step",
        description="step: times 0.2 after 30, 60 and 80 % of the epochs; step-imagenet: times 0.1 after 30, 60 and "
        "90 %; one-cycle: up for 30 %, then down",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="l2 penalty on all weights")
    augment: _one_of("augment", ("crop-flip", "flip", "none")) = Field("crop-flip", description="random views")
    beta: float = Field(1000.0, ge=0, description="weight of the method's term; for at on the authors' scale")
    mapping: _one_of("mapping", MAPPINGS) = Field("f_sum", description="the attention map: " + ", ".join(MAPPINGS))
    p: float = Field(2.0, ge=1, description="power of the mapping function")
    form: _one_of("form", ("squared", "norm")) = Field("squared", description="of the attention-transfer loss")
    groups: Annotated[tuple[Annotated[int, Field(ge=0, le=3)], ...], Strict(False)] = Field(
        (0, 1, 2), min_length=1, description="groups whose attention is transferred, from 0; resnet18 and 34 have four"
    )
    transfer_from: int = Field(0, ge=0, description="epochs with labels alone, before the other terms are added")
    frozen_groups: int = Field(0, ge=0, description="so many first groups keep the weights that training starts from")
    fixed_norm: bool = Field(False, description="batch norm keeps the statistics and weights that training starts from")
    alpha: float = Field(0.9, ge=0, le=1, description="weight of distillation; cross-entropy has 1 - alpha")
    temperature: float = Field(4.0, gt=0, description="softens the logits in distillation")
    hint_part: float = Field(0.3, gt=0, lt=1, description="share of the epochs for the hint stage of fitnet")
    precision: _one_of("precision", ("float32", "bfloat16")) = Field("float32", description="of the forward pass")
    seed: int = Field(0, ge=0, lt=2**31, description="of initial weights, order and augmentation")

    def __init__(self, /, **fields: object) -> None:
        fields.setdefault("beta", BETAS.get(str(fields.get("method")), 1000.0))
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ValueError(_sentence(error, tuple(type(self).model_fields))) from None

    @model_validator(mode="after")
    def _teacher_and_method_agree(self) -> Self:
        if self.teacher and self.method in TEACHERLESS:
            raise ValueError(f"method {self.method!r} uses none, but teacher is {self.teacher!r}: leave it out")
        return self

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if len(set(self.groups)) < len(self.groups):
            raise ValueError(f"groups={list(self.groups)} is not possible: name each group once")
        for name in filter(None, (self.student, self.teacher)):
            if max(self.groups) >= (count := count_groups(name)):
                raise ValueError(f"groups={list(self.groups)} is not possible: {name} has groups 0 to {count - 1}")
        if self.frozen_groups > (count := count_groups(self.student)):
            raise ValueError(f"frozen_groups={self.frozen_groups} is not possible: {self.student} has {count} groups")
        if self.image_size and self.dataset != "folder":
            raise ValueError(f"image_size is for dataset 'folder', not {self.dataset!r}: leave it out")
        if self.transfer_from >= self.epochs:
            what = f"transfer_from={self.transfer_from} is not possible with epochs={self.epochs}"
            raise ValueError(f"{what}: the method's terms would never be added, give less")
        if self.transfer_from and self.method in STAGED:
            raise ValueError(f"method {self.method!r} has stages of its own: leave transfer_from out")
        return self

    @classmethod
    def from_strings(cls, fields: dict[str, str], given: Mapping[str, object] | None = None) -> Self:
        """A recipe from typed-in text: ``{"epochs": "3", "groups": "[2]", "method": "at"}``; it overrules ``given``."""
        return cls(**dict(given or {}) | {name: _value(text) for name, text in fields.items()})


def _value(text: str) -> object:
    """Numbers, lists and null as JSON reads them; anything else is a name."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _sentence(error: ValidationError, names: tuple[str, ...]) -> str:
    """The first complaint of pydantic's report, in one sentence."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        try:
            choose("recipe field", field, names)
        except ValueError as unknown:
            return str(unknown)
    message = str(first.get("ctx", {}).get("error", first["msg"]))
    if first["type"] == "value_error":
        return message
    return f"{field}={first['input']!r} is not possible: {message[0].lower() + message[1:]}"


def stage(recipe: Recipe, progress: float) -> tuple[str, float]:
    """Which loss is minimised at ``progress`` in [0, 1] of the training, and how far its own stage is.

    Most methods have one stage. FitNets' have two, each with a learning rate schedule of its own.
    """
    if recipe.method not in STAGED:
        return recipe.method, progress
    first, second = STAGED[recipe.method]
    if progress < recipe.hint_part:
        return first, progress / recipe.hint_part
    return second, (progress - recipe.hint_part) / (1 - recipe.hint_part)


def weights(recipe: Recipe, progress: float) -> dict[str, float]:
    """The weighted sum that a method minimises, at ``progress`` in [0, 1] of the training.

    ``ce`` is the cross-entropy with the labels, ``at`` attention transfer (equation 2), ``kd`` distillation, ``f-act``
    full activations, ``hint`` FitNets' first stage, ``grad-at``, ``symmetry`` and ``min-l2`` the losses on the input's
    gradient (equations 4 and 6, with their half). Where the paper says that beta decays, for AT+KD (section 4.1.2) and
    F-ActT, it gives no schedule: the straight line to zero is ours. Before the epoch ``transfer_from`` there is
    cross-entropy alone.

    Returns:
        Name of each term to its weight.
    """
    if progress < recipe.transfer_from / recipe.epochs:
        return {"ce": 1.0}
    method, progress = stage(recipe, progress)
    alpha, beta, fading = recipe.alpha, recipe.beta, recipe.beta * (1 - progress)
    return {
        "student": {"ce": 1.0},
        "at": {"ce": 1.0, "at": beta},
        "kd": {"ce": 1.0 - alpha, "kd": alpha},
        "at+kd": {"ce": 1.0 - alpha, "kd": alpha, "at": fading},
        "f-act": {"ce": 1.0, "f-act": fading},
        "hint": {"hint": 1.0},
        "grad-at": {"ce": 1.0, "grad-at": beta / 2},
        "symmetry": {"ce": 1.0, "symmetry": beta / 2},
        "min-l2": {"ce": 1.0, "min-l2": beta / 2},
    }[method]


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The learning rate at ``progress`` in [0, 1] of the training; where a method has two stages, in its own.

    ``step``: lr times 0.2 for each of 30, 60 and 80 % passed (the authors' epochs 60, 120 and 160 of 200);
    ``step-imagenet``: times 0.1 for each of 30, 60 and 90 % (their epochs 30, 60 and 90 of 100).
    ``one-cycle``: a half cosine from lr/25 up to lr at 30 %, another down to lr/250000 (Smith and Topin, 2018;
    the shape and the constants of ``torch.optim.lr_scheduler.OneCycleLR``).
    """
    _, progress = stage(recipe, progress)
    if recipe.schedule in STEPS:
        factor, milestones = STEPS[recipe.schedule]
        return recipe.lr * factor ** sum(progress >= milestone for milestone in milestones)
    start, end, part = recipe.lr / 25, recipe.lr, progress / 0.3
    if progress > 0.3:
        start, end, part = recipe.lr, recipe.lr / 250_000, (progress - 0.3) / 0.7
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
