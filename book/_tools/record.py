"""Keeps what ``make bench``, ``make mutants`` and ``make coverage`` measured, for the book's status page."""

import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from atbook.runs import MODULES, code_hash, write

CHECKS = Path(__file__).parents[1] / "runs" / "checks.json"


def record(name: str, value: object, modules: Sequence[str] = MODULES) -> None:
    """Put one measurement into ``book/runs/checks.json``, with the hash of the modules that it is about."""
    checks = json.loads(CHECKS.read_text()) if CHECKS.exists() else {}
    about = {"modules": list(modules), "code": code_hash(modules), "python": platform.python_version()}
    checks[name] = {"value": value} | about
    write(CHECKS, (json.dumps(checks, indent=1, sort_keys=True) + "\n").encode())


def coverage(report: str) -> None:
    """Record the totals of a report of coverage.py in its JSON form."""
    totals = json.loads(Path(report).read_text())["totals"]
    names = ("num_statements", "missing_lines", "num_branches", "missing_branches", "percent_covered")
    record("coverage", {name: totals[name] for name in names})


if __name__ == "__main__":
    coverage(sys.argv[1])
