"""What a page says of itself: description, preview, address, how to cite it; and the page for what is missing.

Addresses are written only where ``ATBOOK_SITE`` says where the site will stand; without it nothing is guessed.
"""

import html
import itertools
import os
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import yaml
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.errors import ConfigError

NOT_FOUND = """<h1>There is no such page</h1>
<p>The address may be mistyped, or the page has moved. Look in the list of chapters, search, or start at
<a href="{start}">the first page</a>.</p>"""


def address(name: str) -> str:
    """The web address in the environment variable ``name``; empty where it is not set.

    Raises:
        ConfigError: if it is no web address.
    """
    url = os.environ.get(name, "").strip()
    if url and not (urlsplit(url).scheme in ("http", "https") and urlsplit(url).netloc):
        raise ConfigError(f"{name} is {url!r}, which is no web address: write it as https://host/path, or unset it")
    return url


def set_address(app, config):
    if site := address("ATBOOK_SITE"):
        config.html_baseurl = site.rstrip("/") + "/"


def describe(app, pagename, templatename, context, doctree):
    """Tags for search engines and for previews of links; those with an address only where it is known."""
    if doctree is None:
        return
    title, text = app.env.titles[pagename].astext(), _first_words(doctree)
    text = text or f"{title}. {app.config.html_title}"
    named = {"description": text}
    properties = {"og:title": title, "og:description": text, "og:type": "article"}
    properties["og:site_name"] = app.config.html_title
    if base := app.config.html_baseurl:
        properties["og:url"] = urljoin(base, app.builder.get_target_uri(pagename))
        if picture := _first_picture(doctree):
            properties["og:image"] = urljoin(base, picture)
    for key, values in (("name", named), ("property", properties)):
        for name, value in values.items():
            context["metatags"] += f'<meta {key}="{name}" content="{html.escape(value)}">\n'


def _first_words(doctree, longest=200):
    """The running text with which a page begins, cut after a word."""
    places = (nodes.section, nodes.document)
    texts = (found.astext() for found in doctree.findall(nodes.paragraph) if isinstance(found.parent, places))
    text = " ".join(" ".join(itertools.islice(texts, 3)).split())
    return text if len(text) <= longest else text[:longest].rsplit(" ", 1)[0].rstrip(",;:.") + " …"


def _first_picture(doctree):
    """The first drawn figure; the writer has already put its place in the site into the node."""
    names = (Path(image["uri"]).name for image in doctree.findall(nodes.image))
    return next((f"_images/{name}" for name in names if name.endswith(".png")), None)


def add_not_found(app):
    """404.html. A host shows it at any address, so its links start from the site's first folder."""
    body = NOT_FOUND.format(start=f"{app.config.root_doc}.html")
    yield "404", {"title": "Not found", "body": body, "pageurl": None}, "page.html"


def anchor_not_found(app, error):
    """Let 404.html find its styles, scripts and links from whatever address it is shown at."""
    path = Path(app.outdir, "404.html")
    if error is None and path.is_file():
        base = urlsplit(app.config.html_baseurl).path or "/"
        text = path.read_text("utf-8").replace('href="#', 'href="404.html#')
        text = text.replace("<head>", f'<head>\n<base href="{html.escape(base)}">', 1)
        path.write_text(text, encoding="utf-8")


def write_sitemap(app, error):
    if error is None and app.builder.name == "html" and (base := app.config.html_baseurl):
        pages = (urljoin(base, app.builder.get_target_uri(name)) for name in sorted(app.env.found_docs))
        places = "\n".join(f"<url><loc>{html.escape(url)}</loc></url>" for url in pages)
        head = '<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
        Path(app.outdir, "sitemap.xml").write_text(f"{head}\n{places}\n</urlset>\n", encoding="utf-8")


class Citation(Directive):
    """How to cite this book and the paper, as BibTeX, from ``CITATION.cff``, the one place that knows."""

    def run(self):
        path = Path(self.state.document.settings.env.srcdir, "CITATION.cff")
        self.state.document.settings.env.note_dependency(str(path))
        book = yaml.safe_load(path.read_text("utf-8"))
        (paper,) = book["references"]
        url = {"url": address} if (address := book.get("repository-code")) else {}
        own = {"author": f"{{{_authors(book)}}}", "title": f"{{{book['title']}}}", "version": book["version"]} | url
        other = {"author": _authors(paper), "title": f"{{{paper['title']}}}", "year": paper["year"]}
        other |= {"booktitle": paper["collection-title"], "url": paper["url"]}
        other["note"] = next(one["value"] for one in paper["identifiers"])
        text = f"{_entry('software', 'atbook', own)}\n\n{_entry('inproceedings', 'zagoruyko2017', other)}"
        return [nodes.literal_block(text, text, language="bibtex")]


def _authors(entry):
    names = (one.get("name") or f"{one['family-names']}, {one['given-names']}" for one in entry["authors"])
    return " and ".join(names)


def _entry(kind, key, fields):
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}\n}}"


def setup(app):
    app.add_directive("cite-this", Citation)
    app.connect("config-inited", set_address)
    app.connect("html-page-context", describe)
    app.connect("html-collect-pages", add_not_found)
    app.connect("build-finished", anchor_not_found)
    app.connect("build-finished", write_sitemap)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
