"""What came out of a sweep: a table with a row for each cell of the grid, as text, CSV and one page of HTML."""

import html
import io
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Self

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from scipy.stats import bootstrap

from atbook.jobs import Job, State
from atbook.runs import change
from atbook.sweep import Cell, partners

ACCENTS = ("#0f766e", "#5eead4")  # the book's, for light and dark pages (book/_static/custom.css)


def interval(errors: Sequence[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean (percentiles of 9,999 resamples, always the same); NaN below three."""
    if len(errors) < 3:
        return math.nan, math.nan
    found = bootstrap((errors,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(0))
    return tuple(map(float, found.confidence_interval))


def aggregate(jobs: Sequence[Job], baseline: Cell, failed: dict[Job, str] | None = None) -> pd.DataFrame:
    """One row for each cell of the grid, and for each run by name where a chapter makes several.

    Only finished runs count. Columns: the grid's fields; ``n`` finished, ``unfinished`` and ``failed``; ``median %``
    and ``mean %`` of the test error, ``low`` and ``high`` as `interval`; if there is a baseline, the mean ``change``
    against it, seed by seed, in points, with the interval and the verdict of `atbook.runs.change`.
    """
    cells = list({id(job.cell): job.cell for job in jobs}.values())
    states = [(job, "failed" if job in (failed or {}) else job.state().status) for job in jobs]
    errors = {job: job.errors() for job, status in states if status == "finished"}
    fields = {name: None for cell in cells for name in cell}
    named = any(run for found in errors.values() for run in found)
    rows = []
    for cell in cells:
        own = [(job, status) for job, status in states if job.cell is cell]
        done, broken = ([job for job, status in own if status == name] for name in ("finished", "failed"))
        counts = {"n": len(done), "unfinished": len(own) - len(done) - len(broken), "failed": len(broken)}
        names = {name: None for job in done for name in errors[job]}
        for run in names or {"": None}:
            row = {name: _text(cell.get(name, "")) for name in fields} | ({"run": run} if named else {}) | counts
            found = {job.seed: errors[job][run] for job in done if run in errors[job]}
            row |= {"n": len(found) if names else len(done)} | _middle([*found.values()])
            if baseline:
                (other,) = partners(cell, cells, baseline) or [None]
                plain = {job.seed: e.get(run) for job, e in errors.items() if job.cell is other}
                row |= _paired(found, plain)
            rows.append(row)
    return pd.DataFrame(rows)


def _text(value: object) -> str:
    """A setting in all its digits, where the table rounds its numbers."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _middle(errors: list[float]) -> dict[str, float]:
    if not errors:
        return dict.fromkeys(("median %", "mean %", "low", "high"), math.nan)
    low, high = interval(errors)
    middle = {"median %": statistics.median(errors), "mean %": statistics.fmean(errors)}
    return middle | {"low": low, "high": high}


def _paired(errors: dict[int, float], plain: dict[int, float | None]) -> dict[str, object]:
    pairs = [error - plain[seed] for seed, error in errors.items() if plain.get(seed) is not None]
    if not pairs:
        return {"pairs": 0, "change": math.nan, "change low": math.nan, "change high": math.nan, "verdict": ""}
    found = change(pairs)
    numbers = {"pairs": found.seeds, "change": found.mean, "change low": found.low, "change high": found.high}
    return numbers | {"verdict": found.verdict}


def missing(jobs: Sequence[Job], failed: dict[Job, str] | None = None) -> list[str]:
    """A line for each run that is not finished: its name, and how it stands."""
    lines = []
    for job in jobs:
        state = State("failed", failed[job]) if job in (failed or {}) else job.state()
        if state.status != "finished":
            reason = f" ({state.reason})" if state.reason else ""
            epochs = f", {state.epochs} epochs" if state.epochs else ""
            what = f"unfinished{epochs}" if state.status == "running" else state.status
            lines.append(f"{job.folder.name}: {what}{reason}")
    return lines


def text(table: pd.DataFrame) -> str:
    """The table for a terminal."""
    return table.to_string(index=False, na_rep="", float_format="{:.2f}".format)


def page(name: str, table: pd.DataFrame, lines: Sequence[str]) -> str:
    """One page of HTML that needs nothing else: the plot, the table, and what is missing."""
    shown = table.to_html(index=False, na_rep="", float_format="{:.2f}".format, border=0)
    listed = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    title = html.escape(f"Sweep {name}")
    return _PAGE.format(
        title=title, light=ACCENTS[0], dark=ACCENTS[1], plot=_plot(table), table=shown,
        missing=f"<h2>Not finished</h2><ul>{listed}</ul>" if lines else "<p>All runs are finished.</p>",
    )  # fmt: skip


def _plot(table: pd.DataFrame) -> str:
    """Mean test error of each cell with its interval, as SVG in the colours of the page."""
    settings = [name for name in table.columns[: table.columns.get_loc("n")]]
    rows = table[settings].to_dict("records")
    labels = [", ".join(f"{name} {value}" for name, value in row.items() if value != "") for row in rows]
    mean, places = table["mean %"].astype(float), range(len(table))
    reach = [(mean - table["low"]).fillna(0), (table["high"] - mean).fillna(0)]
    with plt.rc_context({"svg.hashsalt": "atbook", "svg.fonttype": "none", "font.size": 10}):
        figure, axes = plt.subplots(figsize=(7, 1 + 0.3 * len(labels)))
        axes.errorbar(mean, places, xerr=reach, fmt="o", color=ACCENTS[0], capsize=4)
        axes.set_yticks(places, labels)
        axes.margins(y=0.5 / len(labels))
        axes.invert_yaxis()
        axes.set_xlabel("test error in %: mean, 95 % bootstrap interval")
        axes.spines[["top", "right"]].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
    svg = re.sub(r"<metadata>.*?</metadata>", "", file.getvalue()[file.getvalue().index("<svg") :], flags=re.DOTALL)
    svg = svg.replace(ACCENTS[0], "var(--accent)").replace("#000000", "currentColor")
    return svg.replace("<svg", '<svg role="img" aria-label="Test error of each cell, as in the table"', 1)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --accent: {light}; --text: #1f2937; --ground: #fff; --line: #d1d5db; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --accent: {dark}; --text: #e5e7eb; --ground: #14181e; --line: #4b5563; }}
}}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var(--text); background: var(--ground); }}
h1, h2 {{ color: var(--accent); }}
svg {{ max-width: 100%; height: auto; color: var(--text); }}
svg text {{ fill: currentColor; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th {{ border-bottom: 2px solid var(--accent); }}
td {{ border-bottom: 1px solid var(--line); }}
th, td {{ padding: .2em .55em; text-align: right; white-space: nowrap; }}
li {{ overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>{title}</h1>
{plot}
<div class="wide" tabindex="0">
{table}
</div>
<p>Test error in % over the finished runs (n) of each cell; low and high are the 95 % bootstrap interval of the mean.
change is the mean difference to the baseline, in points, over pairs of one seed, with Student's 95 % interval.</p>
{missing}
</body>
</html>
"""


class Board:
    """Tells how a sweep goes: a live table on a terminal, else a line for each run that has ended."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self.failed = total, done, 0
        self.console = Console()
        self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def __call__(self, flying: Iterable[Job], ended: Job | None = None, reason: str = "") -> None:
        """Called by `atbook.engines.dispatch`."""
        if ended is not None:
            self.done, self.failed = self.done + (not reason), self.failed + bool(reason)
            count, error = f"{self.done + self.failed}/{self.total} {ended.folder.name}: ", ended.state().error
            told = "finished" if math.isnan(error) else f"finished, test error {error:.2f} %"
            self.console.print(Text(count + (reason or told)))
        if self.console.is_terminal:
            self.live.update(self._table([*flying][:20]), refresh=True)

    def _table(self, flying: list[Job]) -> Table:
        """The first of the runs in hand; those that wait in a cluster's queue have no receipt yet."""
        table = Table("run", "epochs", "test error %")
        table.title = f"{self.done} of {self.total} finished, {self.failed} failed"
        for job, state in ((job, job.state()) for job in flying):
            if state.status != "missing":
                error = "" if math.isnan(state.error) else f"{state.error:.2f}"
                table.add_row(Text(job.folder.name), state.epochs, error)
        return table
