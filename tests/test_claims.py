"""What the chapters say in words that no run can change is what the recorded runs say."""

import json

import pytest

from atbook.runs import Run, book_runs, change

# chapter, folder of the runs, method, compared with, verdict over all seeds
CLAIMS = [
    ("04", "shapes", "at-f_sum-1", "student", "better"),
    ("04", "shapes", "at-f_max-1", "student", "better"),
    ("04", "shapes", "at-f_sum-4", "student", "open"),
    ("06", "shapes", "at", "student", "open"),
    ("06", "shapes", "at-g1", "student", "better"),
    ("06", "shapes", "at-g2", "student", "open"),
    ("06", "shapes", "at-g1", "at-g2", "better"),
    ("07", "shapes", "kd", "student", "better"),
    ("08", "shapes", "f-act", "student", "better"),
    ("08", "shapes", "f-act", "at", "better"),
    ("08", "shapes", "fitnet", "student", "open"),
    ("08", "shapes", "fitnet", "kd", "worse"),
    ("08", "shapes", "fitnet", "kd-10epochs", "open"),
    ("09", "shapes-gradients", "at", "student", "better"),
    ("09", "shapes-gradients", "at", "grad-at", "better"),
    ("09", "shapes-gradients", "at", "at-untrained", "better"),
    ("09", "shapes-gradients", "at", "student-6epochs", "open"),
    ("09", "shapes-gradients", "grad-at", "min-l2", "open"),
    ("09", "shapes-gradients", "grad-at", "student", "open"),
    ("11", "cifar10-short", "at", "student", "better"),
    ("11", "cifar10-short", "kd", "student", "open"),
    ("11", "cifar10-short", "at+kd", "student", "better"),
    ("11", "cifar10-short", "at", "kd", "better"),
    ("11", "cifar10-short", "at", "at+kd", "better"),
    ("11", "cifar10-short", "at+kd", "kd", "open"),
    ("12", "shapes-finetune", "scratch", "student", "worse"),
    ("12", "shapes-finetune", "kd", "student", "worse"),
    ("12", "shapes-finetune", "at", "student", "worse"),
    ("12", "shapes-finetune", "at-same", "student", "open"),
    ("12", "shapes-finetune", "at-untrained", "student", "worse"),
    ("12", "shapes-finetune", "at", "at-same", "worse"),
]
SEEDS = {"shapes": 5, "shapes-gradients": 5, "cifar10-short": 3, "shapes-finetune": 5}


def errors(folder: str, method: str) -> list[float]:
    return [Run.load(book_runs() / folder / f"{method}-{seed}").test_error for seed in range(SEEDS[folder])]


@pytest.mark.parametrize(("chapter", "folder", "method", "baseline", "verdict"), CLAIMS)
def test_a_sentence_is_what_its_runs_say(chapter, folder, method, baseline, verdict):
    pairs = zip(errors(folder, method), errors(folder, baseline), strict=True)
    found = change([error - other for error, other in pairs])
    assert found.verdict == verdict, f"chapter {chapter} speaks of {method} against {baseline} as {verdict}"


def test_sweeps_scale_as_chapter_13_draws_them():
    """From the records of ``book/_tools/scaling.py``."""
    checks = json.loads((book_runs() / "checks.json").read_text())
    overhead, measured, simulated = (checks[f"sweep {n}"]["value"] for n in ("overhead", "measured", "simulated"))
    assert overhead["minutes"] == 2 and all(overhead[f"of {n} runs, %"] < 5 for n in (1, 5, 20))
    one, two = measured
    assert (one["workers"], two["workers"]) == (1, 2) and one["runs"] == two["runs"]
    assert one["seconds"] / two["seconds"] == two["times one"] >= 1.8
    assert simulated[-1]["workers"] == 256 and all(row["efficiency"] > 0.9 for row in simulated)
