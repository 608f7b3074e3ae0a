import subprocess
import sys

import pytest
import torch

from atbook.compat import torchvision


def test_datasets_transforms_and_models_work():
    assert issubclass(torchvision.datasets.CIFAR100, torchvision.datasets.CIFAR10)
    flipped = torchvision.transforms.functional.hflip(torch.arange(12).reshape(3, 2, 2))
    assert flipped.tolist() == torch.arange(12).reshape(3, 2, 2).flip(2).tolist()
    assert torchvision.models.resnet18(num_classes=3)(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_named_operators_get_no_false_kernel():
    boxes, scores = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]]), torch.tensor([0.9, 0.8])
    if torchvision.extension._has_ops():
        assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [0]
    else:
        with pytest.raises(RuntimeError, match="torchvision"):
            torchvision.ops.nms(boxes, scores, 0.5)


def test_other_errors_of_the_import_are_not_hidden(tmp_path):
    (tmp_path / "torchvision.py").write_text("print('tried'); raise RuntimeError('broken in another way')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import atbook.compat"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "tried\n"  # once: no operators are named, nothing is tried again
    assert "broken in another way" in done.stderr
