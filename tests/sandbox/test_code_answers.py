"""From texts to programs. The texts are ours, so their programs run right here."""

from __future__ import annotations

import time

import pytest

from ets.sandbox.code_answers import COMPLETION_STOPS, LONGEST, program_of

PROMPT = '''from typing import List


def scaled(x: int) -> int:
    return 10 * x


def total(numbers: List[int]) -> int:
    """ Ten times the sum.
    >>> total([1, 2])
    30
    """
'''
WHOLE = "def total(numbers: List[int]) -> int:\n    return sum(scaled(x) for x in numbers)\n"
LOOP = "    result = 0\n    for x in numbers:\n        result += scaled(x)\n    return result\n"
FENCED = f"```python\n{WHOLE}```"


def _dedented(body: str) -> str:
    return "".join(line[4:] for line in body.splitlines(keepends=True))


RIGHT = {
    "a body": LOOP,
    "one line": "    return 10 * sum(numbers)",
    "blank lines first": f"\n\n{LOOP}",
    "blank lines within": LOOP.replace("\n    for", "\n\n    for"),
    "comments": LOOP.replace("    for", "    # add them up\n    for"),
    "a longer docstring": f'    """Once more."""\n{LOOP}',
    "without the first line's indentation": LOOP.lstrip(),
    "one space before everything": f" {LOOP.lstrip()}",
    "one line at the margin": "return 10 * sum(numbers)",
    "all at the margin": _dedented(LOOP),
    "all at the margin, then talk": f"{_dedented(LOOP)}\nThis adds them up.",
    "indented by two": "  total = sum(numbers)\n  return 10 * total\n",
    "indented by three": "   result = 0\n   for x in numbers:\n      result += 10 * x\n   return result",
    "indented by eight": "        result = sum(numbers)\n        return 10 * result\n",
    "tabs": "\tresult = 0\n\tfor x in numbers:\n\t\tresult += scaled(x)\n\treturn result\n",
    "carriage returns": LOOP.replace("\n", "\r\n"),
    "a nested function": "    def ten(x):\n        return 10 * x\n    return sum(map(ten, numbers))\n",
    "a nested function, first line stripped": "def ten(x):\n        return 10 * x\n    return sum(map(ten, numbers))\n",
    "a nested class": "    class Ten:\n        n = 10\n    return Ten.n * sum(numbers)\n",
    "an import within": "    import math\n    return 10 * math.fsum(numbers)\n",
    "runs on with a function": f"{LOOP}\n\ndef other(x):\n    return",
    "runs on with itself": f"{LOOP}\n\ndef total(numbers):\n    return 0\n",
    "runs on with a class": f"{LOOP}\n\nclass Other:\n    pas",
    "runs on with a comment": f"{LOOP}\n# That was it.\nassert False",
    "runs on with a main guard": f"{LOOP}\n\nif __name__ == '__main__':\n    print(total([1, ",
    "runs on with prints": f"{LOOP}\nprint(total([1, 2]))\nprint(",
    "runs on with a test": f"{LOOP}\nassert total([1, 2]) == 31\n",
    "runs on with a decorator": f"{LOOP}\n@cache\ndef other(): ...",
    "runs on with talk": f"{LOOP}\nThis function adds the numbers up.",
    "runs on with a fence's end": f"{LOOP}```\n\nIt adds them up: it's simple (really.",
    "runs on with a fence's end, first line stripped": f"{LOOP.strip()}\n```\n",
    "runs on with a fence of its own": f"{LOOP}```\nor\n```python\ndef total(numbers): return 0\n```",
    "a text over several lines": '    text = """a\nb\n"""\n    return 10 * sum(numbers)\n',
    "brackets over several lines": "    return sum([\n10 * x\nfor x in numbers\n])\n",
    "a whole function": WHOLE,
    "a whole function after a space": f" {WHOLE}",
    "a whole function, untyped": "def total(numbers):\n    return 10 * sum(numbers)",
    "a whole function and its docstring": WHOLE.replace(":\n    return", ':\n    """Ten\n    times"""\n    return'),
    "a whole function with imports": "import math\nfrom typing import List\n\n" + WHOLE.replace("sum(", "math.fsum("),
    "a whole function with a helper before": f"def scaled(x):\n    return 10 * x\n\n\n{WHOLE}",
    "a whole function with a helper after": WHOLE.replace("scaled", "ten") + "\n\ndef ten(x):\n    return 10 * x\n",
    "a whole function with a constant": "TEN = 10\n\n\ndef total(numbers):\n    return TEN * sum(numbers)\n",
    "a decorated function": f"from functools import wraps\n\n@(lambda f: wraps(f)(lambda x: f(x)))\n{WHOLE}",
    "another form of definition": "total = lambda numbers: 10 * sum(numbers)",
    "a whole function, then a cut off one": f"{WHOLE}\n\ndef other(x):\n    return (",
    "a whole function, then its use": f"{WHOLE}\n\nprint(total([1, 2]))\nassert total([1]) == 11\ntotal(None)\n",
    "a whole function, then a main guard": f"{WHOLE}\nif __name__ == '__main__':\n    print(total(input()))\n",
    "a whole function after talk": f"Here is the function:\n\n{WHOLE}\nIt adds them up.",
    "a whole function after talk from typing": f"from the list, I take all.\n\n{WHOLE}",
    "in a fence": FENCED,
    "in a fence without a language": f"```\n{WHOLE}```",
    "in a fence of py": f"```py\n{WHOLE}```",
    "in a fence of Python": f"```Python \n{WHOLE}```",
    "in a fence after a line of space": f"  \n{FENCED}",
    "in a fence with talk around": f"Sure! It's easy:\n\n{FENCED}\n\nHere `sum` adds up; it isn't hard.",
    "in an indented fence": "1. So:\n   ```python\n" + "".join(f"   {x}\n" for x in WHOLE.splitlines()) + "   ```",
    "in a fence, cut off after the function": f"```python\n{WHOLE}\n# Test\nprint(total([1, 2",
    "in a fence, never closed": f"```python\n{WHOLE}",
    "in a fence with its use": f"```python\n{WHOLE}\nprint(total([1, 2]))\nassert total([1]) == 11\n```",
    "in a fence with a main guard": f"```python\n{WHOLE}\nif __name__ == '__main__':\n    input()\n```",
    "in a fence with tabs": "```python\ndef total(numbers):\n\treturn 10 * sum(numbers)\n```",
    "in a fence with helpers and imports": "```python\nimport math\n\ndef ten(x):\n    return 10 * x\n\n"
    "def total(numbers):\n    return sum(map(ten, numbers))\n```",
    "the body in a fence": f"```python\n{LOOP}```",
    "the body in a fence, at the margin": f"```python\n{_dedented(LOOP)}```",
    "the body in a fence, with a helper": "```\ndef ten(x):\n    return 10 * x\nreturn sum(map(ten, numbers))\n```",
    "two fences, the use second": f"{FENCED}\nFor example:\n```python\nprint(total([1, 2]))  # 30\n```",
    "two fences, the output second": f"{FENCED}\nwhich gives\n```text\n30\n```",
    "two fences, a shell first": f"```bash\npip install numpy\n```\nThen\n{FENCED}",
    "two fences, the better second": f"```python\ndef total(numbers):\n    return 0\n```\nNo, rather:\n{FENCED}",
    "two fences, the second cut off": f"{FENCED}\nOr:\n```python\ndef total(numbers):\n    return sum(",
    "after thoughts": f"<think>\n```python\ndef total(numbers): return 0\n```\nwrong.</think>\n\n{FENCED}",
    "after thoughts that the prompt began": f"Hm.\n```python\ndef total(numbers): return 0\n```</think>\n{FENCED}",
    "in a fence with a title": f'```python title="a.py"\n{WHOLE}```',
    "in a fence with its language in braces": f"```{{python}}\n{WHOLE}```",
    "in a fence with a class": f"```{{.python .numberLines}}\n{WHOLE}```",
    "in a fence of python3.11": f"```python3.11\n{WHOLE}```",
    "in a longer fence": f"````python\n{WHOLE}````",
    "in a longer fence, with a short one within": f'````python\n{WHOLE}\nTEXT = """\n```\n"""\n````',
    "in a fence of tildes": f"~~~python\n{WHOLE}~~~",
    "in a fence that is closed at the end of a line": f"```python\n{WHOLE.rstrip()}```",
    "in a fence that opens at the end of a line": f"The code: ```python\n{WHOLE}```",
    "in a fence on one line": "```def total(numbers): return 10 * sum(numbers)```",
    "fences in the docstring": "```python\n"
    + WHOLE.replace(":\n    ret", ':\n    """\n    ```\n    3\n    ```\n    """\n    ret')
    + "```",
    "the body in a fence, indented": "```python\n    if not numbers: return 0\n    return 10 * sum(numbers)\n```",
    "the body in a fence, all in a block": "```python\n    if numbers:\n        return 10 * sum(numbers)\n```",
    "the body after talk": "Sure, here is the body:\n    return 10 * sum(numbers)",
    "the body after more talk": "Sure.\n\nHere it is:\n\n    x = sum(numbers)\n    return 10 * x",
    "a helper in another fence": "```python\ndef ten(x):\n    return 10 * x\n```\nand then\n```python\n"
    "def total(numbers):\n    return sum(map(ten, numbers))\n```",
    "a helper in a later fence": "```python\ndef total(numbers):\n    return sum(map(ten, numbers))\n```\nwith\n"
    "```python\nN = 10\ndef ten(x):\n    return N * x\n```",
    "an import in another fence": "```python\nimport math\n```\n```python\ndef total(numbers):\n"
    "    return round(10 * math.fsum(numbers))\n```",
    "a fence that raises beside it": f"{FENCED}\nTo try it:\n```python\nvalues = total(None)\n```",
    "a whole function, then its input": f"{WHOLE}\nn = int(input())\nrows = [n]\nprint(total(rows))\nx = total(rows)\n",
    "a whole function, then standard input": f"import sys\n{WHOLE}\ndata = sys.stdin.read()\nfor d in data:\n    d\n",
    "a whole function, then a try": f"{WHOLE}\ntry:\n    print(total(input()))\nexcept ValueError:\n    pass\n",
    "from the future": f"```python\nfrom __future__ import annotations\n{WHOLE}```",
    "an import that is missing and not used": f"```python\nimport no_such_module\n{WHOLE}```",
    "a special token at its end": "    return 10 * sum(numbers)<|endoftext|>",
    "a special token behind a fence": f"{FENCED}<|im_end|>\n<|im_start|>user\n```python\ndef total(n): return 0\n```",
    "special tokens around": f"<|im_start|>assistant\n{FENCED}</s>",
    "an escape that Python warns of": LOOP.replace("    for", "    '\\d'\n    for"),
}
WRONG = {
    "nothing": "",
    "space": " \n \n",
    "a comment": "    # to do\n",
    "talk": "I cannot do that.",
    "a word": "Sorry",
    "cut off in a line": "    return sum(",
    "cut off in a text": "    text = '''abc\n    return 1\n",
    "cut off in a block": "    for x in numbers:\n",
    "cut off at the margin": "return sum(",
    "a whole function, cut off": "def total(numbers):\n    return sum(",
    "a fence, cut off": "```python\ndef total(numbers):\n    result = [\n",
    "an empty fence": "```python\n```",
    "a fence of another language": "```java\nint total(int[] numbers) { return 0; }\n```",
    "a function of another name": "def add_up(numbers):\n    return 10 * sum(numbers)\n",
    "a function of another name in a fence": "```python\ndef add_up(numbers):\n    return 10 * sum(numbers)\n```",
    "a function of another name after talk": "Here you are:\n\ndef add_up(numbers):\n    return 10 * sum(numbers)\n",
    "a loop after talk": "I would write\nfor x in numbers:\n    return x\n",
    "a helper of a missing function": "```python\ndef ten(x):\n    return 10 * x\n```",
    "not to the end of its thoughts": "<think>def total(numbers): maybe, who knows",
    "zeros": "    return 10 * sum(numbers)\0",
    "too long": "    return 10 * sum(numbers)\n" + "#" * LONGEST,
    "nested too deeply": "    return " + "(" * 5000 + "1" + ")" * 5000,
    "negated too often": "    return " + "-" * 40_000 + "1",
    "chained too long": "    return x" + ".y" * 20_000,
}


@pytest.mark.filterwarnings("ignore:.*invalid escape sequence")
@pytest.mark.parametrize("name", RIGHT)
def test_the_function_is_found(name: str) -> None:
    program = program_of(PROMPT, "total", RIGHT[name])
    assert program is not None
    assert program.removeprefix("from __future__ import annotations\n").startswith(PROMPT)
    scope: dict[str, object] = {"__name__": "answer"}
    exec(program, scope)
    total = scope["total"]
    assert callable(total) and total([1, 2, 3]) == 60


@pytest.mark.parametrize("name", WRONG)
def test_where_there_is_no_function_there_is_no_program(name: str) -> None:
    assert program_of(PROMPT, "total", WRONG[name]) is None or name == "chained too long"


def test_a_body_that_returns_nothing_is_still_a_program() -> None:
    program = program_of(PROMPT, "total", "    pass\n")
    assert program == f"{PROMPT}    pass\n"


def test_another_definition_does_not_leave_the_prompts_own_in_place() -> None:
    program = program_of(PROMPT, "total", "def total(numbers):\n    return 1\ndel total\n")
    scope: dict[str, object] = {}
    exec(program or "", scope)
    assert "total" not in scope


@pytest.mark.parametrize("stop", COMPLETION_STOPS)
def test_a_completion_is_cut_at_each_stop(stop: str) -> None:
    assert program_of(PROMPT, "total", f"    return 1{stop}x") == f"{PROMPT}    return 1\n"


def test_stops_do_not_stand_in_a_body() -> None:
    assert not any(stop in f"\n{LOOP}" for stop in COMPLETION_STOPS)


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\n" * 8000,
        "def f(:\n" * 6000,
        "```\n" * 10_000,
        "```python\ndef total(x):\n" * 2000,
        "import x y\n" * 4500,
        "(" * 50_000,
        "    return [" + "[1], " * 9000,
        "    '''\n" * 6000,
        "if x:\n  y\n z\n" * 3000,
        "\t \t" * 16_000,
    ],
)
def test_rubbish_is_read_in_bounded_time(text: str) -> None:
    begun = time.monotonic()
    program_of(PROMPT, "total", text)
    assert time.monotonic() - begun < 20


def test_the_tags_of_thinking_are_a_setting() -> None:
    text = f"[THINK]\n{FENCED}"
    assert program_of(PROMPT, "total", text, ("[THINK]", "[/THINK]")) is None
    assert program_of(PROMPT, "total", f"<think>\n{FENCED}", None) is not None
