"""Self-contained HTML pages, rendered from plain values by the Jinja templates of a package.

    values -> render("tune/search.html", ...) -> the page, including style and charts

The name of a template is PACKAGE/FILE, for FILE in the folder `templates` of the package. A page
extends support/kit.html and uses tiles, tables and figures of support/macros.html. All values are
escaped and redacted, except charts (support.chart), which are inserted unchanged.
"""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from jinja2 import BaseLoader, Environment, PackageLoader, StrictUndefined

from support.redact import redact


@dataclass(frozen=True)
class Cell:
    """A table cell with more than plain text."""

    text: str
    note: str = ""
    """Text after it in a soft colour."""
    kind: str = ""
    """CSS class of the text: good, bad, strong; name, which is not broken into lines."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; it is omitted if it has no rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    words: Collection[int] = (0,)
    """Columns of words, aligned to the left; the others contain numbers."""
    marked: Collection[int] = ()
    """Highlighted rows."""


def render(template: str, **values: object) -> str:
    """Render a template; raises jinja2.UndefinedError if it needs a value that is missing."""
    return _environment().get_template(template).render(**values)


class _PackageTemplates(BaseLoader):
    """Loads templates by PACKAGE/FILE."""

    def get_source(self, environment: Environment, template: str) -> tuple:
        package, _, file = template.rpartition("/")
        return PackageLoader(package).get_source(environment, file)


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
    """Redact a value for the page; markup has already been redacted and stays unchanged."""
    return value if hasattr(value, "__html__") else redact(str(value))
