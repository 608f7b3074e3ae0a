"""Figures that the reader can play with: one set of formulas in JavaScript, for the website and for Jupyter.

The website has no Python behind it, so what moves is computed in the page by ``atbook/static/labs.js`` from a little
data that these functions put there. In Jupyter, anywidget runs the same file. Each function returns a `Lab`, which a
notebook shows by itself.
"""

import html
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

import anywidget
import torch
import traitlets
from torch import Tensor

from atbook.data import Images, standardize
from atbook.models import Network
from atbook.runs import Run

STATIC = Path(__file__).with_name("static")
SHOW = """
export default { render({ model, el }) {
  const place = document.createElement("div");
  place.className = "atbook-lab";
  el.append(place);
  window.atbookLabs.labs[model.get("lab")](place, model.get("content"));
} };
"""


class Lab(anywidget.AnyWidget):
    """An interactive figure: a widget in Jupyter, plain HTML elsewhere.

    Attributes:
        lab: which one, by its name in ``labs.js``.
        content: its data, as that file describes them.
        figure: name of the figure of the page whose picture it replaces; empty for none.
    """

    _esm = (STATIC / "labs.js").read_text(encoding="utf-8") + SHOW
    _css = STATIC / "labs.css"
    lab = traitlets.Unicode().tag(sync=True)
    content = traitlets.Dict().tag(sync=True)
    figure = traitlets.Unicode()

    def html(self) -> str:
        """The place in a page, with the data inside."""
        held = json.dumps(self.content, separators=(",", ":")).replace("<", "\\u003c")  # "</script>" would end it
        names = f'data-lab="{html.escape(self.lab)}" data-figure="{html.escape(self.figure)}"'
        return f'<div class="atbook-lab" {names}><script type="application/json">{held}</script></div>'

    def _repr_mimebundle_(self, **kwargs: object) -> tuple[dict[str, object], dict[str, object]]:
        bundle, metadata = super()._repr_mimebundle_(**kwargs)
        return bundle | {"text/html": self.html(), "text/plain": f"<Lab {self.lab}>"}, metadata


def attention_explorer(images: Images, networks: Mapping[str, Network], chosen: Sequence[int], figure: str = "") -> Lab:
    """Maps of a few images: choose image, network, group, mapping function and p; see the score against the mask.

    Activations are sent as whole numbers from 0 to 255, each group of a network with its own unit.

    Args:
        images: with masks.
        networks: their names and themselves, in evaluation mode.
        chosen: which images, by number. Each takes about 33 kB of the page for a WRN-16-2, half of it for a WRN-16-1;
            the first group, which would take more than the others together, is left out.
        figure: see `Lab`.

    Raises:
        ValueError: if the images have no masks.
    """
    if images.masks is None:
        raise ValueError(f"{images.label} has no object masks, which the score needs: take shapes")
    pictures = [
        {
            "title": images.classes[images.labels[n]],
            "size": images.images.shape[2],
            "rgb": _text(images.images[n].permute(1, 2, 0)),
            "mask": _text(images.masks[n]),
        }
        for n in chosen
    ]
    content = {"images": pictures, "networks": []}
    for name, network in networks.items():
        with torch.no_grad():
            A = network.groups(standardize(images.images[list(chosen)]))[1]
        content["networks"].append({"name": name, "groups": [_quantized(A[j], f"group {j}") for j in (1, 2)]})
    return Lab(lab="explorer", content=content, figure=figure)


def loss_lab(Q_S: Tensor, Q_T: Tensor, figure: str = "") -> Lab:
    """Change a student's map cell by cell; watch the normalized difference, both forms of the loss and the gradient.

    Args:
        Q_S, Q_T: maps of student and teacher, one image, `(h, h)`, zero or more.
        figure: see `Lab`.

    Raises:
        ValueError: if the maps are not square and of one size, or negative.
    """
    if Q_S.ndim != 2 or Q_S.shape != Q_T.shape or Q_S.shape[0] != Q_S.shape[1]:
        raise ValueError(f"maps must be (h, h) and of one size, got {tuple(Q_S.shape)} and {tuple(Q_T.shape)}")
    if min(Q_S.min(), Q_T.min()) < 0:
        raise ValueError("a map has a negative value: maps of activations have none")
    student, teacher = (torch.as_tensor(Q).double().flatten().round(decimals=4).tolist() for Q in (Q_S, Q_T))
    return Lab(lab="loss", content={"size": len(Q_S), "student": student, "teacher": teacher}, figure=figure)


def temperature_lab(z_S: Tensor, z_T: Tensor, labels: Tensor, classes: Sequence[str], figure: str = "") -> Lab:
    """Answers of teacher and student for a few images, softened by a temperature from 1 to 32.

    Args:
        z_S, z_T: logits `(N, K)`.
        labels: `(N,)`, in 0 to K - 1.
        classes: K names.
        figure: see `Lab`.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if z_S.shape != z_T.shape or z_S.shape != (len(labels), len(classes)):
        got = f"{tuple(z_S.shape)} and {tuple(z_T.shape)} for {len(labels)} labels and {len(classes)} classes"
        raise ValueError(f"logits must be (images, classes) of both networks, got {got}")
    student, teacher = (z.detach().double().round(decimals=4).tolist() for z in (z_S, z_T))
    cases = [
        {"title": f"{n + 1}: {classes[k]}", "label": k, "teacher": teacher[n], "student": student[n]}
        for n, k in enumerate(labels.tolist())
    ]
    return Lab(lab="temperature", content={"classes": list(classes), "cases": cases}, figure=figure)


def transfer_lab(image: Tensor, Q_T: Tensor, Q_S: Mapping[int, Tensor], figure: str = "") -> Lab:
    """A student's map approaching the teacher's while it learns: a moving picture of one image.

    It stands still, at the last step, for readers who ask their system for less motion.

    Args:
        image: uint8 `(3, H, H)`.
        Q_T: the teacher's map `(h, h)`, zero or more.
        Q_S: step of training to the student's map at that step, of the same shape; in the order of the picture.
        figure: see `Lab`.

    Raises:
        ValueError: if the maps are not square and of one size, or negative, or there is none of the student.
    """
    shapes = {tuple(Q.shape) for Q in (Q_T, *Q_S.values())}
    if not Q_S or shapes != {(len(Q_T), len(Q_T))}:
        raise ValueError(f"maps must be (h, h) and of one size, at least one of the student, got {sorted(shapes)}")
    if min(Q.min() for Q in (Q_T, *Q_S.values())) < 0:
        raise ValueError("a map has a negative value: maps of activations have none")
    teacher, *frames = (_text((255 * Q / Q.max().clamp(min=1e-30)).round()) for Q in (Q_T, *Q_S.values()))
    picture = {"size": image.shape[1], "rgb": _text(image.permute(1, 2, 0))}
    content = {"image": picture, "size": len(Q_T), "teacher": teacher, "steps": list(Q_S), "frames": frames}
    return Lab(lab="transfer", content=content, figure=figure)


def runs_lab(runs: Sequence[Run], figure: str = "") -> Lab:
    """Receipts as a table to sort and filter; the curve of test errors belongs to the row in focus."""
    columns = ["run", "method", "seed", "student", "teacher", "images", "epochs", "test error %"]
    done = [run for run in runs if run.status == "finished"]
    rows = [
        [
            run.folder.name, run.recipe.method, run.recipe.seed, run.recipe.student, run.recipe.teacher or "",
            run.data.train, run.recipe.epochs, round(run.test_error, 2),
        ]
        for run in done
    ]  # fmt: skip
    curves = [[round(row["test_error"], 2) for row in run.history] for run in done]
    return Lab(lab="runs", content={"columns": columns, "rows": rows, "curves": curves}, figure=figure)


def _text(values: Tensor) -> str:
    return b64encode(values.to(torch.uint8).contiguous().numpy().tobytes()).decode()


def _quantized(A: Tensor, name: str) -> dict[str, object]:
    """Absolute activations `(N, C, H, H)` in units of a 255th of the largest."""
    scale = A.abs().max().clamp(min=1e-12).item() / 255
    values = [_text((a.abs() / scale).round()) for a in A]
    return {"name": name, "channels": A.shape[1], "size": A.shape[2], "scale": scale, "values": values}
