"""Tables: what cells print gets its caption, and the table of run times says what a reader asks."""

import html
import re
import time

from docutils import nodes
from myst_nb.ext.execution_tables import ExecutionStatsNode
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.transforms.post_transforms import SphinxPostTransform


def add_captions(app, doctree):
    """Put the caption in a cell's metadata (``mystnb: table: caption``) into the table that the cell prints."""
    for cell in doctree.findall(nodes.container):
        caption = cell.get("cell_metadata", {}).get("mystnb", {}).get("table", {}).get("caption")
        for printed in cell.findall(nodes.raw) if caption else ():
            text = re.sub(r"(<table\b[^>]*>)", rf"\1<caption>{html.escape(caption)}</caption>", printed.astext())
            printed[:] = [nodes.Text(text)]


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
    app.connect("doctree-read", add_captions)
    app.add_post_transform(RunTimes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
