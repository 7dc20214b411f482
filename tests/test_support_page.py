"""Pages that stand alone: what a template shows is escaped, without secrets, and well-formed."""

import base64
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pytest
from markupsafe import Markup

from support.chart import VARIABLES, line_chart
from support.page import Cell, Table, _environment, render

ROOT = Path(__file__).parent.parent
HIDDEN = "s3://KEY:S3CR3T@bucket"


class Page(HTMLParser):
    """Words, tags, attributes and addresses of a page; tags that are not closed are an error."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, content):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(content)
        self.close()
        assert self.open == []

    @property
    def addresses(self):
        return [v for k, v in self.attributes if k in ("src", "href", "xlink:href", "srcset")]

    def assert_stands_alone(self):
        """Nothing on the page is fetched from anywhere, and nothing runs."""
        assert all(address.startswith(("data:image/", "#")) for address in self.addresses)
        assert not {"script", "link", "iframe", "object", "embed"} & set(self.tags)
        assert not [name for name, _ in self.attributes if name.startswith("on")]
        ids = [value for name, value in self.attributes if name == "id"]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def shown(body, **values):
    """A page with a body that uses the kit."""
    text = (
        '{% extends "support/kit.html" %}{% import "support/macros.html" as kit %}'
        "{% block title %}a title{% endblock %}{% block body %}" + body + "{% endblock %}"
    )
    return _environment().from_string(text).render(**values)


def test_a_page_is_well_formed_and_stands_alone():
    chart = line_chart({"a": [(0, 1.0), (1, 2.0)]}, name="loss")
    table = Table(head=["name", "value"], rows=[["a", "1"]])
    content = shown(
        "{{ kit.tiles({'steps': 5}) }}{{ kit.figures({'Loss': chart, 'None': ''}) }}"
        "{% call kit.section('Part') %}{{ kit.table(table) }}{% endcall %}"
        "{% call kit.folded('more') %}<p>long</p>{% endcall %}{{ kit.jpeg('aGk=', 'a picture') }}",
        chart=chart,
        table=table,
    )
    page = Page(content)
    page.assert_stands_alone()
    assert content.startswith("<!doctype html>") and "http" not in content
    assert page.tags.count("svg") == page.tags.count("table") == page.tags.count("details") == 1
    assert page.tags.count("figure") == 1 and "None" not in page.words  # no empty figure
    assert {"a title", "steps", "5", "Part", "more", "long"} <= set(page.words)
    assert "prefers-color-scheme: dark" in content


@pytest.mark.parametrize("name", [text[4:-1] for text in VARIABLES.values()])
def test_colours_of_charts_are_those_of_the_style_in_light_and_dark_mode(name):
    style = (ROOT / "support/templates/style.css").read_text()
    assert style.count(f"{name}: #") == 2
    (light,) = [colour for colour, text in VARIABLES.items() if text == f"var({name})"]
    assert f"{name}: {light}" in style


@pytest.mark.parametrize(
    "body",
    [
        "{{ value }}",
        "{{ kit.tiles({value: value}) }}",
        "{% call kit.section(value, value) %}x{% endcall %}",
        "{{ kit.table(table) }}",
        "{% call kit.folded(value) %}x{% endcall %}",
        "{{ kit.figure(value, '<svg></svg>') }}",
        "{{ kit.jpeg('aGk=', value) }}",
        "{{ [value, value] | join(', ') }}",
    ],
)
def test_what_is_shown_is_escaped_and_has_no_secrets(body):
    value = f'<script>"{HIDDEN}"</script>'
    table = Table(head=[value], rows=[[value], [Cell(value, value)]])
    content = shown(body, value=value, table=table)
    page = Page(content)
    assert "S3CR3T" not in content and "s3://***@bucket" in content
    assert "script" not in page.tags


def test_values_of_secret_variables_are_not_shown(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "hunter2-hunter2")
    assert "hunter2" not in shown("{{ value }}", value="it is hunter2-hunter2.")


def test_a_picture_that_looks_like_a_secret_stays_whole():
    data = base64.b64encode(bytes(range(256)) * 20).decode() + "AKIAABCDEFGHIJKLMNOP"
    assert f"base64,{data}" in shown("{{ kit.jpeg(data, 'x') }}", data=data)
    broken = shown("{{ kit.jpeg(data, 'x') }}", data='"><script>')
    assert "script" not in Page(broken).tags


def test_tables_mark_rows_and_align_words_and_numbers_differently():
    table = Table(
        head=["class", "name", "images"],
        rows=[["a", "b", "1"], ["c", Cell("d", "note", "good"), "2"]],
        words=(0, 1),
        marked=[1],
    )
    content = shown("{{ kit.table(table) }}", table=table)
    assert content.count('class="w"') == 6 and content.count('class="n"') == 3
    first, second = content.split("<tbody>")[1].split("</tr>")[:2]
    assert "marked" not in first and 'class="marked"' in second
    assert '<span class="good">d</span> <span class="soft">note</span>' in second
    assert "<table" not in shown("{{ kit.table(table) }}", table=Table(head=["a"], rows=[]))


def test_sections_and_figures_without_content_are_left_out():
    content = shown("{% call kit.section('Empty') %} {{ kit.figures({'a': ''}) }} {% endcall %}")
    assert "Empty" not in content and "<figure" not in content


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="missing"):
        shown("{{ missing }}")
    with pytest.raises(jinja2.TemplateNotFound):
        render("support/nothing.html")


def test_markup_is_taken_as_it_is():
    assert "<b>x</b>" in shown("{{ value }}", value=Markup("<b>x</b>"))


@pytest.mark.parametrize("module", ["pipeline", "shards", "tune"])
def test_command_lines_do_not_wait_for_the_page_kit(module):
    code = (
        f"import sys, {module}.__main__; "
        "sys.exit(bool({'matplotlib', 'jinja2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_package_with_templates_ships_them():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    folders = [path for path in ROOT.glob("*/**/templates") if path.is_dir()]
    packages = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in folders}
    assert packages >= {"support", "tune", "pipeline.report", "shards.check"}
    assert all("templates/*" in data[package] for package in packages)
