"""The training loop: SGD on a weighted sum of losses, resumable to the last bit, on any device."""

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from tqdm import tqdm

from atbook import attention, distributed, runs
from atbook.compat import check_compiler
from atbook.data import Images, load, standardize
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
from atbook.models import Network, build, first_groups, start_from
from atbook.names import TEACHERLESS
from atbook.recipes import STEPS, Recipe, learning_rate, stage, weights
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
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)  # the networks are made on the CPU
        pairs = list(zip(copy.deepcopy(student).groups(images)[1], teacher.groups(images)[1], strict=False))
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
    start: Run | str | Path | None = None,
) -> Run:
    """Train a network as the recipe says, or go on where an earlier call was stopped.

    After each epoch the state is written atomically, so a kill costs at most the epoch in hand; a resumed run ends with
    the weights of one never stopped, bit for bit on the same CPU and thread count. A finished run is returned at once.
    A GPU is used where there is one; its convolutions may add up in another order each time, and round to TF32.

    Under ``torchrun`` all its processes share one training: ``batch`` is that of all together, beta is not multiplied
    by their number, and the weights are those of one process but for rounding.

    Args:
        recipe: what to train.
        out: the run's folder, made if missing.
        root: where the images are, for ``dataset="folder"`` and the CIFARs (see `atbook.data.load`).
        teacher: a finished run or its folder, for the methods that use one.
        compile: compile the networks with `torch.compile`: faster from a few epochs on, same mathematics.
        progress: show a bar with accuracy, test error and time left.
        start: pretrained weights of the student's network: a finished run, its folder, or a ``.safetensors`` file. A
            classifier of another number of classes is new.

    Returns:
        The finished run.

    Raises:
        ValueError: if the teacher is missing, unfinished or of other classes, the pretrained weights are missing or
            another network's, ``out`` holds another run or a damaged one, or the networks cannot be compiled here.
        OSError: if ``out`` cannot be written to, or another process trains into it.
        FloatingPointError: if the loss or a weight stops being a number; the run is then marked as failed.
        MemoryError: if a batch does not fit into memory; so is it then.
    """
    if teacher is not None and recipe.method in TEACHERLESS:
        raise ValueError(f"method {recipe.method!r} uses no teacher: drop it, or choose a method that has one")
    (run,) = train_together({out: recipe}, root, teacher, compile, progress, start)
    return run


def train_together(
    recipes: Mapping[str | Path, Recipe],
    root: str | Path | None = None,
    teacher: Run | str | Path | None = None,
    compile: bool = False,
    progress: bool = True,
    start: Run | str | Path | None = None,
) -> list[Run]:
    """Train students side by side on the same batches, with one pass of the teacher for all of them.

    Each run is what `train` would have made of it alone, bit for bit; it only costs less, and resumes alike. A run that
    fails is marked as failed and the others go on.

    Args:
        recipes: each run's folder and recipe; all must see the same batches.
        root, teacher, compile, progress, start: as for `train`; methods that use no teacher do not get one.

    Returns:
        The finished runs, in order.

    Raises:
        ValueError, OSError, FloatingPointError, MemoryError: as `train`; the first of several, when all others have
            finished.
    """
    distributed.start()
    if compile:
        check_compiler()
        if distributed.size() > 1:
            raise ValueError("several processes cannot train compiled networks: leave out compile, or torchrun")
    recipe, pretrained = _common(recipes), _pretrained(recipes.values(), start)
    held = {out: _teacher(r, teacher) if r.method not in TEACHERLESS else None for out, r in recipes.items()}
    train_set, test_set = (load(recipe.dataset, split, root, recipe.image_size) for split in ("train", "test"))
    if recipe.train_images is not None:
        train_set = train_set.take(recipe.train_images)
    distributed.check(len(train_set), recipe.batch, len(test_set))
    first = pretrained and pretrained.hash
    with _in_memory(recipe), ExitStack() as locks:
        opened = [_open(recipes[out], Path(out), train_set, test_set, held[out], first, locks) for out in recipes]
        if waiting := [run for run in opened if run.status != "finished"]:
            taught = next((held[out] for out in held if held[out]), None)
            _Cohort(waiting, train_set, test_set, taught, compile, pretrained).go(progress)
    distributed.agree("finished")
    return opened


@contextmanager
def _in_memory(recipe: Recipe) -> Iterator[None]:
    """Say in one sentence that memory ran out: torch says it in many, and on a CPU in a mere RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)):
            raise
        raise MemoryError(f"no memory left for a batch of {recipe.batch} images: lower batch") from None


def _common(recipes: Mapping[str | Path, Recipe]) -> Recipe:
    """The first recipe, if all see the same batches in the same precision."""
    if not recipes:
        raise ValueError("there is no recipe: give at least one run")
    first, *others = recipes.values()
    for field in ("dataset", "image_size", "train_images", "batch", "augment", "precision", "seed"):
        if len(values := {getattr(recipe, field) for recipe in (first, *others)}) > 1:
            raise ValueError(f"runs that train together must agree in {field}, got {sorted(map(str, values))}")
    return first


class _Pretrained(NamedTuple):
    """Weights to start from, and the hash of their file."""

    tensors: dict[str, Tensor]
    hash: str


def _pretrained(recipes: Iterable[Recipe], start: Run | str | Path | None) -> _Pretrained | None:
    """The weights to start from, if they fit all students."""
    if start is None:
        if kept := [r for r in recipes if r.frozen_groups or r.fixed_norm]:
            what = f"frozen_groups={kept[0].frozen_groups} and fixed_norm={kept[0].fixed_norm}"
            raise ValueError(f"{what} keep pretrained weights as they are, and there are none: give them as `start`")
        return None
    if isinstance(start, Run) or Path(start).is_dir():
        run = start if isinstance(start, Run) else Run.load(start)
        run.model()  # refuses weights that are missing or not those of the receipt
        start = run.folder / "weights.safetensors"
    try:
        content = Path(start).read_bytes()
        tensors = load_tensors(content)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        what = f"cannot start from {str(start)!r} ({why})"
        raise ValueError(f"{what}: give a finished run or a safetensors file") from None
    with torch.random.fork_rng(devices=[]):
        for name in {recipe.student for recipe in recipes}:
            start_from(build(name), tensors)
    return _Pretrained(tensors, hashlib.sha256(content).hexdigest())


def _teacher(recipe: Recipe, teacher: Run | str | Path | None) -> Run:
    if teacher is None:
        raise ValueError(f"method {recipe.method!r} needs a teacher: give a finished run or its folder as `teacher`")
    run = teacher if isinstance(teacher, Run) else Run.load(teacher)
    if run.status != "finished":
        raise ValueError(f"the teacher {run.folder.name!r} is {run.status}, not finished: train it to its end first")
    if recipe.teacher not in (None, run.recipe.student):
        held = run.recipe.student
        raise ValueError(f"the recipe's teacher is {recipe.teacher!r}, but {run.folder.name!r} holds a {held!r}")
    return run


def describe(
    recipe: Recipe, out: Path, train_set: Images, test_set: Images, teacher: Run | None, start: str | None = None
) -> Run:
    """A run that has not begun, as its receipt will describe it; nothing is written.

    Args:
        teacher: its finished run, for methods that have one.
        start: the hash of the pretrained weights, if any.

    Raises:
        ValueError: if the teacher knows another number of classes than the images have.
    """
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
    key = runs.run_key(recipe, data, known, start)
    return Run(folder=out, key=key, recipe=recipe, data=data, teacher=known, start=start, provenance={})


def _open(
    recipe: Recipe, out: Path, train_set: Images, test_set: Images, teacher: Run | None, start: str | None,
    locks: ExitStack,
) -> Run:  # fmt: skip
    """The run in ``out``, or a new one, locked unless it is finished; another run there is refused."""
    new, receipt = describe(recipe, out, train_set, test_set, teacher, start), out / "receipt.json"
    if distributed.is_first() and not (receipt.exists() and Run.load(out).status == "finished"):
        locks.enter_context(runs.lock(out))
    if not receipt.exists():
        _save(new)
        return new
    run = Run.load(out)
    if run.status == "finished" and distributed.is_first():
        for left in ("checkpoint.safetensors", ".lock"):
            with suppress(OSError):  # there is none, unless the process was killed just before it could remove it
                (out / left).unlink()
    if run.key != new.key:
        what = _differences(run, new.recipe, new.data)
        raise ValueError(f"{str(out)!r} holds another run ({what}): choose another folder, or remove it")
    return run


def _save(run: Run) -> None:
    if distributed.is_first():
        run.save()


def _differences(run: Run, recipe: Recipe, data: runs.Data) -> str:
    old, new = run.recipe.model_dump(), recipe.model_dump()
    fields = [f"{name} {old[name]!r} there, {new[name]!r} now" for name in new if old[name] != new[name]]
    if run.data != data:
        fields.append("other images")
    return "; ".join(fields) or "made by another teacher, other first weights or another version of the code"


class _Cohort:
    """Students that learn side by side: their images, their teacher, and the loop over epochs and batches."""

    def __init__(
        self, waiting: list[Run], train_set: Images, test_set: Images, teacher: Run | None, compile: bool,
        pretrained: _Pretrained | None,
    ) -> None:  # fmt: skip
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.images = train_set.to(self.device)
        self.test_set, self.recipe = test_set, waiting[0].recipe
        wrap = torch.compile if compile else (lambda function: function)
        self.teacher = teacher and teacher.model()
        for run in waiting:
            run.provenance = runs.provenance(self.device, compile) | {"processes": distributed.size()}
        self.students = [_Student(run, self.teacher, self.device, wrap, pretrained) for run in waiting]
        if self.teacher:
            self.teacher = self.teacher.to(self.device, memory_format=torch.channels_last).requires_grad_(False)
        self.teacher_forward = wrap(self.teacher.groups) if teacher else None
        self.steps = math.ceil(len(self.images) / self.recipe.batch)  # in one epoch

    def go(self, progress: bool) -> None:
        """Train the epochs that are missing, and raise the first error, if any, at the end."""
        distributed.agree([(student.run.key, len(student.run.history)) for student in self.students])
        first, *others = self.students
        recipe, silent = first.recipe, not (progress and distributed.is_first())
        title = f"{recipe.student} {recipe.method} seed {recipe.seed}" + (f" and {len(others)} more" if others else "")
        total, done = (self.steps * sum(epochs) for epochs in zip(*map(_Student.epochs, self.students), strict=True))
        with tqdm(total=total, initial=done, desc=title, disable=silent) as bar:
            while waiting := [student for student in self.students if student.is_learning()]:
                epoch = min(len(student.run.history) for student in waiting)
                self._epoch([student for student in waiting if len(student.run.history) == epoch], epoch, bar)
        for error in (student.error for student in self.students):
            if error is not None:
                raise error

    def _epoch(self, students: list["_Student"], epoch: int, bar: tqdm) -> None:
        """One pass over the images for those who are equally far."""
        start, together = time.monotonic(), len(students)
        for student in students:
            student.begin()
        for step, (images, labels, share) in enumerate(self._batches(epoch)):
            x = standardize(images)
            with self._precision():
                taught = self._teach(x) if any(student.is_taught(epoch) for student in students) else (None, None)
            for student in students:
                with student.failing():
                    student.step(x, labels, share, taught, self._precision, epoch + step / self.steps)
                    if step % 20 == 19 or step == self.steps - 1:
                        student.check(epoch, step, len(self.images), bar)
                bar.update()
            students = [student for student in students if student.error is None]
        for student in students:
            with student.failing():
                student.end(epoch, len(self.images), self.test_set)
                bar.set_postfix_str(f"test error {student.run.test_error:.2f} %")
        for student in [student for student in students if student.error is None]:
            with student.failing():
                student.save((time.monotonic() - start) / together)

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Augmented batches in an order that depends on seed and epoch alone, so that any epoch can be redone.

        Of each the part that this process computes, and which share of the batch that is.
        """
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        batches = torch.randperm(len(self.images), generator=generator).split(self.recipe.batch)
        views = self.images.views(batches, self.recipe.augment, generator, distributed.part)
        for batch, (images, labels) in zip(batches, views, strict=True):
            yield images, labels, len(labels) / len(batch)

    def _teach(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            return self.teacher_forward(x)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16")


class _Student:
    """One run's network, optimizer and place in the training."""

    def __init__(
        self, run: Run, teacher: Network | None, device: torch.device, wrap: Callable, pretrained: _Pretrained | None
    ) -> None:
        self.run, self.recipe, self.error = run, run.recipe, None
        self.teacher = None if run.recipe.method in TEACHERLESS else teacher
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.recipe.seed)
            model = build(self.recipe.student, run.data.classes)
        if pretrained:
            start_from(model, pretrained.tensors)
        self.kept = _keep(model, self.recipe)
        self.regressors = _regressors(self.recipe, model, self.teacher).to(device)
        self.model = model.to(device, memory_format=torch.channels_last)
        if distributed.size() > 1:
            distributed.share_statistics(self.model)
        self.forward = wrap(self.model.groups)
        settings = {"momentum": self.recipe.momentum, "weight_decay": self.recipe.weight_decay, "fused": True}
        # All that is trained, by name.
        self.parameters = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        self.parameters |= {f"regressor.{name}": weight for name, weight in self.regressors.named_parameters()}
        self.optimizer = torch.optim.SGD(self.parameters.values(), self.recipe.lr, **settings)
        self.stage, _ = stage(self.recipe, 0.0)
        _restore(self)

    def epochs(self) -> tuple[int, int]:
        """In all, and done."""
        return self.recipe.epochs, len(self.run.history)

    def is_taught(self, epoch: int) -> bool:
        return self.teacher is not None and epoch >= self.recipe.transfer_from

    def is_learning(self) -> bool:
        return self.error is None and self.run.status != "finished"

    @contextmanager
    def failing(self) -> Iterator[None]:
        """An error in here ends this run, and no other."""
        try:
            with _in_memory(self.recipe):
                yield
        except Exception as error:
            self.error = error
            self.run.status, self.run.reason = "failed", f"{type(error).__name__}: {error}"
            with suppress(OSError):  # a full disk, say: then that is the error to tell
                _save(self.run)
            if distributed.size() > 1 and not isinstance(error, FloatingPointError):
                raise  # the other processes have no such error, and would wait for this one for ever

    def begin(self) -> None:
        self.model.train()
        for norm in self.kept:
            norm.eval()
        self.sums = {}

    def step(self, x: Tensor, labels: Tensor, share: float, taught: tuple, precision: Callable, epochs: float) -> None:
        """One step of SGD, ``epochs`` after the beginning, on images that are a ``share`` of the step's."""
        progress = epochs / self.recipe.epochs
        self._schedule(progress)
        with precision():
            networks = self.recipe, self.model, self.teacher, self.regressors
            batch = Batch(*networks, x, labels, *self.forward(x), *taught)
        wanted = weights(self.recipe, progress)
        terms = {name: TERMS[name](batch) for name in wanted}
        loss = sum(wanted[name] * terms[name] for name in wanted)
        self.optimizer.zero_grad(set_to_none=True)
        # Every term is a mean over images, so that the batch's is the sum of the parts', each times its share. They are
        # added up here: DistributedDataParallel hides `groups`, and is not made for the gradient terms' autograd.grad.
        (loss * share).backward()
        wrong = (batch.logits.argmax(dim=1) != labels).float().mean()
        sums = {n: v.detach() * len(labels) for n, v in {"loss": loss, **terms, "train_error": wrong}.items()}
        gradients = [weight.grad for weight in self.parameters.values() if weight.grad is not None]
        distributed.add_up([*gradients, *sums.values()])
        self._welcome()
        self.optimizer.step()
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def _welcome(self) -> None:
        """Give a momentum of zero to weights that get their first gradient later than others, as regressors do before
        ``transfer_from``: torch's fused SGD takes a momentum for all weights or for none."""
        state = self.optimizer.state
        late = [w for w in self.parameters.values() if w.grad is not None and w not in state] if state else []
        for weight in late:
            state[weight]["momentum_buffer"] = torch.zeros_like(weight)

    def _schedule(self, progress: float) -> None:
        """Set the learning rate; start without momentum after a drop (the authors' code makes a new optimizer there)
        and when a new stage begins."""
        lr, group = learning_rate(self.recipe, progress), self.optimizer.param_groups[0]
        now, _ = stage(self.recipe, progress)
        if now != self.stage or (self.recipe.schedule in STEPS and lr < group["lr"]):
            self.optimizer.state.clear()
        self.stage, group["lr"] = now, lr

    def check(self, epoch: int, step: int, images: int, bar: tqdm) -> None:
        if not math.isfinite(self.sums["loss"].item()):
            where = f"epoch {epoch + 1}, by step {step + 1} (lr {self.optimizer.param_groups[0]['lr']:.3g})"
            raise FloatingPointError(f"the loss is {self.sums['loss'].item()} in {where}: lower lr or beta")
        seen = min((step + 1) * self.recipe.batch, images)
        bar.set_postfix_str(f"train accuracy {100 - 100 * self.sums['train_error'].item() / seen:.1f} %")

    def end(self, epoch: int, images: int, test_set: Images) -> None:
        """Write the epoch into the history."""
        row = {name: (value / images).item() for name, value in self.sums.items()}
        row["train_error"] *= 100
        most = {} if self.recipe.image_size is None else {"batch": self.recipe.batch}  # large images fill the memory
        row["test_error"] = evaluate(self.model, test_set, **most)
        if not all(tensor.isfinite().all() for tensor in self.model.state_dict().values()):
            raise FloatingPointError(f"the weights are no numbers after epoch {epoch + 1}: lower lr or beta")
        self.run.history.append({"epoch": epoch + 1, "lr": self.optimizer.param_groups[0]["lr"]} | row)

    def save(self, seconds: float) -> None:
        """Write the checkpoint; after the last epoch the weights and the finished receipt instead."""
        self.run.history[-1]["seconds"] = seconds
        if len(self.run.history) < self.recipe.epochs:
            return _checkpoint(self)
        content = save_tensors(_contiguous(self.model.state_dict()))
        self.run.weights = hashlib.sha256(content).hexdigest()
        if distributed.is_first():
            runs.write(self.run.folder / "weights.safetensors", content)
        self.run.status, self.run.reason = "finished", None
        _save(self.run)
        if distributed.is_first():
            (self.run.folder / "checkpoint.safetensors").unlink(missing_ok=True)


@torch.no_grad()
def evaluate(model: nn.Module, images: Images, batch: int = 500) -> float:
    """Test error in %: the share of images whose largest logit is not the label's. Ends in evaluation mode.

    Under ``torchrun`` all processes call it, and each takes its part of the images.
    """
    model.eval()
    device = next(model.parameters()).device
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    for x, y in images.batches(batch, distributed.part):
        wrong += (model(standardize(x.to(device))).argmax(dim=1) != y.to(device)).sum()
    distributed.add_up([wrong])
    return 100 * wrong.item() / len(images)


def _keep(model: Network, recipe: Recipe) -> list[nn.Module]:
    """Take what the recipe keeps as it is out of the training; returns the batch norms whose statistics stay, too."""
    for name in first_groups(model, recipe.frozen_groups):
        model.get_parameter(name).requires_grad_(False)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [norm for norm in norms if recipe.fixed_norm or not norm.weight.requires_grad]
    for norm in kept:
        norm.requires_grad_(False)
    return kept


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _checkpoint(student: _Student) -> None:
    """Write what resuming needs: weights, momentum and history in one file, so that they agree; then the receipt."""
    state = {name: student.optimizer.state.get(weight, {}) for name, weight in student.parameters.items()}
    momentum = {f"momentum.{name}": held["momentum_buffer"] for name, held in state.items() if held}
    model = {f"model.{name}": tensor for name, tensor in student.model.state_dict().items()}
    model |= {f"regressors.{name}": tensor for name, tensor in student.regressors.state_dict().items()}
    about, tensors = {"key": student.run.key, "history": json.dumps(student.run.history)}, _contiguous(model | momentum)
    content = save_tensors(tensors, about | {"sha256": _digest(tensors, about)})
    student.run.status, student.run.reason = "running", None
    if distributed.is_first():
        runs.write(student.run.folder / "checkpoint.safetensors", content)
        student.run.save()


def _digest(tensors: dict[str, Tensor], about: dict[str, str]) -> str:
    """Hash of a checkpoint, which safetensors has none of: a flipped bit must not be trained on."""
    digest = hashlib.sha256(json.dumps([about["key"], about["history"]]).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _restore(student: _Student) -> None:
    """Go back to the last checkpoint, or to the beginning where there is none."""
    path = student.run.folder / "checkpoint.safetensors"
    student.run.history = []
    if not path.exists():
        return
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if about.get("key") != student.run.key:
            raise ValueError("it belongs to another run")
        if about["sha256"] != _digest(tensors, about):
            raise ValueError("it is damaged")
        student.model.load_state_dict(_part(tensors, "model."))
        student.regressors.load_state_dict(_part(tensors, "regressors."))
        for name, buffer in _part(tensors, "momentum.").items():
            weight = student.parameters[name]
            student.optimizer.state[weight]["momentum_buffer"] = torch.empty_like(weight).copy_(buffer)
        student.run.history = json.loads(about["history"])
        steps = math.ceil(student.run.data.train / student.recipe.batch)
        last = (len(student.run.history) - 1 / steps) / student.recipe.epochs  # where the last step was
        student.stage, _ = stage(student.recipe, last)
        student.optimizer.param_groups[0]["lr"] = student.run.history[-1]["lr"]
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        why = str(error).splitlines()[0]
        why = f"checkpoint {str(path)!r} cannot be used ({why}): remove it to train from the beginning"
        raise ValueError(why) from None
