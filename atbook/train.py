"""The training loop: SGD on a weighted sum of losses, resumable to the last bit, on any device."""

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from tqdm import tqdm

from atbook import attention, runs
from atbook.compat import check_compiler
from atbook.data import Images, augment, load, standardize
from atbook.losses import (
    activation_transfer,
    attention_transfer,
    distillation,
    gradient_penalty,
    gradient_symmetry,
    gradient_transfer,
    hint,
    regressor,
)
from atbook.models import Network, build
from atbook.names import TEACHERLESS
from atbook.recipes import Recipe, learning_rate, stage, weights
from atbook.runs import Run


class Batch(NamedTuple):
    """What the terms of a loss are computed from: one batch, and what both networks make of it."""

    recipe: Recipe
    model: Network
    teacher: Network | None
    regressors: nn.ModuleList
    x: Tensor
    labels: Tensor
    logits: Tensor
    groups: list[Tensor]
    teacher_logits: Tensor | None
    teacher_groups: list[Tensor] | None

    def pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """The student's and the teacher's activations in the recipe's groups."""
        return tuple([groups[j] for j in self.recipe.groups] for groups in (self.groups, self.teacher_groups))


def cross_entropy(batch: Batch) -> Tensor:
    """Match the labels."""
    return F.cross_entropy(batch.logits.float(), batch.labels)


def transfer(batch: Batch) -> Tensor:
    """Match the teacher's attention in the chosen groups."""
    mapping = partial(getattr(attention, batch.recipe.mapping), p=batch.recipe.p)
    return attention_transfer(*batch.pairs(), mapping, batch.recipe.form)


def soft_labels(batch: Batch) -> Tensor:
    """Match the teacher's softened probabilities."""
    return distillation(batch.logits, batch.teacher_logits, batch.recipe.temperature)


def full_activations(batch: Batch) -> Tensor:
    """Match the teacher's activations in the chosen groups."""
    return activation_transfer(*batch.pairs(), batch.regressors)


def hints(batch: Batch) -> Tensor:
    """Match the teacher's activation in the middle group."""
    return hint(batch.groups[1], batch.teacher_groups[1], batch.regressors[0])


def gradients(batch: Batch) -> Tensor:
    """Match the gradient of the teacher's loss with respect to the image."""
    J_T = attention.input_gradient(batch.teacher, batch.x, batch.labels)
    return gradient_transfer(_gradient(batch), J_T)


def small_gradients(batch: Batch) -> Tensor:
    """Keep the gradient with respect to the image small."""
    return gradient_penalty(_gradient(batch))


def symmetric_gradients(batch: Batch) -> Tensor:
    """Mirror the gradient when the image is mirrored."""
    return gradient_symmetry(batch.model, batch.x, batch.labels)


def _gradient(batch: Batch) -> Tensor:
    return attention.input_gradient(batch.model, batch.x, batch.labels, create_graph=True)


TERMS: dict[str, Callable[[Batch], Tensor]] = {
    "ce": cross_entropy,
    "at": transfer,
    "kd": soft_labels,
    "f-act": full_activations,
    "hint": hints,
    "grad-at": gradients,
    "symmetry": symmetric_gradients,
    "min-l2": small_gradients,
}


def _regressors(recipe: Recipe, student: Network, teacher: Network | None) -> nn.ModuleList:
    """What a method learns beside the student, drawn from the seed: for F-ActT and FitNets, maps between the widths."""
    method, _ = stage(recipe, 0.0)
    if method not in ("f-act", "hint"):
        return nn.ModuleList()
    images = torch.zeros(2, 3, 32, 32)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        pairs = list(zip(copy.deepcopy(student).groups(images)[1], teacher.groups(images)[1], strict=True))
        if method == "hint":
            return nn.ModuleList([regressor(*pairs[1])])
        pairs = [pairs[j] for j in recipe.groups]
        return nn.ModuleList([nn.Identity() if s.shape == t.shape else regressor(s, t) for s, t in pairs])


def train(
    recipe: Recipe,
    out: str | Path,
    root: str | Path | None = None,
    teacher: Run | str | Path | None = None,
    compile: bool = False,
    progress: bool = True,
) -> Run:
    """Train a network as the recipe says, or go on where an earlier call was stopped.

    After each epoch the state is written atomically, so a kill costs at most the epoch in hand; a resumed run ends with
    the weights of one never stopped, bit for bit on the same machine and thread count. A finished run is returned at
    once. A GPU is used where there is one.

    Args:
        recipe: what to train.
        out: the run's folder, made if missing.
        root: where the images are, for ``dataset="folder"`` and the CIFARs (see `atbook.data.load`).
        teacher: a finished run or its folder, for the methods that use one.
        compile: compile the networks with `torch.compile`: faster from a few epochs on, same mathematics.
        progress: show a bar with accuracy, test error and time left.

    Returns:
        The finished run.

    Raises:
        ValueError: if the teacher is missing, unfinished or of other classes, ``out`` holds another run, or the
            networks cannot be compiled here.
        OSError: if ``out`` cannot be written to.
        FloatingPointError: if the loss stops being a number; the run is then marked as failed.
    """
    if compile:
        check_compiler()
    out = Path(out)
    teacher = _teacher(recipe, teacher)
    train_set, test_set = load(recipe.dataset, "train", root), load(recipe.dataset, "test", root)
    if recipe.train_images is not None:
        train_set = train_set.take(recipe.train_images)
    run = _open(recipe, out, train_set, test_set, teacher, compile)
    if run.status == "finished":
        return run
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run.provenance = runs.provenance(device, compile)
    loop = _Loop(run, train_set, test_set, teacher, device, compile)
    try:
        loop.go(progress)
    except Exception as error:
        run.status, run.reason = "failed", f"{type(error).__name__}: {error}"
        run.save()
        raise
    return run


def _teacher(recipe: Recipe, teacher: Run | str | Path | None) -> Run | None:
    needed = recipe.method not in TEACHERLESS
    if needed and teacher is None:
        raise ValueError(f"method {recipe.method!r} needs a teacher: give a finished run or its folder as `teacher`")
    if not needed and teacher is not None:
        raise ValueError(f"method {recipe.method!r} uses no teacher: drop it, or choose a method that has one")
    if teacher is None:
        return None
    run = teacher if isinstance(teacher, Run) else Run.load(teacher)
    if run.status != "finished":
        raise ValueError(f"the teacher {run.folder.name!r} is {run.status}, not finished: train it to its end first")
    if recipe.teacher not in (None, run.recipe.student):
        held = run.recipe.student
        raise ValueError(f"the recipe's teacher is {recipe.teacher!r}, but {run.folder.name!r} holds a {held!r}")
    return run


def _open(recipe: Recipe, out: Path, train_set: Images, test_set: Images, teacher: Run | None, compile: bool) -> Run:
    """The run in ``out``, or a new one; another run there is refused."""
    classes = len(train_set.classes)
    if teacher and teacher.data.classes != classes:
        known = teacher.data.classes
        raise ValueError(f"the teacher knows {known} classes, the images have {classes}: use one trained on them")
    if teacher:
        recipe = Recipe(**recipe.model_dump() | {"teacher": teacher.recipe.student})
    fingerprint = hashlib.sha256((train_set.fingerprint() + test_set.fingerprint()).encode()).hexdigest()
    data = runs.Data(
        label=train_set.label, train=len(train_set), test=len(test_set), classes=classes, fingerprint=fingerprint
    )
    known = teacher and runs.Teacher(
        network=teacher.recipe.student, test_error=teacher.test_error, weights=teacher.weights or ""
    )
    key = runs.run_key(recipe, data, known)
    if not (out / "receipt.json").exists():
        run = Run(folder=out, key=key, recipe=recipe, data=data, teacher=known, provenance={})
        run.save()
        return run
    run = Run.load(out)
    if run.key != key:
        what = _differences(run, recipe, data)
        raise ValueError(f"{str(out)!r} holds another run ({what}): choose another folder, or remove it")
    return run


def _differences(run: Run, recipe: Recipe, data: runs.Data) -> str:
    old, new = run.recipe.model_dump(), recipe.model_dump()
    fields = [f"{name} {old[name]!r} there, {new[name]!r} now" for name in new if old[name] != new[name]]
    if run.data != data:
        fields.append("other images")
    return "; ".join(fields) or "made by another teacher or another version of the code"


class _Loop:
    """One run's networks, optimizer and place in the training."""

    def __init__(
        self, run: Run, train_set: Images, test_set: Images, teacher: Run | None, device: torch.device, compile: bool
    ) -> None:
        self.run, self.recipe, self.device = run, run.recipe, device
        self.images, self.labels = train_set.images.to(device), train_set.labels.to(device)
        self.test_set = test_set
        with torch.random.fork_rng():
            torch.manual_seed(self.recipe.seed)
            model = build(self.recipe.student, run.data.classes)
        taught = teacher and teacher.model()
        self.regressors = _regressors(self.recipe, model, taught).to(device)
        self.model = model.to(device, memory_format=torch.channels_last)
        self.teacher = taught and taught.to(device, memory_format=torch.channels_last).requires_grad_(False)
        wrap = torch.compile if compile else (lambda function: function)
        self.forward = wrap(self.model.groups)
        self.teacher_forward = wrap(self.teacher.groups) if teacher else None
        settings = {"momentum": self.recipe.momentum, "weight_decay": self.recipe.weight_decay, "fused": True}
        self.parameters = dict(self.model.named_parameters())  # all that is trained, by name
        self.parameters |= {f"regressor.{name}": weight for name, weight in self.regressors.named_parameters()}
        self.optimizer = torch.optim.SGD(self.parameters.values(), self.recipe.lr, **settings)
        self.stage, _ = stage(self.recipe, 0.0)
        self.steps = math.ceil(len(self.labels) / self.recipe.batch)  # in one epoch
        _restore(self)

    def go(self, progress: bool) -> None:
        """Train the epochs that are missing, then write the weights and the finished receipt."""
        done, total = len(self.run.history), self.recipe.epochs
        title = f"{self.recipe.student} {self.recipe.method} seed {self.recipe.seed}"
        with tqdm(total=total * self.steps, initial=done * self.steps, desc=title, disable=not progress) as bar:
            for epoch in range(done, total):
                self.run.history.append(self._epoch(epoch, bar))
                bar.set_postfix_str(f"test error {self.run.test_error:.2f} %")
                _checkpoint(self)
        content = save_tensors(_contiguous(self.model.state_dict()))
        runs.write(self.run.folder / "weights.safetensors", content)
        self.run.weights = hashlib.sha256(content).hexdigest()
        self.run.status, self.run.reason = "finished", None
        self.run.save()
        (self.run.folder / "checkpoint.safetensors").unlink(missing_ok=True)

    def _epoch(self, epoch: int, bar: tqdm) -> dict[str, float]:
        start = time.monotonic()
        self.model.train()
        sums: dict[str, Tensor] = {}
        for step, (images, labels) in enumerate(self._batches(epoch)):
            progress = (epoch + step / self.steps) / self.recipe.epochs
            for name, value in self._step(images, labels, progress).items():
                sums[name] = sums.get(name, 0.0) + value * len(labels)
            bar.update()
            if step % 20 == 19 or step == self.steps - 1:
                self._check(sums, epoch, step, bar)
        row = {name: (value / len(self.labels)).item() for name, value in sums.items()}
        row["train_error"] *= 100
        row |= {"test_error": evaluate(self.model, self.test_set), "seconds": time.monotonic() - start}
        return {"epoch": epoch + 1, "lr": self.optimizer.param_groups[0]["lr"]} | row

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented batches in an order that depends on seed and epoch alone, so that any epoch can be redone."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        for batch in torch.randperm(len(self.labels), generator=generator).split(self.recipe.batch):
            batch = batch.to(self.device)
            yield augment(self.images[batch], self.recipe.augment, generator), self.labels[batch]

    def _step(self, images: Tensor, labels: Tensor, progress: float) -> dict[str, Tensor]:
        self._schedule(progress)
        x = standardize(images)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            teacher = (None, None)
            if self.teacher_forward:
                with torch.no_grad():
                    teacher = self.teacher_forward(x)
            networks = self.recipe, self.model, self.teacher, self.regressors
            batch = Batch(*networks, x, labels, *self.forward(x), *teacher)
        wanted = weights(self.recipe, progress)
        terms = {name: TERMS[name](batch) for name in wanted}
        loss = sum(wanted[name] * terms[name] for name in wanted)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        wrong = (batch.logits.argmax(dim=1) != labels).float().mean()
        return {name: value.detach() for name, value in {"loss": loss, **terms, "train_error": wrong}.items()}

    def _schedule(self, progress: float) -> None:
        """Set the learning rate; start without momentum after a drop (the authors' code makes a new optimizer there)
        and when a new stage begins."""
        lr, group = learning_rate(self.recipe, progress), self.optimizer.param_groups[0]
        now, _ = stage(self.recipe, progress)
        if now != self.stage or (self.recipe.schedule == "step" and lr < group["lr"]):
            self.optimizer.state.clear()
        self.stage, group["lr"] = now, lr

    def _check(self, sums: dict[str, Tensor], epoch: int, step: int, bar: tqdm) -> None:
        if not math.isfinite(sums["loss"].item()):
            where = f"epoch {epoch + 1}, by step {step + 1} (lr {self.optimizer.param_groups[0]['lr']:.3g})"
            raise FloatingPointError(f"the loss is {sums['loss'].item()} in {where}: lower lr or beta")
        seen = min((step + 1) * self.recipe.batch, len(self.labels))
        bar.set_postfix_str(f"train accuracy {100 - 100 * sums['train_error'].item() / seen:.1f} %")


@torch.no_grad()
def evaluate(model: nn.Module, images: Images, batch: int = 500) -> float:
    """Test error in %: the share of images whose largest logit is not the label's. Ends in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    wrong = 0
    for x, y in zip(images.images.split(batch), images.labels.split(batch), strict=True):
        wrong += (model(standardize(x.to(device))).argmax(dim=1) != y.to(device)).sum().item()
    return 100 * wrong / len(images)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _checkpoint(loop: _Loop) -> None:
    """Write what resuming needs: weights, momentum and history in one file, so that they agree; then the receipt."""
    state = {name: loop.optimizer.state.get(weight, {}) for name, weight in loop.parameters.items()}
    momentum = {f"momentum.{name}": held["momentum_buffer"] for name, held in state.items() if held}
    model = {f"model.{name}": tensor for name, tensor in loop.model.state_dict().items()}
    model |= {f"regressors.{name}": tensor for name, tensor in loop.regressors.state_dict().items()}
    about = {"key": loop.run.key, "history": json.dumps(loop.run.history)}
    runs.write(loop.run.folder / "checkpoint.safetensors", save_tensors(_contiguous(model | momentum), about))
    loop.run.status, loop.run.reason = "running", None
    loop.run.save()


def _restore(loop: _Loop) -> None:
    """Go back to the last checkpoint, or to the beginning where there is none."""
    path = loop.run.folder / "checkpoint.safetensors"
    loop.run.history = []
    if not path.exists():
        return
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if about.get("key") != loop.run.key:
            raise ValueError("it belongs to another run")
        loop.model.load_state_dict(_part(tensors, "model."))
        loop.regressors.load_state_dict(_part(tensors, "regressors."))
        for name, buffer in _part(tensors, "momentum.").items():
            weight = loop.parameters[name]
            loop.optimizer.state[weight]["momentum_buffer"] = torch.empty_like(weight).copy_(buffer)
        loop.run.history = json.loads(about["history"])
        last = (len(loop.run.history) - 1 / loop.steps) / loop.recipe.epochs  # where the last step was
        loop.stage, loop.optimizer.param_groups[0]["lr"] = stage(loop.recipe, last)[0], loop.run.history[-1]["lr"]
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        why = str(error).splitlines()[0]
        why = f"checkpoint {str(path)!r} cannot be used ({why}): remove it to train from the beginning"
        raise ValueError(why) from None
