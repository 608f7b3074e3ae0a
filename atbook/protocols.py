"""Named protocols: recipe fields that belong together. Imports no torch."""

from atbook.names import choose

PROTOCOLS: dict[str, dict[str, object]] = {
    # The authors' code: 200 epochs of SGD, the learning rate cut to a fifth at 60, 120 and 160.
    "paper": {"epochs": 200, "batch": 128, "lr": 0.1, "schedule": "step"},
    # Twenty epochs on a CPU. The learning rate was chosen on 5,000 of CIFAR-10's training images, held out, by the
    # teacher's error alone (see chapter 11); the same for all methods.
    "short": {"epochs": 20, "batch": 128, "lr": 0.2, "schedule": "one-cycle", "precision": "bfloat16"},
    # The paper's section 4.2.2, with its authors' settings: losses on the last two groups, added at epoch 60 of 100.
    "imagenet": {
        "epochs": 100, "batch": 256, "lr": 0.1, "schedule": "step-imagenet", "weight_decay": 1e-4,
        "student": "resnet18", "dataset": "folder", "image_size": 224, "groups": (2, 3), "transfer_from": 60,
    },
    # Does it run?
    "smoke": {"epochs": 1, "batch": 128, "lr": 0.1, "schedule": "one-cycle", "train_images": 1000},
}


def fields(name: str) -> dict[str, object]:
    """The recipe fields of a protocol.

    Raises:
        ValueError: if there is no such protocol.
    """
    return dict(PROTOCOLS[choose("protocol", name, tuple(PROTOCOLS))])
