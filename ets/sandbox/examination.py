"""Ask a program that a model wrote: for the values of expressions, and whether it passes tests.

The functions `plain`, `reply`, `serve` and `judge` are not called here: their source text runs in the sandbox, under
the system's Python, and so they use the standard library alone and import it themselves.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

from ets.sandbox.process import run_judged, run_program


def values(program: str, expressions: Sequence[str], *, seconds: float, unsafe: bool = False) -> list[str] | None:
    """What the expressions evaluate to after the program has run.

    Parameters
    ----------
    program : str
        Python source code, run as a module.
    expressions : sequence of str
        Evaluated one after the other in the module's namespace.
    seconds : float
        For all of it.
    unsafe : bool
        See `ets.sandbox.process.run_program`.

    Returns
    -------
    list of str or None
        For each a text that is the same for equal values: `=` and a literal, `~` and the items of an iterator, or
        `!` and the name of an exception. None if the program fails, ends early or does not come to its end.
    """
    source = _source(plain, reply, serve) + f"serve({program!r}, exact=False)\n"
    asked = "".join(json.dumps(expression) + "\n" for expression in expressions)
    outcome = run_program(source, stdin=asked, seconds=seconds, unsafe=unsafe)
    answers = outcome.stdout.splitlines()
    return answers if outcome.ended == "ok" and len(answers) == len(expressions) else None


def passes(program: str, *, prelude: str, tests: str, entry_point: str, seconds: float, unsafe: bool = False) -> bool:
    """Whether a program's function passes tests that it never sees.

    The tests run in a sandbox of their own (`ets.sandbox.process.run_judged`); the function's arguments and values cross
    over as literals, so a value is what it is as plain data: None, numbers, text, bytes, and lists, tuples, sets
    and dicts of them. Anything else equals nothing.

    Parameters
    ----------
    program : str
        Python source code that defines `entry_point`.
    prelude, tests : str
        Trusted code: what the tests may refer to, and the definition of `check(candidate)`.
    entry_point : str
        The function's name.
    seconds : float
        For all of it.
    unsafe : bool
        See `ets.sandbox.process.run_program`. Still two processes, but without protection from each other.
    """
    answering = _source(plain, reply, serve) + f"serve({program!r}, exact=True)\n"
    asking = _source(plain, judge) + f"judge({prelude!r}, {tests!r}, {entry_point!r})\n"
    return run_judged(answering, asking, seconds=seconds, unsafe=unsafe).ended == "ok"


def _source(*functions: Callable[..., Any]) -> str:
    return "from __future__ import annotations\n" + "\n".join(map(inspect.getsource, functions))


def literal_text(expression: str) -> str | None:
    """How `values` would write a literal's value; None for what is no literal. For trusted text only."""
    try:
        return "=" + plain(ast.literal_eval(expression), exact=False)
    except (ValueError, SyntaxError):
        return None


def plain(value: object, exact: bool) -> str:
    """A value as a Python literal in one line of ASCII; `<type>` for what is no plain data.

    If not exact, numbers that are equal or differ after the twelfth digit only give the same text, and so do dicts
    in another order.
    """
    if isinstance(value, (list, tuple)):
        items = [plain(item, exact) for item in value]
        comma = "," if len(items) == 1 else ""
        return "[" + ", ".join(items) + "]" if isinstance(value, list) else "(" + ", ".join(items) + comma + ")"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(plain(item, exact) for item in value)) + "}" if value else "set()"
    if isinstance(value, dict):
        pairs = [plain(key, exact) + ": " + plain(item, exact) for key, item in value.items()]
        return "{" + ", ".join(pairs if exact else sorted(pairs)) + "}"
    if isinstance(value, str):
        return ascii(str.__str__(value))
    if isinstance(value, (bytes, bytearray)):
        return repr(bytes(value))
    if isinstance(value, float) and value - value != 0:
        return "nan" if value != value else "1e999" if value > 0 else "-1e999"
    if isinstance(value, float):
        whole = not exact and value == int(value) and abs(value) < 1e15
        return repr(int(value)) if whole else float.__repr__(value) if exact else f"{value:.12g}"
    if isinstance(value, bool) or value is None:
        return repr(value) if exact or value is None else repr(int(value))
    return int.__repr__(value) if isinstance(value, int) else f"<{type(value).__name__[:50]!a}>"


def reply(expression: str, scope: dict[str, object], exact: bool) -> str:
    """The expression's value, or what it raised. For an iterator its items: tests may ask for `tuple(f(x))`."""
    data = (str, bytes, bytearray, list, tuple, set, frozenset, dict)
    try:
        value = eval(expression, scope)
        iterator = hasattr(value, "__iter__") and not isinstance(value, data)
        return "~" + plain(list(value), exact) if iterator else "=" + plain(value, exact)
    except BaseException as error:
        return "!" + ascii(type(error).__name__)[1:-1]


def serve(program: str, exact: bool) -> None:
    """Run a program, and answer the expressions that come in on standard input. The program itself has neither
    standard input nor output."""
    import json
    import os
    import sys

    asked, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open("/dev/null", os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    getattr(sys, "set_int_max_str_digits", int)(0)  # older versions know no limit
    sys.modules["answer"] = module = type(sys)("answer")
    exec(compile(program, "answer.py", "exec", dont_inherit=True), module.__dict__)
    for line in asked:
        print(reply(json.loads(line), module.__dict__, exact), file=answers, flush=True)


def judge(prelude: str, tests: str, entry_point: str) -> None:
    """Run the tests on a function that asks, on standard output, for each of its values."""
    import ast
    import json
    import sys

    asking, sys.stdout = sys.stdout, sys.stderr
    getattr(sys, "set_int_max_str_digits", int)(0)

    def candidate(*args: object, **kwargs: object) -> object:
        call = f"{entry_point}(*{plain(args, True)}, **{plain(kwargs, True)})"
        print(json.dumps(call), file=asking, flush=True)
        line = sys.stdin.readline(2**20)
        if not line.endswith("\n"):
            raise EOFError("the program is gone, or its answer is too long")
        if line[0] == "!":
            raise RuntimeError(line[1:-1])
        value = ast.literal_eval(line[1:-1])
        return iter(value) if line[0] == "~" else value

    scope: dict[str, object] = {"__name__": "tests"}
    exec(compile(prelude, "prelude.py", "exec", dont_inherit=True), scope)
    scope[entry_point] = candidate
    exec(compile(tests, "tests.py", "exec", dont_inherit=True), scope)
    check: object = scope["check"]
    assert callable(check)
    check(candidate)
