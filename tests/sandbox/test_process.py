"""The sandbox against hostile programs, and what it says of honest ones."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from ets.sandbox import process as sandbox
from ets.sandbox.examination import passes, values
from ets.sandbox.process import (
    OUTPUT_BYTES,
    Outcome,
    in_parallel,
    require_sandbox,
    run_judged,
    run_program,
)
from ets.types import InputError
from tests.sandboxed import MISSING, needs_sandbox

MEMORY_MIB = 300 + os.getpid() % 97
"""Stands on the command lines of this session's children, which makes them known."""
SECRET = "secret-5b0d1c"
TESTS = f"def check(candidate):\n    assert candidate(2) == 7919, {SECRET!r}\n"
SECONDS = 1.0


# Each does harm if it can, and prints "escaped" where it could. None of them defines a right answer.
HOSTILE = {
    "fork bomb": "import os\nwhile True:\n    os.fork()\n    print('escaped', flush=True)",
    "thread bomb": """
import threading
while True:
    threading.Thread(target=input).start()
    print('escaped')""",
    "double fork": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print('escaped', flush=True)
        time.sleep(1000)
os._exit(0)""",
    "daemon of its own session": "import os, time\ntry: os.setsid()\nexcept OSError: pass\ntime.sleep(1000)",
    "memory": "x = []\nwhile len(x) < 100: x.append(bytearray(2**26))\nprint('escaped')",
    "memory mapped": """
import mmap
x = [mmap.mmap(-1, 2**26) for _ in range(100)]
print('escaped')""",
    "memory in a file": """
import os
files = [os.memfd_create('x') for _ in range(50)]
print('escaped')""",
    "memory shared": """
import ctypes
if ctypes.CDLL(None).shmget(0, 2**26, 0o1777) >= 0:
    print('escaped')
raise SystemExit(1)""",
    "filling the disk": """
for place in ('/tmp', '/var/tmp', '/dev/shm', '/dev', '/usr/lib', '/', '.', '/root', '/home', '/run'):
    try:
        open(place + '/full', 'wb').write(bytes(2**20))
        print('escaped', place)
    except OSError: pass
raise SystemExit(1)""",
    "filling the output's file": """
import os
for number in (1, 2):
    try: os.truncate(number, 2**40); print('escaped')
    except OSError: pass
    try: os.posix_fallocate(number, 0, 2**24); print('escaped')
    except OSError: pass
raise SystemExit(1)""",
    "endless loop": "while True: pass",
    "endless loop at the end": "import atexit\ndef on():\n    while True: pass\natexit.register(on)",
    "endless loop in C": "sum(iter(int, 1))",
    "swallowing everything": """
while True:
    try:
        while True: pass
    except BaseException: pass""",
    "ignoring signals": """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass""",
    "stopping itself": "import os, signal, time\nos.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(1000)",
    "waiting on input": "import time\ntry: input()\nexcept EOFError: pass\ntime.sleep(1000)",
    "sockets": """
import socket
for family, kind in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_UNIX, 1)):
    try: socket.socket(family, kind); print('escaped')
    except OSError: pass
socket.create_connection(('127.0.0.1', PORT)); print('escaped')""",
    "reading files": """
import glob, os
places = ['/etc/passwd', '/etc/hostname', '/proc/self/environ', '/proc/1/cmdline', '/root', '/home', '/tmp', '/work']
for place in places + [REPOSITORY, PACKAGES, VICTIM]:
    if os.path.exists(place): print('escaped', place)
if glob.glob('/usr/lib*/python3*/*-packages/*') or glob.glob('/usr/local/*'): print('escaped')
raise SystemExit(1)""",
    "deleting files": """
import os, shutil
for place in (VICTIM, '/usr/bin/python3', os.path.realpath(os.__file__)):
    try: os.remove(place); print('escaped')
    except OSError: pass
shutil.rmtree('/', ignore_errors=True)
shutil.rmtree('/usr', ignore_errors=True)
import json
raise SystemExit(1)""",
    "links": """
import os
for make in (os.symlink, os.link):
    for place in ('/x', '/dev/x', '/usr/lib/x', 'x'):
        try: make('/usr/lib/os-release', place); print('escaped')
        except OSError: pass
raise SystemExit(1)""",
    "killing others": """
import os
for pid in (os.getppid(), 1, -1, PARENT):
    try: os.kill(pid, 9)
    except OSError: pass
raise SystemExit(1)""",
    "tracing": """
import ctypes, os
libc = ctypes.CDLL(None)
for request, pid in ((0, 0), (16, 1), (16, os.getppid()), (16, PARENT)):
    if libc.ptrace(request, pid, 0, 0) == 0: print('escaped')
raise SystemExit(1)""",
    "new namespaces": """
import ctypes, os
libc = ctypes.CDLL(None)
if libc.unshare(0x10000000) == 0 or libc.unshare(0x20000) == 0: print('escaped')
if libc.mount(b'none', b'/usr', b'tmpfs', 0, 0) == 0: print('escaped')
try: os.chroot('/usr'); print('escaped')
except OSError: pass
raise SystemExit(1)""",
    "becoming root": """
import os
for become in (os.setuid, os.setgid):
    try: become(0)
    except OSError: pass
if os.getgroups() not in ([], [os.getgid()], [65534]) or (os.getuid(), ROOT) == (0, True): print('escaped')
raise SystemExit(1)""",
    "raising limits": """
import resource
for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
    try: resource.setrlimit(kind, (2**40, 2**40)); print('escaped')
    except (OSError, ValueError): pass
raise SystemExit(1)""",
    "files left open": """
import os
for number in range(3, 1024):
    try: os.fstat(number); print('escaped', number)
    except OSError: pass
raise SystemExit(1)""",
    "other programs": """
import os, subprocess
for program in ('/bin/sh', '/usr/bin/env', '/usr/bin/perl', '/usr/bin/bwrap', '/bin/ls'):
    if os.path.exists(program): print('escaped', program)
try: subprocess.run(['/usr/bin/python3'])
except OSError: os.execv('/bin/sh', ['sh', '-c', 'echo escaped'])""",
    "secrets of the environment": """
import os
if any(SECRET in text for text in (*os.environ.values(), *os.environ)): print('escaped')
raise SystemExit(1)""",
    "leaving with 0": "import sys\nsys.exit(0)",
    "leaving with 0 at once": "import os\nos._exit(0)",
    "a million lines": "for line in range(10**6): print('passed')",
    "a million errors": "import sys\nfor line in range(10**6): print('passed', file=sys.stderr)",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f([x])\nf(1)",
    "recursion in C": "import sys\nsys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)",
    "closing everything": "import os\nos.closerange(0, 100)\nwhile True: pass",
    "crashing": "import ctypes\nctypes.string_at(0)",
    "zeros in the source": "print('escaped')\0",
    "huge numbers": "x = 10 ** 10 ** 10\nprint('escaped')",
    "new processes by hand": """
import ctypes, os
libc = ctypes.CDLL(None)
for number in (56, 57, 58, 435):
    if libc.syscall(number, 0, 0, 0, 0, 0) > 0: print('escaped')
try: os.posix_spawn('/usr/bin/python3', ['python3'], {}); print('escaped')
except OSError: pass
raise SystemExit(1)""",
    "calls of another architecture": """
import ctypes
if ctypes.CDLL(None).syscall(0x40000000 + 41, 2, 1, 0) >= 0: print('escaped')
raise SystemExit(1)""",
    "a device made by hand": """
import os, stat
for place in ('/dev/x', '/x', '/tmp/x', 'x'):
    try: os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(1, 9)); print('escaped')
    except OSError: pass
    try: os.mkfifo(place); print('escaped')
    except OSError: pass
raise SystemExit(1)""",
    "other devices": """
import os
for name in ('mem', 'kmsg', 'sda', 'vda', 'tty', 'ptmx', 'fuse', 'kvm', 'random', 'shm', 'nvidia0'):
    try: os.open('/dev/' + name, os.O_RDWR); print('escaped', name)
    except OSError: pass
raise SystemExit(1)""",
    "kernel's switches": """
for place in ('/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/sys/kernel/uevent_helper', '/sys/fs/cgroup/x'):
    for mode in ('r', 'w'):
        try: open(place, mode); print('escaped', place)
        except OSError: pass
raise SystemExit(1)""",
    "changing rights": """
import os
for change in (lambda: os.chmod('/usr', 0o777), lambda: os.chmod('/', 0o777), lambda: os.chown('/usr', 1, 1),
               lambda: os.utime('/usr'), lambda: os.setxattr('/usr', 'user.x', b'x'), lambda: os.rename('/usr', '/x')):
    try: change(); print('escaped')
    except OSError: pass
raise SystemExit(1)""",
    "clock and name of the machine": """
import os, socket, time
for change in (lambda: time.clock_settime(time.CLOCK_REALTIME, 0), lambda: socket.sethostname('x'),
               lambda: os.nice(-5), lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(9))):
    try: change(); print('escaped')
    except OSError: pass
raise SystemExit(1)""",
    "a new program in its place": """
import os, sys
for place in ('/usr/bin/setpriv', '/usr/bin/sh', '/bin/bash', '/proc/self/exe', '/usr/bin/chmod'):
    try: os.execv(place, [place, '-c', 'echo escaped'])
    except OSError: pass
print_many = 'print("esc" "aped") if len(__import__("os").environ) > 3 else 1/0'
os.execv(sys.executable or '/x', ['python3', '-c', print_many])""",
    "a cycle that collects itself": """
class Node:
    def __del__(self):
        Node().self = Node()
        while True: pass
Node()
print('passed')""",
    "patterns that take for ever": "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
    "text that grows": "x = 'a'\nwhile True: x += x\nprint('escaped')",
    "a compiler's nightmare": "exec('(' * 10**5 + ')' * 10**5)\nprint('escaped')",
}
MAY_END_WELL = {"leaving with 0", "leaving with 0 at once", "recursion in C"}


HONEST = ("def f(x): return x + 7917", "def f(x): return 7919.0")


def _prepared(source: str, victim: Path) -> str:
    known = {
        "PORT": 9,
        "REPOSITORY": str(Path(__file__).parents[1]),
        "PACKAGES": str(Path(pytest.__file__).parent),
        "VICTIM": str(victim),
        "PARENT": os.getpid(),
        "ROOT": os.geteuid() == 0,
        "SECRET": SECRET,
    }
    return "".join(f"{name} = {value!r}\n" for name, value in known.items()) + source + "\n"


def _running() -> list[str]:
    """Command lines of sandboxed processes that this session started; a zombie has none."""
    marker = str(MEMORY_MIB * 2**20).encode()
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if marker in line.split(b"\0"):
            lines.append(line.decode("utf-8", "replace"))
    return lines


@dataclass(frozen=True)
class Battle:
    """How each hostile program ended, whether it passed tests, and its seconds; and how honest ones fared beside."""

    ended: dict[str, tuple[Outcome, bool, float]]
    honest: dict[str, bool]


@pytest.fixture(scope="module", params=[0, 1], ids=["user namespaces", "namespaces as root"])
def battle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Battle:
    """All hostile programs, some at a time, in each way in which a sandbox can be made; root has two."""
    recipes = sandbox._recipes(os.geteuid() == 0) if MISSING is None else []
    if request.param >= len(recipes):
        pytest.skip("only root has a second way to make a sandbox")
    if problem := sandbox._problem_of(recipes[request.param]):
        pytest.skip(f"this machine does not allow this sandbox: {problem}")
    victim = tmp_path_factory.mktemp("open") / "victim"
    victim.write_text("here")
    for path in (victim, victim.parent):
        path.chmod(0o777)

    def attack(source: str) -> tuple[Outcome, bool, float]:
        begun, hostile = time.monotonic(), _prepared(source, victim)
        outcome = run_program(hostile, seconds=SECONDS, memory_mib=MEMORY_MIB)
        wrong = f"{hostile}\ndef f(x): return 0\n"
        passed = passes(wrong, prelude="", tests=TESTS, entry_point="f", seconds=SECONDS)
        return outcome, passed, time.monotonic() - begun

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "_recipe", lambda: recipes[request.param])
        patch.setenv("A_TOKEN", SECRET)
        with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:  # many wait for their time limit
            ended = dict(zip(HOSTILE, pool.map(attack, HOSTILE.values()), strict=True))
        honest = {program: passes(program, prelude="", tests=TESTS, entry_point="f", seconds=20) for program in HONEST}
    assert victim.read_text() == "here"
    return Battle(ended, honest)


@needs_sandbox
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_are_contained(name: str, battle: Battle) -> None:
    outcome, passed, seconds = battle.ended[name]
    assert "escaped" not in outcome.stdout, outcome
    assert outcome.ended in ("failed", "timeout") or name in MAY_END_WELL, outcome
    assert len(outcome.stdout) <= OUTPUT_BYTES and len(outcome.stderr) <= sandbox.STDERR_CHARACTERS
    assert not passed
    assert seconds < 2 * SECONDS + 20  # what starting three sandboxes takes on a busy machine


@needs_sandbox
def test_honest_programs_pass_the_tests_that_hostile_ones_fail(battle: Battle) -> None:
    assert battle.honest == dict.fromkeys(HONEST, True)


@needs_sandbox
def test_nothing_is_left_running(battle: Battle) -> None:
    deadline = time.monotonic() + 120
    while (left := _running()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


@needs_sandbox
def test_what_runs_would_have_been_found() -> None:
    def look() -> list[str]:
        deadline = time.monotonic() + 120
        while not (found := _running()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(look)
        run_program("import time; time.sleep(1000)", seconds=3, memory_mib=MEMORY_MIB)
        assert found.result()


# Each defines `f`, and tries to make the tests believe that f(2) is right without knowing what is.
FORGERIES = {
    "equal to everything": """
class Yes(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
    def __repr__(self): return '3'
def f(x): return Yes(0)""",
    "a text equal to everything": """
class Yes(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def f(x): return Yes('x')""",
    "no plain data": "class Yes:\n    def __eq__(self, other): return True\ndef f(x): return Yes()",
    "patched builtins": """
import builtins
builtins.AssertionError = type('Fine', (BaseException,), {'__init__': lambda *a: __import__('os')._exit(0)})
builtins.isinstance = lambda *a: True
builtins.repr = builtins.ascii = lambda *a: '3'
def f(x): return 0""",
    "patched json": "import json\njson.loads = json.dumps = lambda *a, **k: '3'\ndef f(x): return 0",
    "leaving in the call": "import os\ndef f(x): os._exit(0)",
    "leaving politely in the call": "import sys\ndef f(x): sys.exit(0)",
    "stopping the iteration": "def f(x): raise StopIteration",
    "patched exit": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\ndef f(x): raise KeyboardInterrupt",
    "saying that it passed": """
import os
for number in range(64):
    try: os.write(number, b'passed\\n=True\\nok\\n')
    except OSError: pass
def f(x): return 0""",
    "answering before it is asked, and too long": """
import os
for number in range(3, 64):
    try: os.write(number, b'=' + b'3' * 60000)
    except OSError: pass
def f(x): return 0""",
    "reading the tests": f"""
import gc, sys
def f(x):
    frame, texts = sys._getframe(), []
    while frame:
        texts += [repr(frame.f_locals), repr(frame.f_globals), repr(frame.f_code.co_consts)]
        frame = frame.f_back
    texts += [repr(thing) for thing in gc.get_objects() if type(thing) in (dict, list, tuple)]
    texts += sys.argv
    secret = ''.join(reversed({SECRET[::-1]!r}))
    return 7919 if any(secret in text for text in texts) else 0""",
    "a bomb for the reader": "def f(x):\n    x = 3\n    for _ in range(10**5): x = [x]\n    return x",
    "a prompt for the reader": "class Int(int): pass\ndef f(x): return {'a': [Int(3)], 'b': float('nan')}",
    "endless items": "def f(x):\n    while True: yield 3",
    "patched while it is asked": """
import sys
def f(x):
    frame = sys._getframe()
    while frame.f_back: frame = frame.f_back
    frame.f_globals['plain'] = lambda *a: 'True'
    return 0""",
}


@needs_sandbox
def test_no_forgery_passes_the_tests() -> None:
    def attempt(program: str) -> bool:
        return passes(program, prelude="", tests=TESTS, entry_point="f", seconds=3)

    passed = dict(zip(FORGERIES, in_parallel(attempt, FORGERIES.values()), strict=True))
    assert passed == dict.fromkeys(FORGERIES, False)


@needs_sandbox
@pytest.mark.parametrize(
    ("definition", "test"),
    [
        ("def f(): return None", "f() is None"),
        ("def f(): return True", "f() is True"),
        ("def f(): return -3", "f() == -3 and type(f()) is int"),
        ("def f(): return 10**5000", "f() == 10**5000"),
        ("def f(): return 0.1 + 0.2", "f() == 0.1 + 0.2"),
        ("def f(): return float('-inf')", "f() == float('-inf')"),
        ("def f(): return 'ä\\n\\ud800\\''", "f() == 'ä\\n\\ud800\\''"),
        ("def f(): return b'a\\x00'", "f() == b'a\\x00'"),
        ("def f(): return [], (), (1,), {}, set()", "f() == ([], (), (1,), {}, set())"),
        ("def f(): return {'b': [1, {2, 3}], 'a': (1.5, None)}", "f() == {'a': (1.5, None), 'b': [1, {2, 3}]}"),
        ("def f(x): return list(x)", "f({'b': 1, 'a': 2}) == ['b', 'a']"),
        ("def f(*, x): return x", "f(x='é') == 'é'"),
        ("from collections import Counter\ndef f(): return Counter('aab')", "f() == {'a': 2, 'b': 1}"),
        ("from enum import IntEnum\nclass E(IntEnum):\n    A = 3\ndef f(): return E.A", "f() == 3"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\ndef f(): return A(1).x", "f() == 1"),
        ("def f(): return map(str, [1, 2])", "f() != ['1', '2'] and tuple(f()) == ('1', '2')"),
        ("def f(): return range(3)", "f() != [0, 1, 2] and list(f()) == [0, 1, 2]"),
        ("def f(x):\n    print('noise')\n    return helper(x)\ndef helper(x): return x", "f('a b') == 'a b'"),
        ("import sys\ndef f(): return sys.stdin.read()", "f() == ''"),
        (
            "def f(x): return decode(encode(x))\ndef decode(x): return x[1:]\ndef encode(x): return 'a' + x",
            "f('b') == 'b'",
        ),
    ],
)
def test_values_cross_over_as_plain_data(definition: str, test: str) -> None:
    tests = f"def check(candidate):\n    f = candidate\n    assert {test}\n"
    assert passes(definition, prelude="", tests=tests, entry_point="f", seconds=20)


@needs_sandbox
def test_tests_may_use_the_prelude_and_the_functions_own_name() -> None:
    tests = "def check(candidate):\n    assert candidate(double(2)) == f(4) == 5\n"
    prelude = "def double(x): return 2 * x\ndef f(x): pass\n"
    program = "def double(x): raise ValueError\ndef f(x): return x + 1"
    assert passes(program, prelude=prelude, tests=tests, entry_point="f", seconds=20)


@needs_sandbox
def test_values_are_the_same_text_for_equal_values() -> None:
    program = "def f(x):\n    print('noise')\n    return x\ndef bad(): raise KeyError"
    asked = ["f(1)", "f(1.0)", "f(True)", "f(.1 + .2)", "f(.3)", "f({3, 1})", "f({'b': 1, 'a': 2})", "f(iter('ab'))"]
    found = values(program, [*asked, "bad()", "f(f)", "nothing", "1 +"], seconds=20)
    numbers, sets, errors = ["=1"] * 3 + ["=0.3"] * 2, ["={1, 3}", "={'a': 2, 'b': 1}"], ["!NameError", "!SyntaxError"]
    assert found == [*numbers, *sets, "~['a', 'b']", "!KeyError", "=<'function'>", *errors]


@needs_sandbox
@pytest.mark.parametrize("program", ["x = ", "1 / 0", "import os\nos._exit(0)", "raise SystemExit", "while True: pass"])
def test_a_program_that_does_not_run_has_no_values(program: str) -> None:
    assert values(program, ["1"], seconds=1) is None


@needs_sandbox
def test_an_honest_program_reads_its_input_and_prints() -> None:
    outcome = run_program("name = input()\nprint('hello', name, __name__)\nprint(input())", stdin="ä\nb\n")
    assert outcome == Outcome("ok", 0, "hello ä __main__\nb\n", "")


@needs_sandbox
def test_what_went_wrong_is_said() -> None:
    failed = run_program("import sys\nprint('so far')\nsys.exit('because')")
    assert (failed.ended, failed.status, failed.stdout, failed.stderr) == ("failed", 1, "so far\n", "because\n")
    assert "ZeroDivisionError" in run_program("1 / 0").stderr
    assert "SyntaxError" in run_program("1 /").stderr
    assert run_program("import os\nos._exit(7)").status == 7
    assert run_program("import time\ntime.sleep(9)", seconds=0.2).ended == "timeout"


@needs_sandbox
def test_a_program_starts_alike_every_time() -> None:
    source = "import os, sys\nprint(hash('a'), {'x', 'y', 'z'}, sorted(globals()), sys.argv, sys.path, os.getcwd())"
    first, second = in_parallel(run_program, [source, source])
    assert first == second and first.ended == "ok"


@needs_sandbox
def test_many_run_in_parallel_in_order_beside_hogs() -> None:
    hog = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    sources = [hog, *(f"print({number})" for number in range(10)), hog]
    outcomes = in_parallel(partial(run_program, seconds=2), sources)
    assert [outcome.stdout for outcome in outcomes[1:-1]] == [f"{number}\n" for number in range(10)]
    assert {outcomes[0].ended, outcomes[-1].ended} == {"timeout"}


@needs_sandbox
def test_a_judge_decides() -> None:
    asks = "print(20)\nimport sys\nsys.stdout.flush()\nassert input() == '21'"
    assert run_judged("print(int(input()) + 1)", asks).ended == "ok"
    assert run_judged("print(int(input()) + 2)", asks).ended == "failed"
    assert run_judged("", asks).ended == "failed"
    assert run_judged("import time\ntime.sleep(9)", asks, seconds=0.3).ended == "timeout"
    assert "because" in run_judged("raise ValueError('because')", asks).stderr


@needs_sandbox
def test_a_sandbox_that_does_not_start_is_an_error_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_START", "raise SystemExit('out of order')")
    with pytest.raises(RuntimeError, match=r"^the sandbox did not start within 60 s: out of order$"):
        run_program("print(1)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, r"^seconds is 0; give a positive number$"),
        ({"seconds": float("nan")}, r"^seconds is nan; "),
        ({"seconds": float("inf")}, r"^seconds is inf; "),
        ({"memory_mib": 8}, r"^memory_mib is 8; Python needs at least 64$"),
    ],
)
def test_limits_out_of_range_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_program("", **options)  # type: ignore[arg-type]


@pytest.fixture
def forgetful() -> Iterator[None]:
    sandbox._recipe.cache_clear()
    yield
    sandbox._recipe.cache_clear()


@pytest.mark.parametrize("missing", ["bwrap", "setpriv"])
def test_what_is_missing_is_named_with_the_mend(missing: str, monkeypatch: pytest.MonkeyPatch, forgetful: None) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None if name == missing else f"/usr/bin/{name}")
    message = f"{missing} is not installed; run `apt-get install bubblewrap util-linux`, or pass unsafe=True"
    with pytest.raises(InputError, match=message) as raised:
        require_sandbox()
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=message):
        run_program("print(1)")


def test_without_user_namespaces_the_reason_and_the_mend_are_named(
    monkeypatch: pytest.MonkeyPatch, forgetful: None
) -> None:
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sandbox, "_recipes", lambda root: [None])
    monkeypatch.setattr(sandbox, "_problem_of", lambda recipe: "bwrap: No permissions to create new namespace")
    with pytest.raises(InputError, match=r"does not start here \(bwrap: No perm.*allow user namespaces.*unsafe=True"):
        require_sandbox()


def test_elsewhere_than_on_linux_there_is_no_sandbox(monkeypatch: pytest.MonkeyPatch, forgetful: None) -> None:
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(InputError, match="needs Linux, not darwin; use it, or pass unsafe=True"):
        require_sandbox()


def test_who_opts_out_still_has_limits(monkeypatch: pytest.MonkeyPatch, forgetful: None) -> None:
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    monkeypatch.setenv("A_TOKEN", SECRET)
    assert run_program("print(input())", stdin="a\n", unsafe=True) == Outcome("ok", 0, "a\n", "")
    assert run_program("while True: pass", seconds=0.3, unsafe=True).ended == "timeout"
    assert "MemoryError" in run_program("x = bytearray(2**31)", unsafe=True).stderr
    assert len(run_program("while True: print('x' * 1000)", unsafe=True).stdout) <= OUTPUT_BYTES
    assert run_program("import os\nos.abort()", unsafe=True).status == 134
    assert SECRET not in run_program("import os\nprint(os.environ)", unsafe=True).stdout
    assert passes("def f(x): return x + 7917", prelude="", tests=TESTS, entry_point="f", seconds=20, unsafe=True)
    assert not passes("import os\nos._exit(0)", prelude="", tests=TESTS, entry_point="f", seconds=20, unsafe=True)


@needs_sandbox
def test_other_architectures_have_no_filter_and_still_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.platform, "machine", lambda: "riscv64")
    sandbox._system_call_filter.cache_clear()
    try:
        assert sandbox._system_call_filter() is None
        assert run_program("print(1)").stdout == "1\n"
    finally:
        monkeypatch.undo()
        sandbox._system_call_filter.cache_clear()


def test_the_filter_is_a_program_that_stays_in_itself() -> None:
    steps = [sandbox.struct.unpack("=HBBI", step) for step in _chunks(sandbox._system_call_filter() or b"", 8)]
    assert all(place + 1 + max(yes, no) < len(steps) for place, (code, yes, no, _) in enumerate(steps) if code & 7 == 5)
    assert sys.byteorder == "little" and (not steps or steps[-1][3] == 0x00050001)


def _chunks(data: bytes, size: int) -> list[bytes]:
    return [data[place : place + size] for place in range(0, len(data), size)]
