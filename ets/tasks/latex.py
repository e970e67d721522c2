"""Finding pieces of LaTeX in a text."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\f?box(?:ed)?(?![a-zA-Z])")


def last_boxed(text: str) -> str | None:
    r"""What stands in the last whole ``\boxed{…}`` or ``\fbox{…}``; None if there is none.

    Braces may be nested. A box that was cut off is none. ``\boxed 3`` without braces goes on to the next dollar sign
    or the end of the line.
    """
    for found in reversed(list(_BOX.finditer(text))):
        content = _argument(text, found.end())
        if content is not None:
            return content.strip()
    return None


def _argument(text: str, start: int) -> str | None:
    """What stands in the braces that open at an index, or without braces up to a dollar sign."""
    rest = text[start:]
    if not rest.lstrip().startswith("{"):
        bare = re.match(r"\s+([^\s${}][^\n$]*)", rest)
        return bare.group(1) if bare else None
    inner = rest.lstrip()[1:]
    end = _closing(inner)
    return None if end is None else inner[:end]


def _closing(text: str) -> int | None:
    r"""Where the brace closes that is open at the beginning; ``\{`` and ``\}`` do not count."""
    depth = 1
    for found in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(found.group(), 0)
        if depth == 0:
            return found.start()
    return None


def balanced(text: str) -> bool:
    r"""Whether braces, dollar signs, ``\(`` and ``\[`` are all closed."""
    tokens = re.findall(r"\\.|[{}$]", text, re.DOTALL)
    pairs = (("{", "}"), (r"\(", r"\)"), (r"\[", r"\]"))
    return all(tokens.count(one) == tokens.count(other) for one, other in pairs) and tokens.count("$") % 2 == 0
