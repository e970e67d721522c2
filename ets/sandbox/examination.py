"""The values of expressions in a generated program, and whether the program passes tests.

The source text of `plain`, `reply`, `serve` and `judge` runs in the sandbox under the system's Python. So these
functions use and import the standard library alone.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

from ets.sandbox.process import Outcome, run_judged, run_program


def values(program: str, expressions: Sequence[str], *, seconds: float, unsafe: bool = False) -> list[str] | None:
    """Run a program, and return the values of expressions in the program's namespace.

    Parameters
    ----------
    program : str
        Python source code, run as a module.
    expressions : sequence of str
        Evaluated in order.
    seconds : float
        Time limit for the whole call.
    unsafe : bool
        See `ets.sandbox.process.run_program`.

    Returns
    -------
    list of str or None
        A text for each expression, the same text for equal values: `=` and a literal, `~` and the items of an iterator,
        or `!` and the name of an exception. None if the program fails, exits early or exceeds the limit.
    """
    source = source_of(plain_data, reply, serve) + f"serve({program!r}, exact=False)\n"
    questions = "".join(json.dumps(expression) + "\n" for expression in expressions)
    outcome = run_program(source, stdin=questions, seconds=seconds, unsafe=unsafe)
    answers = outcome.stdout.splitlines()
    return answers if outcome.ended == "ok" and len(answers) == len(expressions) else None


def passes(program: str, **options: Any) -> bool:
    """Whether a program's function passes hidden tests: `examined` with its options."""
    return examined(program, **options).ended == "ok"


def examined(
    program: str, *, prelude: str, tests: str, entry_point: str, seconds: float, unsafe: bool = False
) -> Outcome:
    """Run hidden tests on a program's function. The outcome is "ok" if the function passes.

    The tests run in a second sandbox (`ets.sandbox.process.run_judged`). Arguments and values cross over as literals of
    plain data: None, numbers, text, bytes, and lists, tuples, sets and dicts. Any other value equals nothing.

    Parameters
    ----------
    program : str
        Python source code that defines `entry_point`.
    prelude, tests : str
        Trusted code: definitions that the tests use, and the definition of `check(candidate)`.
    entry_point : str
        The function's name.
    seconds : float
        Time limit for the whole call.
    unsafe : bool
        See `ets.sandbox.process.run_program`. The two processes are then not protected from each other.
    """
    answering = source_of(plain_data, reply, serve) + f"serve({program!r}, exact=True)\n"
    asking = source_of(plain_data, judge) + f"judge({prelude!r}, {tests!r}, {entry_point!r})\n"
    return run_judged(answering, asking, seconds=seconds, unsafe=unsafe)


def source_of(*functions: Callable[..., Any]) -> str:
    """The source text of functions, for the sandbox."""
    return "from __future__ import annotations\n" + "\n".join(map(inspect.getsource, functions))


def literal_text(expression: str) -> str | None:
    """A literal's value as `values` writes the value, or None for other text. For trusted text only."""
    try:
        return "=" + plain_data(ast.literal_eval(expression), exact=False)
    except (ValueError, SyntaxError):
        return None


def plain_data(value: object, exact: bool) -> str:
    """A value as a Python literal in one line of ASCII; `<type>` for a value that is no plain data.

    If not exact, numbers that agree in twelve digits give the same text, and so do dicts in another order.
    """
    if isinstance(value, (list, tuple)):
        items = [plain_data(item, exact) for item in value]
        comma = "," if len(items) == 1 else ""
        return "[" + ", ".join(items) + "]" if isinstance(value, list) else "(" + ", ".join(items) + comma + ")"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(plain_data(item, exact) for item in value)) + "}" if value else "set()"
    if isinstance(value, dict):
        pairs = [plain_data(key, exact) + ": " + plain_data(item, exact) for key, item in value.items()]
        return "{" + ", ".join(pairs if exact else sorted(pairs)) + "}"
    if isinstance(value, str):
        return ascii(str.__str__(value))
    if isinstance(value, (bytes, bytearray)):
        return repr(bytes(value))
    if isinstance(value, float) and value - value != 0:
        nan = "(1e999-1e999)" if exact else "nan"  # exact text is evaluated, and nan is no literal
        return nan if value != value else "1e999" if value > 0 else "-1e999"
    if isinstance(value, float):
        whole = not exact and value == int(value) and abs(value) < 1e15
        return repr(int(value)) if whole else float.__repr__(value) if exact else f"{value:.12g}"
    if isinstance(value, complex):
        real, imaginary = plain_data(value.real, exact), plain_data(value.imag, exact)
        return f"({real}{'' if imaginary[0] == '-' else '+'}{imaginary}j)"
    if isinstance(value, bool) or value is None:
        return repr(value) if exact or value is None else repr(int(value))
    return int.__repr__(value) if isinstance(value, int) else f"<{type(value).__name__[:50]!a}>"


def reply(expression: str, scope: dict[str, object], exact: bool) -> str:
    """The expression's value or exception. An iterator gives the items, since tests may compute `tuple(f(x))`."""
    data = (str, bytes, bytearray, list, tuple, set, frozenset, dict)
    try:
        value = eval(expression, scope)
        iterator = hasattr(value, "__iter__") and not isinstance(value, data)
        return "~" + plain_data(list(value), exact) if iterator else "=" + plain_data(value, exact)
    except BaseException as error:
        return "!" + ascii(type(error).__name__)[1:-1]


def serve(program: str, exact: bool) -> None:
    """Run a program without standard input and output, then answer the expressions on standard input."""
    import json
    import os
    import sys

    asked, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open("/dev/null", os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    getattr(sys, "set_int_max_str_digits", int)(0)  # older versions have no limit
    sys.modules["answer"] = module = type(sys)("answer")
    exec(compile(program, "answer.py", "exec", dont_inherit=True), module.__dict__)
    for line in asked:
        print(reply(json.loads(line), module.__dict__, exact), file=answers, flush=True)


def judge(prelude: str, tests: str, entry_point: str) -> None:
    """Run the tests on a function that requests each value on standard output."""
    import ast
    import json
    import sys

    asking, sys.stdout = sys.stdout, sys.stderr
    getattr(sys, "set_int_max_str_digits", int)(0)

    def candidate(*args: object, **kwargs: object) -> object:
        call = f"{entry_point}(*{plain_data(args, True)}, **{plain_data(kwargs, True)})"
        print(json.dumps(call), file=asking, flush=True)
        line = sys.stdin.readline(2**20)
        if not line.endswith("\n"):
            raise EOFError("the program ended, or the answer is too long")
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
