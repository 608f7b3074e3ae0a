"""Tables: what cells print gets its caption and one shape, and the table of run times says what a reader asks."""

import time
from itertools import zip_longest

from bs4 import BeautifulSoup
from docutils import nodes
from myst_nb.ext.execution_tables import ExecutionStatsNode
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.transforms.post_transforms import SphinxPostTransform

PROSE = 30  # characters; more in one cell, and its column is read as text


def mend_tables(app, doctree):
    """Give the tables that cells print their caption (in the metadata, ``mystnb: table: caption``) and one shape."""
    for cell in doctree.findall(nodes.container):
        caption = cell.get("cell_metadata", {}).get("mystnb", {}).get("table", {}).get("caption")
        for printed in cell.findall(nodes.raw) if caption else ():
            printed[:] = [nodes.Text(mended(printed.astext(), caption))]


def mended(text: str, caption: str) -> str:
    """Pandas' HTML with a caption, the index's name beside the other headings, and columns of prose marked as such."""
    page = BeautifulSoup(text, "html.parser")
    for table in page("table"):
        table["class"] = "dataframe"  # styled tables come without
        title = page.new_tag("caption")
        title.string = caption
        table.insert(0, title)
        _join_heads(table.select("thead > tr"))
        _mark_prose(table("tr"))
    return str(page)


def _join_heads(heads):
    """Pandas writes the names of the index into a row of their own, below empty corners: move them up into these."""
    if len(heads) < 2:
        return
    above, below = (row(["th", "td"]) for row in heads[-2:])
    named = [cell for cell in below if cell.get_text(strip=True)]
    corners = above[: len(named)]
    if named == below[: len(named)] and not any(cell.get_text(strip=True) for cell in corners):
        for corner, name in zip(corners, named, strict=True):
            corner.replace_with(name)
        heads[-1].decompose()


def _mark_prose(rows):
    """Give the cells of a column with a long text the class ``prose``, for custom.css."""
    rows = [row(["th", "td"])[::-1] for row in rows]  # from the right, as cells on the left may be merged
    for column in zip_longest(*rows):
        cells = [cell for cell in column if cell is not None]
        if any(len(cell.get_text(strip=True)) > PROSE for cell in cells if cell.name == "td"):
            for cell in cells:
                cell["class"] = [*cell.get("class", []), "prose"]


class RunTimes(SphinxPostTransform):
    """In place of myst-nb's table of run times: titles for file names, and no columns that are the same in each row."""

    default_priority = 7  # myst-nb's own has 8

    def run(self):
        for node in list(self.document.findall(ExecutionStatsNode)):
            rows = [_row(nodes.paragraph("", "page"), "run on", "seconds")]
            for name, data in sorted(NbMetadataCollector.get_doc_data(self.env).items()):
                if run := data.get("exec_data"):
                    target = self.app.builder.get_relative_uri(self.env.docname, name)
                    link = nodes.reference("", self.env.titles[name].astext(), internal=True, refuri=target)
                    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(run["mtime"]))
                    seconds = f"{run['runtime']:.0f}" if run["runtime"] else "kept"
                    rows.append(_row(nodes.paragraph("", "", link), when, seconds))
            body = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in (5, 2, 1)), cols=3)
            body += [nodes.thead("", rows[0]), nodes.tbody("", *rows[1:])]
            title = nodes.title("", "When each page was run (UTC), and how long it took.")
            node.replace_self(nodes.table("", title, body, ids=["run-times"]))


def _row(first, *rest):
    cells = [first, *(nodes.paragraph("", text) for text in rest)]
    return nodes.row("", *(nodes.entry("", cell) for cell in cells))


def setup(app):
    app.connect("doctree-read", mend_tables)
    app.add_post_transform(RunTimes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
