"""A digit in the corner and four others: which of them is of the same class? Must places ask each other?

They must: one block finds it where the answer is read from the query's own token. All controls find the four and guess
among them. The class token of a single block asks the same of every image. That of two blocks could ask the query
first, but did not learn to in these few steps. Nor did the query's token learn where the positions began at 0.02, as
in the paper's code, and not at 0.5; and with one of five seeds it did not either. One of the four heads looks at the
cell that is named, about as often as the answer is right; the others do not, so that the mean over heads, and with it
the rollout, is a poor picture.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy

from atbook.demos.toy import SIZE, accuracy, digits, fit, paste
from atbook.mechanisms.self_attention import SelfAttention, VisionTransformer, rollout
from atbook.names import choose

CHANCE = 25.0  # percent: one of the four
ARMS = (
    "uniform weights", "no query", "class token, one block", "class token, two blocks", "query's token",
)  # fmt: skip
CELL = 8  # pixels, height and width of a digit, and of a patch
CELLS = (SIZE // CELL) ** 2  # of an image; the query is in the first
OTHERS = 4


def task(n: int, train: bool, seed: int, query: bool = True) -> tuple[Tensor, Tensor]:
    """Images `(n, 1, 32, 32)` of 4x4 cells, and the number of the cell to be named `(n,)`, 1 to 15.

    Four digits of four different classes stand in random cells. In cell 0 is another writing of one of these classes;
    without the ``query`` it is of any class, and does not say which is asked for.
    """
    generator = torch.Generator().manual_seed(seed)
    known, labels = digits(train)
    known = avg_pool2d(known[:, None], 16 // CELL)[:, 0]
    classes = torch.rand(n, 10, generator=generator).argsort(dim=1)[:, :OTHERS]
    cells = 1 + torch.rand(n, CELLS - 1, generator=generator).argsort(dim=1)[:, :OTHERS]
    images = torch.zeros(n, SIZE, SIZE)
    for k in range(OTHERS):
        of_class = (labels == classes[:, k, None]).float()
        two = torch.multinomial(of_class, 2, generator=generator)  # different ones
        paste(images, known[two[:, 0]], cells[:, k] // 4 * CELL, cells[:, k] % 4 * CELL)
        if k == 0:
            asked = two[:, 1] if query else torch.randint(len(known), (n,), generator=generator)
            paste(images, known[asked], torch.zeros(n).long(), torch.zeros(n).long())
    return images[:, None], cells[:, 0]


class Everywhere(SelfAttention):
    """Stands in for self-attention: each token takes equally from all."""

    def weights(self, Q: Tensor, K: Tensor) -> Tensor:
        return Q.new_full((*Q.shape[:-1], K.shape[-2]), 1 / K.shape[-2])


def build(arm: str) -> VisionTransformer:
    """The model of an arm: one block, but for ``class token, two blocks``."""
    depth = 2 if arm == "class token, two blocks" else 1
    model = VisionTransformer(1, CELL, CELLS, classes=CELLS, width=64, depth=depth, heads=4)
    for block in model.blocks if arm == "uniform weights" else ():
        block.MSA = Everywhere(64, heads=4)
    return model


def read_at(arm: str) -> int:
    """Number of the token from which the answer is read: that of the class token, or of the query."""
    return 0 if arm.startswith("class token") else 1


def run(arm: str, seed: int, steps: int = 600) -> tuple[float, dict[str, Tensor]]:
    """Train one arm.

    Returns:
        Accuracy in percent on 2,000 new images of digits not trained on; and, of the first six of them, ``images``
        `(6, 1, 32, 32)`, ``labels`` and ``answers`` `(6,)`, ``maps`` `(6, depth, 4, 17, 17)` of all blocks and heads
        (token 0 is the class token, token 1 the query), and ``rollout`` `(6, 4, 4)`, that of the token from which the
        answer is read, over the cells; and ``found`` `(5,)`, in how many percent of the 2,000 that token's weight is
        largest, the query's own cell left out, at the cell to be named: in each head of the last block, in the rollout.

    Raises:
        ValueError: for an unknown arm.
    """
    choose("arm", arm, ARMS)
    torch.manual_seed(seed)
    model, token = build(arm), read_at(arm)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model.head(model.tokens(x)[0][:, token]), y)

    data = task(8000, True, seed, query=arm != "no query")
    fit(model, loss, data, steps, seed, lr=3e-3)
    images, labels = task(2000, False, 1000 + seed, query=arm != "no query")
    with torch.no_grad():
        z, maps = model.tokens(images)
        logits = model.head(z[:, token])
    picture = {"images": images[:6], "labels": labels[:6], "answers": logits[:6].argmax(dim=1), "maps": maps[:6]}
    over_cells = torch.cat([maps[:, -1, :, token, 1:], rollout(maps)[:, None, token, 1:]], dim=1)
    picture["rollout"] = over_cells[:6, -1].unflatten(1, (4, 4))
    picture["found"] = 100 * (over_cells[..., 1:].argmax(dim=2) + 1 == labels[:, None]).float().mean(dim=0)
    return accuracy(logits, labels), picture
