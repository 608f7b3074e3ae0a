"""Keeps what ``make bench``, ``make mutants`` and ``make coverage`` measured, for the book's status page."""

import json
import platform
import sys
from pathlib import Path

from atbook.runs import code_hash, write

CHECKS = Path(__file__).parents[1] / "runs" / "checks.json"


def record(name: str, value: object) -> None:
    """Put one measurement into ``book/runs/checks.json``, with the code and the machine it belongs to."""
    checks = json.loads(CHECKS.read_text()) if CHECKS.exists() else {}
    checks[name] = {"value": value, "code": code_hash(), "python": platform.python_version()}
    write(CHECKS, (json.dumps(checks, indent=1, sort_keys=True) + "\n").encode())


def coverage(report: str) -> None:
    """Record the totals of a report of coverage.py in its JSON form."""
    totals = json.loads(Path(report).read_text())["totals"]
    names = ("num_statements", "missing_lines", "num_branches", "missing_branches", "percent_covered")
    record("coverage", {name: totals[name] for name in names})


if __name__ == "__main__":
    coverage(sys.argv[1])
