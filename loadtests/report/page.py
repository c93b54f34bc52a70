"""Reports as one HTML file each, from the templates beside this module: no script, no other file, nothing that loads or sends.

Every value is text and is escaped; drawings of charts.py are markup, which a template says with `safe`. A template that names a
value which it was not given fails with jinja2.UndefinedError: no report has a hole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES: Final = Path(__file__).with_name("templates")
"""base.html is the frame and the style of all; parts.html has tables, lists and rows of charts."""


def render(template: str, **values: object) -> str:
    """The page of one template of TEMPLATES."""
    return _environment().get_template(template).render(values)


def cell(value: float | None, form: str, factor: float = 1.0) -> str:
    """A number in a table, written in a form of `format`; a dash where there is none.

    >>> cell(0.1234, ".1f", 1e3), cell(0.5, ".0%"), cell(None, ".2f")
    ('123.4', '50%', '-')
    """
    return "-" if value is None else format(value * factor, form)


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table for a terminal, an issue or a page.

    >>> markdown_table(["batch", "K"], [["1", "5"]])
    ['| batch | K |', '| --- | --- |', '| 1 | 5 |']
    """
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def style(*names: str) -> str:
    """Style sheets of TEMPLATES, one after the other, for a drawing that stands alone.

    >>> "--main" in style("colours"), ".grid" in style("colours", "charts")
    (True, True)
    """
    return "".join((TEMPLATES / f"{name}.css").read_text(encoding="utf-8") for name in names)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
