"""An executed chapter as one HTML file, for reading without Jupyter: pictures inside, glued values in their places."""

import re
from html import escape
from pathlib import Path

from atbook.runs import write

BLOCK = re.compile(r"(?ms)^(`{3,}|:{3,})\{[\w:-]+\}([^\n]*)\n((?::[\w-]+:[^\n]*\n)*)(.*?)^\1[ ]*$")
ROLE = re.compile(r"\{([\w:-]+)\}`([^`]*)`")


def render(notebook: Path, page: Path) -> None:
    """Write an executed notebook as HTML. What only the built book resolves (references, boxes) becomes plain text.

    Formulas are drawn by MathJax, which the page asks its public server for; without network they stay as typed.

    Raises:
        OSError: if the page cannot be written.
    """
    import nbformat
    from nbconvert import HTMLExporter

    nb = nbformat.read(notebook, as_version=4)
    glued = _glued(nb)
    nb.metadata.pop("widgets", None)  # a figure that can be played with shows its still picture
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = _plain(cell.source, glued)
            continue
        cell.outputs = [o for o in cell.get("outputs", []) if "scrapbook" not in o.get("metadata", {})]
        for output in (o for o in cell.outputs if "data" in o):
            output.data.pop("application/vnd.jupyter.widget-view+json", None)
            if "image/png" in output.data:
                output.data = {"text/html": _figure(output.data["image/png"], cell.metadata.get("mystnb", {}))}
    html, _ = HTMLExporter(require_js_url="", embed_images=True).from_notebook_node(nb)
    write(page, html.encode())


def _glued(nb) -> dict[str, str]:
    """The values that ``glue`` left in the outputs, by name."""
    outputs = [output for cell in nb.cells for output in cell.get("outputs", [])]
    named = [(output["metadata"].get("scrapbook"), output["data"]) for output in outputs if "data" in output]
    return {about["name"]: next(iter(data.values())) for about, data in named if about}


def _figure(png: str, about: dict[str, dict[str, str]]) -> str:
    """A picture with the text alternative and the caption of its cell."""
    alt, caption = about.get("image", {}).get("alt", ""), about.get("figure", {}).get("caption", "")
    picture = f'<img alt="{escape(alt)}" src="data:image/png;base64,{png.strip()}">'
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _plain(text: str, glued: dict[str, str]) -> str:
    """MyST's own marks out of a text: boxes keep their title and content, roles their words."""
    while BLOCK.search(text):
        text = BLOCK.sub(lambda box: f"**{box[2].strip()}**\n\n{box[4]}" if box[2].strip() else box[4], text)
    text = re.sub(r"(?m)^\([\w:-]+\)=\n|(?<=\$\$) *\([\w:-]+\)$", "", text)
    return ROLE.sub(lambda role: _words(role[1], role[2], glued), text)


def _words(role: str, content: str, glued: dict[str, str]) -> str:
    if role == "glue:text":
        name, _, form = content.partition(":")
        value = glued.get(name, "?").strip("'")
        return f"{float(value):{form}}" if form and name in glued else value
    words = re.sub(r"\s*<[^>]*>$", "", content)
    return f"[{words}]" if role.startswith("cite") else words
