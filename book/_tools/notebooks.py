"""Runs chapters and brings them into the one form in which they are committed: ``make notebooks``.

Kept: cells, ids, tags, captions and text alternatives, and the printed text that tests compare. Dropped: images,
progress bars, timings, whatever differs from run to run. The built site runs every chapter again and has it all.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from atbook import runs

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def clean(nb: NotebookNode) -> NotebookNode:
    """Bring a notebook into the committed form, in place.

    Cells are counted 1 to n, as after one run from top to bottom: nbval compares nothing where the count is missing.
    """
    nb.metadata, nb.nbformat_minor = nbformat.from_dict(METADATA), 5
    for cell in nb.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in ("tags", "mystnb")})
    for count, cell in enumerate((cell for cell in nb.cells if cell.cell_type == "code"), start=1):
        ignored = "nbval-ignore-output" in cell.metadata.get("tags", [])
        cell.execution_count, cell.outputs = count, [] if ignored else _text(cell.outputs, count)
    nbformat.validate(nb)
    return nb


def _text(outputs: list[NotebookNode], count: int) -> list[NotebookNode]:
    """What a run prints the same every time; printed text in one piece, however the kernel sent it."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
        if "data" in output:
            output.data = {mime: value for mime, value in output.data.items() if _is_text(mime)}
            output.metadata = nbformat.from_dict({})
        if "execution_count" in output:
            output.execution_count = count
        kept.append(output)
    return kept


def _is_text(mime: str) -> bool:
    return "image/" not in mime and "widget" not in mime


def undescribed(nb: NotebookNode) -> list[str]:
    """Ids of the cells that show an image and have no text alternative (cell metadata ``mystnb: image: alt``)."""
    return [cell.id for cell in nb.cells if _shows_image(cell) and not alt(cell)]


def alt(cell: NotebookNode) -> str:
    """The text alternative of a cell's images; empty where there is none."""
    return cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "").strip()


def _shows_image(cell: NotebookNode) -> bool:
    """Whether a cell has an image in its outputs, or the text ``<Figure ...>`` that stands for one after cleaning."""
    return any(
        mime.startswith("image/") or str(value).startswith("<Figure")
        for output in cell.get("outputs", [])
        for mime, value in output.get("data", {}).items()
    )


def uncaptioned(nb: NotebookNode) -> list[str]:
    """Ids of the cells that print a table and have no caption for it (cell metadata ``mystnb: table: caption``)."""
    return [cell.id for cell in nb.cells if _prints_table(cell) and not caption(cell)]


def caption(cell: NotebookNode) -> str:
    """The caption of the table that a cell prints; empty where there is none."""
    return cell.metadata.get("mystnb", {}).get("table", {}).get("caption", "").strip()


def _prints_table(cell: NotebookNode) -> bool:
    return any("<table" in output.get("data", {}).get("text/html", "") for output in cell.get("outputs", []))


def write(nb: NotebookNode, path: Path) -> None:
    """Write a notebook with one newline at its end, the same on every system."""
    runs.write(path, (nbformat.writes(nb) + "\n").encode())


def renew(path: Path) -> str | None:
    """Run, check and rewrite one chapter; returns what is wrong, and then the file is as it was."""
    nb = nbformat.read(path, as_version=4)
    client = NotebookClient(nb, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}})
    try:
        client.execute()
    except (CellExecutionError, DeadKernelError, CellTimeoutError) as error:
        return str(error)
    if cells := undescribed(nb):
        return f"no text alternative (cell metadata mystnb: image: alt) for the image in cell {', '.join(cells)}"
    if cells := uncaptioned(nb):
        return f"no caption (cell metadata mystnb: table: caption) for the table in cell {', '.join(cells)}"
    write(clean(nb), path)
    return None


def main(paths: list[str]) -> int:
    """Renew the named chapters; returns the number of those that could not be."""
    failed = 0
    for path in map(Path, paths):
        if not path.is_file():
            problem = "there is no such notebook"
        else:
            problem = renew(path)
        failed += problem is not None
        print(f"{path}: {problem or 'run and renewed'}", file=sys.stderr if problem else sys.stdout)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
