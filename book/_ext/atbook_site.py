"""What the book asks of Sphinx beyond ``_config.yml``: fresh results, a self-contained site, a report at the end."""

import hashlib
import html
import json
import os
import re
import shutil
import sys
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx import addnodes
from sphinx.util.fileutil import copy_asset

from atbook.runs import provenance

MATHJAX = "mathjax/tex-svg.js"  # one file: SVG output needs no fonts
# What a chapter's results depend on besides its own cells.
INPUTS = ("requirements.txt", "atbook", "book/runs", "book/_tools/gradients.py")
STARTED = time.time()
WITHOUT_SCRIPTS = """<noscript><p class="admonition">Your browser runs no JavaScript here: formulas are shown as LaTeX,
figures that can be moved stand still, and the search does not work. All else is here.</p></noscript>"""


def results_key(root: Path) -> str:
    """Hash of everything that a chapter's results depend on, but for its own cells, which jupyter-cache hashes."""
    key = hashlib.sha256(sys.version.encode())
    for top in (root / name for name in INPUTS):
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                key.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    for name in sorted(os.environ):
        if name in ("ATBOOK_DATA", "ATBOOK_MIRROR"):  # where the data come from
            key.update(f"{name}={os.environ[name]}\n".encode())
    return key.hexdigest()[:16]


def use_fresh_cache(app, config):
    """Keep executed chapters in a folder named by their inputs' hash, so that no page can show an old number."""
    build = Path(app.outdir).parent
    cache = build / f".jupyter_cache-{results_key(Path(app.srcdir))}"
    for old in set(build.glob(".jupyter_cache*")) - {cache}:
        shutil.rmtree(old)
    config.nb_execution_cache_path = str(cache)


def use_local_mathjax(app, config):
    config.mathjax_path = MATHJAX


def copy_mathjax(app, error):
    if error is None and app.builder.format == "html":
        source = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / MATHJAX
        copy_asset(source, Path(app.outdir, "_static", "mathjax"))


def drop_scripts(app, pagename, templatename, context, doctree):
    """Without sphinx-thebe, which Jupyter Book loads even when its button is off, and the state of dead widgets."""

    def keep(js):
        thebe = "THEBE_JS_URL" in (js.attributes.get("body") or "") or "sphinx-thebe" in str(js.filename)
        return not thebe and "widget-state" not in js.attributes.get("type", "")

    context["script_files"] = [js for js in context["script_files"] if not hasattr(js, "attributes") or keep(js)]


def name_chapters(app, what, name, obj, options, lines):
    """Say below each name of the package which chapters use or explain it."""
    module, _, short = name.rpartition(".")
    if what not in ("function", "class") or not module.startswith("atbook."):
        return
    users = [path for path, names in chapter_names(app.srcdir).items() if name in names]
    if users:
        links = ", ".join(f":doc:`/book/{path.stem}`" for path in users)
        lines += ["", f"*Chapters:* {links}", ""]


def skip_foreign(app, what, name, obj, skip, options):
    """Leave out what libraries write into our classes: pydantic's settings, the fields of named tuples."""
    return name == "model_config" or str(obj.__doc__).startswith("Alias for field number") or None


def keep_together(app, doctree):
    """Keep a formula and the sign after it, and a number and its %, on one line."""
    for math in list(doctree.findall(nodes.math)):
        parent, place = math.parent, math.parent.index(math)
        after = parent[place + 1] if place + 1 < len(parent) else None
        if isinstance(after, nodes.Text) and (sign := re.match(r"[^\s\w({\[]+", after)):
            both = nodes.inline("", "", math, nodes.Text(sign[0]), classes=["together"])
            parent[place : place + 2] = [both, nodes.Text(after[sign.end() :])]
    for text in list(doctree.findall(nodes.Text)):
        if " %" in text and isinstance(text.parent, (nodes.paragraph, nodes.caption, nodes.emphasis, nodes.strong)):
            text.parent.replace(text, nodes.Text(text.replace(" %", "\u00a0%")))


def list_names(app, doctree):
    """Below a chapter, the names of the package that it uses, as links to their page."""
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    names = sorted(chapter_names(app.srcdir).get(path, ()), key=lambda name: name.lower())
    names = [name for name in names if re.fullmatch(r"atbook\.\w+\.\w*[a-z]\w*", name)]  # no modules, no constants
    names = [name for name in names if name != "atbook.compat.torchvision"]
    names = [name for name in names if not Path(app.srcdir, *name.split(".")).with_suffix(".py").exists()]  # modules
    if not names:
        return
    line = nodes.paragraph("", "From the package: ", classes=["from-the-package"])
    for name in names:
        link = addnodes.pending_xref("", refdomain="py", reftype="obj", reftarget=name, refwarn=True)
        link += nodes.literal(name, name.removeprefix("atbook."), classes=["xref", "py"])
        line += [nodes.Text(", "), link] if name != names[0] else [link]
    doctree.next_node(nodes.section).append(line)


@cache
def chapter_names(source):
    """The package's names that each chapter, and the first page, imports or links to in its text."""
    found = {}
    for path in [*sorted(Path(source, "book").glob("[0-9]*.ipynb")), *Path(source, "book").glob("index.md")]:
        text = path.read_text("utf-8")
        if path.suffix == ".ipynb":
            text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
        imports = re.findall(r"(?m)^from (atbook\.\w+) import (\([^)]*\)|.*)", text)
        found[path] = {f"{module}.{name}" for module, names in imports for name in re.findall(r"\w+", names)}
        found[path] |= set(re.findall(r"\{py:\w+\}`(?:[^`<]*<)?(atbook\.[\w.]+)", text))
    return found


def mend_markup(app, error):
    """Buttons with a script in the page, which a strict content policy forbids (a11y.js has it); empty table heads.

    Without scripts nobody chooses the colours, so the page starts with the light ones, and says what is missing.
    """
    if error is None and app.builder.format == "html":
        for path in Path(app.outdir).rglob("*.html"):
            text = path.read_text(encoding="utf-8")
            new = text.replace('onclick="window.print()"', 'data-does="print"')
            new = new.replace('onclick="toggleFullScreen()"', 'data-does="full-screen"')
            new = re.sub(r"<th[^>]*>(&nbsp;|\xa0)?</th>", "<td></td>", new)  # the corners of tables
            new = new.replace('role="doc-biblioentry"', 'role="listitem"')  # the child that role="list" asks for
            new = new.replace('data-theme="auto"', 'data-theme="light"', 1)
            if WITHOUT_SCRIPTS not in new:
                new = new.replace('<article class="bd-article">', f'<article class="bd-article">{WITHOUT_SCRIPTS}', 1)
            if new != text:
                path.write_text(new, encoding="utf-8")


def show_exercises_on_one_page(app):
    """sphinx-exercise names the builder "singlehtml" for its nodes, which hides the "html" ones of all others."""
    handlers = app.registry.translation_handlers
    if "singlehtml" in handlers:
        handlers["singlehtml"] = handlers.get("html", {}) | handlers["singlehtml"]


def move_one_page(app, error):
    """The book as one page, which Sphinx puts into the first page's folder, to where its pictures and scripts are."""
    if error is None and app.builder.name == "singlehtml":
        shutil.move(Path(app.outdir, f"{app.config.root_doc}.html"), Path(app.outdir, "index.html"))


def say_when_run(app, pagename, templatename, context, doctree):
    """At the end of a chapter: when it was run, how long it took, and on what."""
    run = NbMetadataCollector.get_doc_data(app.env)[pagename].get("exec_data")
    if run and "body" in context:
        when = time.strftime("%Y-%m-%d", time.gmtime(run["mtime"]))
        took = f" in {run['runtime']:.0f} s" if run["runtime"] else ""
        made = provenance(torch.device("cpu"), compiled=False)
        machine = f"Python {made['python']}, torch {made['torch']}, {made['device']}, {os.cpu_count()} cores"
        context["body"] += f'<p class="executed">Run on {when}{took}: {html.escape(machine)}.</p>'


def report(app, error):
    """Say how long each chapter took and which ones failed."""
    chapters = NbMetadataCollector.get_doc_data(app.env).items() if app.env else ()
    runs = {name: data["exec_data"] for name, data in sorted(chapters) if data.get("exec_data")}
    print("\nChapters:")
    for name, run in runs.items():
        seconds = f"{run['runtime']:6.1f} s" if run["runtime"] else " " * 8
        state = _last_line(run["traceback"]) if not run["succeeded"] else "run" if run["mtime"] > STARTED else "kept"
        print(f"  {name:<30} {seconds}  {state}")
    if failed := [name for name, run in runs.items() if not run["succeeded"]]:
        print(f"These chapters failed: {', '.join(failed)}")


def _last_line(traceback):
    lines = (traceback or "").strip().splitlines() or ["FAILED"]
    return re.sub(r"\x1b\[[\d;]*m", "", lines[-1])  # without the colours of a terminal


def setup(app):
    app.setup_extension("atbook_meta")
    app.setup_extension("atbook_plots")
    app.setup_extension("atbook_tables")
    app.setup_extension("atbook_take")
    app.connect("builder-inited", show_exercises_on_one_page)
    app.connect("config-inited", use_fresh_cache)
    app.connect("config-inited", use_local_mathjax)
    app.connect("html-page-context", drop_scripts, priority=900)
    app.connect("html-page-context", say_when_run)
    app.connect("doctree-read", list_names)
    app.connect("doctree-read", keep_together)
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("autodoc-process-docstring", name_chapters, priority=900)  # after napoleon
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", move_one_page, priority=900)  # over the redirect that stands there
    app.connect("build-finished", mend_markup)
    app.connect("build-finished", report)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
