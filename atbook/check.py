"""Do the weights give the error that the receipt says?"""

from collections.abc import Callable
from pathlib import Path

from atbook.data import load
from atbook.runs import load_runs
from atbook.train import evaluate


def recheck(folder: str | Path, root: str | Path | None = None, say: Callable[[str], object] = print) -> list[str]:
    """Compute the test error of every run that has its weights anew, from the images, and compare with its receipt.

    Precision matters in the last digit: the receipt's error may have been computed by another machine, so one image in
    a thousand may change sides, and one in any case.

    Args:
        folder: where the runs are.
        root: where the images are (see `atbook.data.load`).
        say: called with one line for each run.

    Returns:
        Names of the runs that do not agree.

    Raises:
        FileNotFoundError: if there is no folder, or no run with weights in it.
        ValueError: if a receipt or a weight file is damaged, or the images are not as many, or of as many classes, as
            the run's.
    """
    runs = [run for run in load_runs(folder) if (run.folder / "weights.safetensors").is_file()]
    if not runs:
        raise FileNotFoundError(f"no run in {str(folder)!r} has weights: give a folder that atbook train wrote")
    wrong = []
    for run in runs:
        images = load(run.recipe.dataset, "test", root, run.recipe.image_size)
        (n, classes), (here, of) = (run.data.test, run.data.classes), (len(images), len(images.classes))
        if (n, classes) != (here, of):
            what = f"run {run.folder.name!r} was tested on {n} images of {classes} classes"
            raise ValueError(f"{what}, here are {here} of {of}: name the folder of its images")
        found = evaluate(run.model(), images)
        agrees = round(abs(found - run.test_error) * n / 100) <= max(1, n // 1000)
        verdict = "agrees" if agrees else "DIFFERS"
        say(f"{run.folder.name}: receipt {run.test_error:.2f} %, found {found:.2f} %: {verdict}")
        if not agrees:
            wrong.append(run.folder.name)
    return wrong
