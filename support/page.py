"""Pages of HTML that stand alone: plain values shown by a Jinja template of the package.

    values -> render("tune/search.html", ...) -> the page, with style and charts inside it

The name of a template is PACKAGE/FILE, for FILE in the folder `templates` of the package. A page
extends support/kit.html and takes tiles, tables and figures from support/macros.html. All that it
shows is escaped and without secrets; only charts (support.chart) are taken as they are.
"""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from jinja2 import BaseLoader, Environment, PackageLoader, StrictUndefined

from support.redact import redact


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than a text."""

    text: str
    note: str = ""
    """What follows the text in a soft colour."""
    kind: str = ""
    """CSS class of the text: good, bad, strong."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; without rows it is not shown."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    words: Collection[int] = (0,)
    """Columns of words, which go to the left; the others hold numbers."""
    marked: Collection[int] = ()
    """Rows that are set off."""


def render(template: str, **values: object) -> str:
    """The page that a template makes of the values; a value that it lacks is an error."""
    return _environment().get_template(template).render(**values)


class _PackageTemplates(BaseLoader):
    """Templates by PACKAGE/FILE."""

    def get_source(self, environment: Environment, template: str) -> tuple:
        package, _, name = template.rpartition("/")
        return PackageLoader(package).get_source(environment, name)


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=_PackageTemplates(),
        autoescape=True,
        auto_reload=False,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: object) -> object:
    """What stands for a value on the page; markup, which has been through this, stays as it is."""
    return value if hasattr(value, "__html__") else redact(str(value))
