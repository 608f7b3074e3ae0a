"""Chapters to take away and run elsewhere: a zip of each one, and buttons where the repository's address is known."""

import html
import json
import re
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

from atbook_meta import address

README = """{title}: run book/{name}.ipynb from top to bottom; book/runs has the recorded runs that it reads.
It needs Python 3.11 or newer and the package with what chapters use: in a clone, `pip install ".[book]"`.
"""


def add_repository_buttons(app, config):
    """Link to the repository, Binder and Colab only where ``ATBOOK_REPOSITORY`` gives an address: no dead buttons."""
    if url := address("ATBOOK_REPOSITORY"):
        launch = {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}
        if urlsplit(url).netloc == "github.com":  # Colab opens notebooks from there alone
            launch["colab_url"] = "https://colab.research.google.com"
        config.html_theme_options |= {
            "repository_url": url,
            "repository_branch": "main",
            "use_repository_button": True,
            "use_issues_button": True,
            "use_edit_page_button": True,
            "launch_buttons": launch,
        }


def files(source: Path, chapter: Path) -> list[Path]:
    """What a chapter reads of the repository, by the names in its code.

    A quoted name of ``book/runs`` stands for its receipts. Weights, which are large, come along where the name of their
    run, or their own, is quoted too. A chapter that imports from ``book/_tools`` gets those programs.
    """
    cells = json.loads(chapter.read_text("utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    quoted = set(re.findall(r"[\"']([^\"'\n]+)[\"']", code))
    found = [chapter]
    if "atbook.demos" in code:  # reads these itself
        found += sorted(path for path in Path(source, "book", "runs", "demos").rglob("*") if path.is_file())
    if "book_runs" in code:
        for path in sorted(Path(source, "book", "runs").rglob("*")):
            top = path.relative_to(source).parts[2]
            large = path.suffix == ".safetensors" and not quoted & {path.name, path.parent.name}
            if path.is_file() and top in quoted and not large:
                found.append(path)
    if "_tools" in quoted:
        found += sorted(Path(source, "book", "_tools").glob("*.py"))
    return found


def pack(source: Path, chapter: Path, title: str, target: Path) -> None:
    """Write a zip that is the same whenever it is made from the same files."""
    readme = README.format(title=title, name=chapter.stem)
    parts = {"README.md": readme.encode()}
    parts |= {path.relative_to(source).as_posix(): path.read_bytes() for path in files(source, chapter)}
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in parts.items():
            packed.writestr(zipfile.ZipInfo(f"{chapter.stem}/{name}"), content, zipfile.ZIP_DEFLATED)


def offer(app, pagename, templatename, context, doctree):
    """Pack a chapter, and say at its end how to run it elsewhere."""
    chapter = Path(app.srcdir, f"{pagename}.ipynb")
    if not chapter.is_file() or "body" not in context or app.builder.name != "html":
        return
    target = Path(app.outdir, f"{pagename}.zip")
    pack(Path(app.srcdir), chapter, re.sub(r"<[^>]*>", "", context["title"]), target)
    size = f"{max(target.stat().st_size / 1e6, 0.1):.1f} MB"
    text = f'<p>Run it elsewhere: <a href="{target.name}" download>{target.name}</a> ({size}) has this notebook '
    text += "and the recorded runs that it reads."
    if app.config.html_theme_options.get("launch_buttons", {}).get("colab_url"):
        url = app.config.html_theme_options["repository_url"]
        first = f"!git clone --depth 1 {url} clone && pip install './clone[book]'\n%cd clone/book"
        text += f" In Colab, first run this in a new cell:</p><pre><code>{html.escape(first)}</code></pre>"
    context["body"] += f'<div class="elsewhere">{text}</div>'


def setup(app):
    app.connect("config-inited", add_repository_buttons)
    app.connect("html-page-context", offer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
