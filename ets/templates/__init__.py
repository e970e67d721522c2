"""The HTML, CSS and SVG of every page and notebook fragment, as jinja2 templates that escape all values."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def render(name: str, **values: Any) -> Markup:
    """Fill in a template of this folder; a value that is not `Markup` is escaped.

    Raises
    ------
    jinja2.UndefinedError
        If the template uses a value that is missing.
    """
    from markupsafe import Markup

    return Markup(_environment().get_template(name).render(values))


def as_text(value: Any) -> str:
    """A text unchanged, any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["plain"] = as_text
    return environment
