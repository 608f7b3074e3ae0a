"""The chapters as files: their one form, what each must have, and that they run with other parameters."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebooks import alt, clean, main, uncaptioned, undescribed, write

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "book").glob("[0-9]*.ipynb"))
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)

# Small values of each chapter's parameters, to run it in seconds.
SMALL: dict[str, dict[str, object]] = {
    "01-attention": {"images": 2, "scored": 20, "train_images": 40, "passes": [1]},
    "02-mechanisms": {"examples": 2, "steps": 20},
    "03-hard-attention": {"samples": 8, "repeats": 200, "learners": 20, "steps": 40},
    "04-mapping-functions": {"scored": 100},
    "05-gradient-attention": {"scored": 20, "checked": 10, "draws": 1, "copies": 2, "batch": 2, "repeats": 1},
    "06-attention-transfer": {"train_images": 200, "epochs": 1, "scored": 50},
    "07-knowledge-distillation": {"pool": 300, "probe_images": 60, "hidden_images": 150, "seeds": 2, "scored": 100},
    "08-fitnets": {"train_images": 32, "steps": 20, "measured": 20},
    "09-activation-vs-gradient": {"checked": 64, "live": 20, "repeats": 1},
    "10-comparison": {"batch": 2, "repeats": 1, "draws": 200},
    "11-cifar-wrn": {"train_images": 40, "epochs": 1},
    "12-transfer-learning": {"source_images": 60, "target_images": 20, "pretraining": 1, "epochs": 1, "scored": 20},
    "13-rerun": {"images": 40, "seeds": 1, "workers": 1},
}


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code(nb: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


# The form ------------------------------------------------------------------------------------------------------------


def test_there_are_chapters():
    assert len(CHAPTERS) >= 3
    assert {path.stem for path in CHAPTERS} == set(SMALL), "SMALL needs one entry for each chapter"


@each_chapter
def test_a_chapter_is_in_the_committed_form(path, tmp_path):
    write(clean(read(path)), tmp_path / path.name)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes(), f"run: make notebooks ({path.name})"


@each_chapter
def test_something_printed_is_compared(path):
    """nbval passes a notebook that has nothing to compare."""
    assert any(cell.outputs for cell in code(read(path))), f"{path.name}: every cell is ignored or prints nothing"


@each_chapter
def test_kept_outputs_are_the_same_every_time(path):
    kept = json.dumps([cell.outputs for cell in code(read(path))])
    assert not re.search(r" at 0x[0-9a-f]{6,}", kept), "an object's address differs from run to run"
    assert not re.search(r"\d\.\d{9,}", kept), "last digits differ between machines: round, or tag nbval-ignore-output"
    assert '"output_type": "error"' not in kept


@each_chapter
def test_parameters_come_first_typed_and_explained(path):
    first = code(read(path))[0]
    assert "parameters" in tags(first)
    for line in first.source.splitlines():
        assert re.fullmatch(r"\w+: [^=]+ = .+  # .+", line), f"not 'name: type = value  # comment': {line}"


@each_chapter
def test_code_cells_are_short(path):
    long = {cell.id: n for cell in code(read(path)) if (n := len(cell.source.splitlines())) > 25}
    assert not long, f"cells of more than 25 lines: {long}"
    assert median(len(cell.source.splitlines()) for cell in code(read(path))) <= 8


# Text alternatives ---------------------------------------------------------------------------------------------------


def draws(source: str, plotting: set[str]) -> bool:
    """Whether a cell calls a function that draws: one of ``atbook.plots``, or pyplot's subplots, figure or imshow."""
    source = re.sub(r"(?m)^\s*[%!].*$", "", source)
    called = {ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}
    return any(
        name in plotting or name.startswith("plots.") or re.fullmatch(r"plt\.(subplots|figure|imshow|show)", name)
        for name in called
    )


def imported_from_plots(nb: nbformat.NotebookNode) -> set[str]:
    lines = re.findall(r"from atbook\.plots import (\([^)]*\)|.*)", "\n".join(cell.source for cell in code(nb)))
    return {name for line in lines for name in re.findall(r"\w+", line)}


def without_alt(nb: nbformat.NotebookNode) -> list[str]:
    names = imported_from_plots(nb)
    return undescribed(nb) + [cell.id for cell in code(nb) if draws(cell.source, names) and not alt(cell)]


@each_chapter
def test_every_image_has_a_text_alternative(path):
    assert not without_alt(read(path)), "cell metadata needs mystnb: image: alt"
    short = [cell.id for cell in code(read(path)) if 0 < len(alt(cell).split()) < 8]
    assert not short, f"too short to say what is to be seen: {short}"


@pytest.mark.parametrize(
    "cell",
    [
        new_code_cell("show(1)", outputs=[new_output("display_data", {"image/png": "AAAA"})]),
        new_code_cell("show(1)", outputs=[new_output("display_data", {"text/plain": "<Figure size 1x1>"})]),
        new_code_cell("from atbook.plots import maps\nmaps(1)"),
        new_code_cell("from atbook import plots\nplots.maps(1)"),
        new_code_cell("fig, ax = plt.subplots()"),
    ],
)
def test_a_missing_text_alternative_is_found(cell):
    assert without_alt(new_notebook(cells=[cell]))
    cell.metadata["mystnb"] = {"image": {"alt": "a map"}}
    assert not without_alt(new_notebook(cells=[cell]))


@each_chapter
def test_every_printed_table_has_a_caption(path):
    assert not uncaptioned(read(path)), "cell metadata needs mystnb: table: caption"


def test_a_missing_caption_is_found():
    cell = new_code_cell("table", outputs=[new_output("display_data", {"text/html": "<div><table></table></div>"})])
    assert uncaptioned(new_notebook(cells=[cell])) == [cell.id]
    cell.metadata["mystnb"] = {"table": {"caption": "Errors in percent."}}
    assert not uncaptioned(new_notebook(cells=[cell]))


# Typed numbers -------------------------------------------------------------------------------------------------------

# Blocks of code; of other blocks, notes for example, only the fences.
BLOCK = re.compile(r"(?m)^(```+|~~~+)(\w.*|\{(code|math).*)?\n(?s:.*?)^\1\s*$|^(```|~~~|:::).*$")
NOT_PROSE = re.compile(
    r"(?s)\$\$.*?\$\$|\$[^$\n]+\$"  # formulas
    r"|\{[\w:-]+\}`[^`]*`|`[^`]*`"  # roles (glue and cite among them), code
    r"|\]\([^)]*\)|<https?://[^>]*>|https?://\S+|<!--.*?-->"  # addresses, comments
    r"|(?i:(arxiv|sections?|tables?|figure|equation|python|torch|version|CC BY)\W{0,2}\d[\d.]*)"
)
NUMBER = re.compile(r"(?<![\w.-])\d+\.\d+(?![\w.]*\d)|\b\d+(?:\.\d+)?\s?%")
CITES_PAPER = re.compile(r"\{cite[:\w]*\}`[^`]*zagoruyko2017")


def paper_numbers() -> set[float]:
    found: set[float] = set()

    def collect(value: object) -> None:
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                collect(part)
        elif isinstance(value, int | float):
            found.add(float(value))

    collect(json.loads((ROOT / "atbook" / "paper.json").read_text()))
    return found


def typed_numbers(text: str) -> list[str]:
    """Decimals and percentages typed in prose.

    Results are glued from the code that found them. The one exception is a figure of the paper: it may be typed in a
    paragraph that cites the paper, and must then be in the file of the paper's figures.
    """
    typed, figures = [], paper_numbers()
    for paragraph in re.split(r"\n\s*\n", BLOCK.sub("", text)):
        for number in NUMBER.findall(NOT_PROSE.sub(" ", paragraph)):
            if not (CITES_PAPER.search(paragraph) and float(number.rstrip("% ")) in figures):
                typed.append(number)
    return typed


@each_chapter
def test_no_result_is_typed(path):
    prose = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    assert not [number for text in prose for number in typed_numbers(text)], "glue it, cite the paper, or write `code`"


@pytest.mark.parametrize(
    "text", ["It reaches 8.77 today.", "an error of 12 %", "91.3% {cite:p}`he2016`", "```{note}\n1.5\n```"]
)
def test_a_typed_result_is_found(text):
    assert typed_numbers(text)


@pytest.mark.parametrize(
    "text",
    [
        "The paper has 8.77 {cite:p}`zagoruyko2017`.",
        "momentum `0.9`, $p = 0.5$, {glue:text}`error:.2f` %, section 4.1, arXiv 1612.03928, version 2.13.0",
        "ten classes, 32 by 32, WRN-16-1",
        "```python\nlr = 0.1\n\nlr = 0.2\n```",
    ],
)
def test_other_numbers_may_be_typed(text):
    assert not typed_numbers(text)


def test_a_figure_of_the_paper_must_be_the_papers():
    assert typed_numbers("The paper has 8.78 {cite:p}`zagoruyko2017`.")


# Cleaning ------------------------------------------------------------------------------------------------------------


def untidy() -> nbformat.NotebookNode:
    outputs = [
        new_output("stream", name="stdout", text="one\n"),
        new_output("stream", name="stderr", text="50 %"),
        new_output("stream", name="stdout", text="two\n"),
        new_output("display_data", {"image/png": "AAAA", "text/plain": "<Figure size 1x1>"}, metadata={"x": 1}),
        new_output("execute_result", {"text/plain": "3"}, execution_count=17),
    ]
    cell = new_code_cell("1 + 2", execution_count=17, outputs=outputs)
    cell.metadata.update(tags=["a"], mystnb={"image": {"alt": "b"}}, collapsed=True, execution={"start": "now"})
    ignored = new_code_cell("t", outputs=outputs[:1], metadata={"tags": ["nbval-ignore-output"]})
    return new_notebook(cells=[new_markdown_cell("# T", metadata={"x": 1}), cell, ignored], metadata={"widgets": {}})


def test_cleaning_keeps_what_is_compared_and_drops_the_rest():
    nb = clean(untidy())
    text, cell, ignored = nb.cells
    assert set(nb.metadata) == {"kernelspec", "language_info"} and nb.metadata.kernelspec.name == "python3"
    assert text.metadata == {} and cell.metadata == {"tags": ["a"], "mystnb": {"image": {"alt": "b"}}}
    assert [cell.execution_count, ignored.execution_count] == [1, 2]
    assert cell.outputs[0].text == "one\ntwo\n"
    assert cell.outputs[1].data == {"text/plain": "<Figure size 1x1>"} and cell.outputs[1].metadata == {}
    assert cell.outputs[2].execution_count == 1 and len(cell.outputs) == 3
    assert ignored.outputs == []


def test_cleaning_twice_changes_nothing(tmp_path):
    once, twice = tmp_path / "once.ipynb", tmp_path / "twice.ipynb"
    write(clean(untidy()), once)
    write(clean(read(once)), twice)
    assert once.read_bytes() == twice.read_bytes()


@pytest.mark.parametrize(
    ("source", "said"),
    [("1 / 0", "ZeroDivisionError"), ("import matplotlib.pyplot as plt\nplt.figure()", "text alternative")],
)
def test_a_chapter_that_cannot_be_renewed_stays_as_it_was(tmp_path, capfd, source, said):
    path = tmp_path / "bad.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), path)
    before = path.read_bytes()
    assert main([str(path)]) == 1
    assert said in capfd.readouterr().err
    assert path.read_bytes() == before


# Reruns and the build ------------------------------------------------------------------------------------------------


@each_chapter
def test_a_chapter_runs_with_other_parameters(path, tmp_path):
    known = papermill.inspect_notebook(str(path))
    assert set(SMALL[path.stem]) <= set(known), "papermill only warns of a name that the chapter does not have"
    papermill.execute_notebook(
        path, tmp_path / path.name, SMALL[path.stem], cwd=path.parent, progress_bar=False
    )


# Read by every Python that finds it on its path, the kernels' included: nobody but this machine can be reached.
OFFLINE = """import socket

_connect, _look_up = socket.socket.connect, socket.getaddrinfo


def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
        raise OSError("no network here")
    return _connect(self, address)


def look_up(host, *rest, **named):
    if host not in (None, "localhost", "127.0.0.1", "::1"):
        raise socket.gaierror("no network here")
    return _look_up(host, *rest, **named)


socket.socket.connect, socket.getaddrinfo = connect, look_up
"""
BUILDS = {
    "whole": ("print('fine')", None),
    "broken": ("1 / 0", "ZeroDivisionError"),
    "no receipt": ("from atbook.runs import Run, book_runs\nRun.load(book_runs() / 'gone')", "FileNotFoundError"),
    "no data": ("from atbook.data import load\nload('cifar10', 'test')", "ConnectionError"),
}


@pytest.mark.parametrize(("source", "said"), BUILDS.values(), ids=BUILDS)
def test_the_build_needs_no_network_and_fails_when_a_chapter_does(tmp_path, source, said):
    """A copy of the book with one page, built by the Makefile's own command. A page that failed says so, too."""
    book = tmp_path / "a copy"
    for name in ("_config.yml", "requirements.txt", "book/_ext", "book/_static", "book/references.bib", "atbook"):
        (book / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, book / name)
    (book / "_toc.yml").write_text("format: jb-book\nroot: book/page\n")
    cells = [new_markdown_cell("# Page"), new_code_cell(source)]
    write(clean(new_notebook(cells=cells)), book / "book" / "page.ipynb")
    (book / "book" / "runs").mkdir()
    (tmp_path / "sitecustomize.py").write_text(OFFLINE)
    path = os.pathsep.join([str(tmp_path), str(book), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "ATBOOK_DATA": str(tmp_path / "data")}

    options = re.search(r"^BUILD := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", *options]
    built = subprocess.run(command, cwd=book, env=environment, capture_output=True, text=True)
    assert (built.returncode != 0) == bool(said), built.stdout + built.stderr
    assert ("These chapters failed: book/page" in built.stdout) == bool(said), built.stdout
    page = book / "_build" / "html" / "book" / "page.html"
    assert (said or "fine") in page.read_text()
