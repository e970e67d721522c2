"""Pieces of LaTeX in a text, and answers without decoration."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:f|frame)?box(?:ed)?(?![a-zA-Z])|(?<![\\a-zA-Z])boxed(?=\s*\{)")
_EMPTY = re.compile(r"[\s.…?_]*|\\(?:ldots|dots|text\{\})")

MOST = 100
"""Number of boxes that are tried, from the last one backwards."""

_CHARACTERS = str.maketrans(
    {
        "−": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "÷": "/",
        "π": r"\pi ",
        "∞": r"\infty ",
        "∪": r"\cup ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≈": r"\approx ",
        "∅": r"\emptyset",
        "°": r"^\circ",
        "²": "^2",
        "³": "^3",
        "½": r" \frac{1}{2}",
        "¼": r" \frac{1}{4}",
        "¾": r" \frac{3}{4}",
        "\u00a0": "~",
        "\u2007": "~",
        "\u2009": "~",
        "\u202f": "~",
    }
)
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+|[a-zA-Z])|(?=\{))")
_DEGREES = re.compile(r"\^?\s*\{?\\degrees?(?![a-zA-Z])\}?")
_SEPARATOR = r"(?:,\\!\s*|\{,\}\s*|(?<!\\)\\[,;:! ]\s*|~)"
_GROUPED = re.compile(rf"(?<![\d.])\d{{1,3}}(?:{_SEPARATOR}\d{{3}})+(?!\d)")
_BLANKS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d-]|,\d)")
_SIZES = re.compile(r"\\(?:displaystyle|textstyle|limits|[bB]igg?[lrm]?|left|right)(?![a-zA-Z])")
_COLOUR = re.compile(r"\\(?:text)?color\s*(?:\[[^\]]*\])?\{[^{}]*\}")
_FONT = re.compile(
    r"\\(?P<text>text(?:bf|rm|it|sf|tt|normal|up|md)?|mbox|emph|math(?:bf|rm|it|sf|tt|normal|up)|operatorname)"
    r"(?![a-zA-Z])\s*(?=\{)|\\(?:boldsymbol|bm|underline|underbar|pmb|mathstrut|ensuremath)(?![a-zA-Z])\s*(?=\{)"
)
_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]|(?<!\\)\$+")
_SPACES = re.compile(r"(?<!\\)\\(?:[,;: ]|q?quad(?![a-zA-Z])|(?:thin|en)space(?![a-zA-Z])|hspace\*?\{[^{}]*\})|~")
_NEGATIVE_SPACE = re.compile(r"(?<!\\)\\!")
_RELATION = re.compile(r"\s*(?:=|\\(?:approx|equiv|simeq|sim)(?![a-zA-Z]))\s*")
_LETTERS = re.compile(r"[^\W\d_]{2,}(?:[\s'’./-]+[^\W\d_]+)*")


def last_boxed(text: str) -> str | None:
    r"""The content of the last whole ``\boxed{…}``, ``\fbox{…}`` or ``\framebox{…}`` that is not empty, or None.

    Braces may be nested. An unclosed box does not count. ``\boxed 3`` without braces goes on to the next dollar sign
    or the end of the line; the backslash of ``boxed{3}`` may be missing.
    """
    for found in list(_BOX.finditer(text))[: -MOST - 1 : -1]:
        content = _argument(text, found.end())
        if content is not None and not _EMPTY.fullmatch(content.strip()):
            return content.strip()
    return None


def _argument(text: str, start: int) -> str | None:
    """The content of the braces that open at an index. Without braces, the text up to a dollar sign."""
    rest = text[start:]
    if not rest.lstrip().startswith("{"):
        bare = re.match(r"\s+([^\s${}][^\n$]*)", rest)
        return bare.group(1) if bare else None
    inner = rest.lstrip()[1:]
    end = _closing(inner)
    return None if end is None else inner[:end]


def _closing(text: str) -> int | None:
    r"""The index of the brace that closes a brace before the text. ``\{`` and ``\}`` do not count."""
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


def undecorated(latex: str) -> str:
    r"""An answer without decoration that carries no meaning.

    Spacing commands, fonts, colours, sizes, dollar signs, Markdown's stars, blanks between groups of three digits, a
    leading ``=`` or ``\approx``, outer braces and trailing punctuation go; roots, degrees and signs in Unicode become
    LaTeX. Words stay marked as ``\text{…}``. ``**5\,000.**`` gives ``5000``, and ``9~\mathrm{cm}`` gives
    ``9 \text{cm}``.
    """
    latex = _DEGREES.sub(r"^\\circ", _ROOT.sub(_as_root, latex.translate(_CHARACTERS)))
    latex = _without_groups(_DELIMITERS.sub("", _COLOUR.sub("", latex)), _GROUPED)
    latex = _SIZES.sub("", latex) if r"\right" in latex.replace(r"\rightarrow", "") else latex
    latex = _unwrapped(_SPACES.sub(" ", _NEGATIVE_SPACE.sub("", latex)))
    previous = None
    while latex != previous:
        previous = latex
        latex = _stripped(latex)
    return latex


def without_blanks(text: str) -> str:
    """The text without the blanks in numbers like 70 000."""
    return _without_groups(text, _BLANKS)


def in_words(latex: str) -> str:
    r"""The LaTeX with ``\text{…}`` replaced by the plain words."""
    return re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", latex).strip()


def right_side(text: str) -> str:
    """The value of a chain like ``5 * 2 + 1 = 11``: the part after the last equals sign.

    Words in front of the sign leave the text unchanged: "18, as we have x = 3" is no chain.
    """
    left, sign, right = text.rpartition("=")
    chain = sign and not re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}", left) and right.strip()
    return undecorated(right) if chain else text


def _without_groups(text: str, numbers: re.Pattern[str]) -> str:
    return numbers.sub(lambda number: re.sub(r"\D", "", number.group()), text)


def _as_root(found: re.Match[str]) -> str:
    inner = found.group(1) or found.group(2)
    return rf"\sqrt{{{inner}}}" if inner else r"\sqrt"


def _unwrapped(latex: str) -> str:
    r"""Replace font commands by their arguments. Arguments that are words become ``\text{…}``."""
    start = 0
    while found := _FONT.search(latex, start):
        content = _argument(latex, found.end())
        if content is None:
            return latex
        end = latex.index("{", found.end()) + len(content) + 2
        words = found["text"] and _LETTERS.fullmatch(content.strip())
        written = rf"\text{{{content}}}" if words or found["text"] == "text" else content
        latex = latex[: found.start()] + written + latex[end:]
        start = found.start() + (len(written) if written.startswith(r"\text{") else 0)
    return latex


def _stripped(latex: str) -> str:
    latex = latex.strip().strip("*`").strip()
    latex = re.sub(r"(?:[.,;:\s]|(?<!\\)\\)+$", "", latex)
    leading = _RELATION.match(latex)
    latex = latex[leading.end() :] if leading else latex
    return latex[1:-1] if latex.startswith("{") and _closing(latex[1:]) == len(latex) - 2 else latex
