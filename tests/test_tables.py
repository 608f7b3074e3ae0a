"""How the site shows what cells print: tables of one shape, and what belongs together on one line."""

import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from docutils import nodes

sys.path.insert(0, str(Path(__file__).parent.parent / "book" / "_ext"))
from atbook_site import keep_together
from atbook_tables import mended

TABLE = pd.DataFrame({"error": [1.5, 2.5], "why": ["short", "a sentence that is read as text, from the left"]})


def heads(html):
    return [
        re.findall(r">([^<]*)</t[hd]>", row)
        for row in re.findall(r"(?s)<thead>.*</thead>", html)[0].split("</tr>")[:-1]
    ]


def test_the_name_of_the_index_stands_beside_the_other_headings():
    html = mended(TABLE.rename_axis("method").to_html(), "Errors & reasons.")
    assert heads(html) == [["method", "error", "why"]]
    assert html.count("<caption>Errors &amp; reasons.</caption>") == 1


def test_two_names_of_an_index_both_do():
    assert heads(mended(TABLE.set_index(["error", "why"]).assign(n=1).to_html(), "Two.")) == [["error", "why", "n"]]


def test_a_name_of_the_columns_keeps_its_place():
    table = TABLE.rename_axis(index="method", columns="measure")
    assert heads(mended(table.to_html(), "Both."))[0][0] == "measure"
    assert heads(mended(table.to_html(), "Both."))[1][0] == "method"


@pytest.mark.parametrize("html", [TABLE.to_html(), TABLE.style.to_html()], ids=["plain", "styled"])
def test_only_prose_is_marked_as_prose(html):
    marked = re.findall(r'<t[hd][^>]*class="[^"]*prose"[^>]*>([^<]*)<', mended(html, "One."))
    assert marked == ["why", *TABLE["why"]]
    assert 'class="dataframe"' in mended(html, "One.")


@pytest.mark.parametrize(
    ("after", "kept", "rest"), [(", then", ",", " then"), (").", ").", ""), (" and", None, " and"), ("-th", "-", "th")]
)
def test_a_formula_keeps_the_sign_after_it(after, kept, rest):
    line = nodes.paragraph("", "", nodes.Text("where "), nodes.math("", "x"), nodes.Text(after))
    keep_together(None, nodes.section("", line))
    assert line.astext() == "where x" + after and line[-1] == rest
    assert [node.astext() for node in line.findall(nodes.inline)] == ([f"x{kept}"] if kept else [])


def test_a_number_keeps_its_percent_and_code_is_left_alone():
    line = nodes.paragraph("", "", nodes.Text("of 20 % or "), nodes.literal("", "a % b"))
    keep_together(None, nodes.section("", line))
    assert line.astext() == "of 20\u00a0% or a % b"
