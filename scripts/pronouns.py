"""Counts pronouns without a noun in docstrings and comments: `python scripts/pronouns.py [FOLDER]`.

A sentence whose subject is `what`, `it` or `one of those` sends the reader back to look for a name. The script counts
`what`, `such`, `own`, `it`, `they` and `them`, and `one`, `ones`, `those` and `these` where no noun follows, in each
1,000 words of the docstrings and comments of a folder (by default `ets`). Code in backticks is not counted.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from itertools import pairwise
from pathlib import Path

ALWAYS = {"what", "such", "own", "it", "they", "them"}
WITHOUT_NOUN = {"one", "ones", "those", "these"}
_FUNCTION_WORDS = """
    a an and are as at be but by can did do does for from had has have if in is may must nor not of on or should so
    than that the their then there to was were when where which while who will with
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that are no noun: after one of them, `one` or `those` stands alone."""


def prose(source: str) -> str:
    """The docstrings and comments of a module, without code in backticks and without the types of parameters."""
    tree = ast.parse(source)
    texts = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    texts += [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    text = re.sub(r"`+[^`]*`+", "CODE", "\n".join(texts))
    return re.sub(r"(?m)^\s*[\w, *]+ : .*$|^\s*-{3,}$", "", text)


def count(text: str) -> tuple[Counter[str], int]:
    """The pronouns of a text by word, and the number of its words."""
    tokens = re.findall(r"[A-Za-z']+|[.,;:()!?]", text)
    words = [token.lower() for token in tokens]
    found: Counter[str] = Counter()
    for word, following in pairwise([*words, "."]):
        alone = not following.isalpha() or following in FUNCTION_WORDS
        if word in ALWAYS or (word in WITHOUT_NOUN and alone):
            found[word] += 1
    return found, sum(word[0].isalpha() for word in words)


def main(folder: Path) -> None:
    """Print the rate of each module, the highest first, and of all modules together."""
    rows, total, words = [], Counter[str](), 0
    for path in sorted(folder.rglob("*.py")):
        found, size = count(prose(path.read_text(encoding="utf-8")))
        total, words = total + found, words + size
        if size:
            rows.append((1000 * sum(found.values()) / size, size, path))
    for rate, size, path in sorted(rows, reverse=True):
        print(f"{rate:6.1f}  {size:6,}  {path}")
    if not words:
        raise SystemExit(f"no Python file with docstrings in {folder}; name a folder")
    by_word = ", ".join(f"{word} {number}" for word, number in total.most_common())
    print(f"{1000 * sum(total.values()) / words:6.1f}  {words:6,}  all ({by_word})")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "ets"))
