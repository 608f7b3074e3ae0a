"""One training in several processes: each takes its slice of every batch, and all make the step of one process.

``torchrun --nproc-per-node 2 -m atbook.cli train ...`` starts two of them; without it there is one, and nothing here
changes what that one computes. All need the run's folder and the images; the first alone writes.
"""

import atexit
import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start() -> None:
    """Join the processes that ``torchrun`` started, if it did: through nccl with GPUs, one each, else through gloo.

    Raises:
        ValueError: if this machine has more processes than GPUs.
    """
    if _joined() or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    if gpus := torch.cuda.device_count():
        if (own := int(os.environ.get("LOCAL_RANK", 0))) >= gpus:
            raise ValueError(f"process {own} finds {gpus} GPUs only: start torchrun with --nproc-per-node {gpus}")
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if gpus else "gloo")
    atexit.register(lambda: _joined() and dist.destroy_process_group())


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if _joined() else 0


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def check(images: int, batch: int, tested: int) -> None:
    """Refuse what is too small to be shared out.

    Args:
        images: in an epoch.
        batch: images per step, of all processes together.
        tested: images of the test.

    Raises:
        ValueError: if a process would get no image of some batch, or of the test.
    """
    if tested < size():
        raise ValueError(f"the test has {tested} images for {size()} processes: start fewer")
    smallest = images % batch or batch
    if smallest < size():
        why = f"the last batch of an epoch has {smallest} images for {size()} processes"
        raise ValueError(f"{why}: choose another batch than {batch}, or fewer processes")


def agree(state: object) -> None:
    """Wait for all processes, and make sure that all are in the same state.

    Raises:
        ValueError: if they are not.
    """
    if size() == 1:
        return
    states = [None] * size()
    dist.all_gather_object(states, state)
    if any(other != state for other in states):
        raise ValueError(f"the processes are not equally far ({states}): all need the same images, code and run folder")


def part(n: int) -> slice:
    """This process's share of ``n`` images: as many as every other's, up to one."""
    return slice(n * rank() // size(), n * (rank() + 1) // size())


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by its sum over all processes."""
    if size() == 1:
        return
    tensors = list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def share_statistics(model: nn.Module) -> None:
    """Let a network's batch norm take means and variances over the whole batch, not over each process's slice."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm  # the same parameters, buffers and names


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient, as every process's loss depends on it."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch norm over the slices of all processes; torch's SyncBatchNorm needs GPUs, and cannot be tested without."""

    def forward(self, x: Tensor) -> Tensor:
        """As `torch.nn.BatchNorm2d`, for activations `(N, C, H, W)` whose N may differ between processes."""
        if not self.training:
            return super().forward(x)
        A = x.to(torch.promote_types(x.dtype, torch.float32))
        count = A.new_tensor([A.numel() / A.shape[1]])
        sums = _Sum.apply(torch.cat([A.sum(dim=(0, 2, 3)), count]))
        n, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        centred = A - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum(dim=(0, 2, 3))) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
