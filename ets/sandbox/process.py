"""Run generated Python programs in a sandbox.

A program runs in new namespaces (bubblewrap), as an unprivileged user, under resource limits and a filter of system
calls. The sandbox guarantees:

- Time: the program ends within the time limit. The program is a single process with a single thread, so fork bombs
  and daemons are impossible, and parallel programs cannot starve each other of processes.
- Files: the program sees the standard library and shared libraries, read-only, and can create no file. The program
  sees no home, no repository, no `/etc`, `/proc`, `/tmp` or `/dev/shm`, no installed packages (which may hold the
  hidden tests), no environment variables, no other programs or processes, and no network.
- Memory: the program holds at most the memory limit, a few pipes, and bounded output.

A program controls its output and exit status: `Outcome.ended == "ok"` proves nothing. `run_judged` runs tests in a
second sandbox. The tests request values from the program over a pipe, and the exit status of the tests decides. The
program never sees the tests or the expected values. An early exit, patched builtins or an `__eq__` that always returns
True do not reach the interpreter of the tests.

Not defended: faults in the kernel, timing channels, a program that recognises inputs and computes wrong answers on
purpose, and the load of a busy core until the time limit. The filter of system calls exists on x86-64 and 64-bit Arm;
other machines allow shared memory outside the limit. With `unsafe=True` there is no sandbox: only time, memory and
output are limited, and the program has all rights of the user.
"""

from __future__ import annotations

import math
import os
import platform
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from glob import glob
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, TypeVar

from ets.types import InputError

OUTPUT_BYTES = 2**20
"""Limit of a program's standard output and of the standard error. Writing more raises an error in the program."""
STDERR_CHARACTERS = 2000
"""Length of the part of the standard error that `Outcome` keeps, from the end."""
START_SECONDS = 60.0
"""Time limit for the start of a sandbox. The time of the program begins afterwards."""
NOBODY = 65534
INSTALL = "run `apt-get install bubblewrap util-linux`"
OPT_OUT = "or pass unsafe=True to run generated code without protection"

# Trusted first part of the child: sets the limits, writes "+" to a pipe, and runs the program.
_START = """\
import os as _os, resource as _resource, sys as _sys
_source, _began, _memory, _seconds, _output = map(int, _sys.argv[1:])
with open(_source, encoding="utf-8") as _file:
    _text = _file.read()
_limits = {"CORE": 0, "CPU": _seconds, "FSIZE": _output, "NOFILE": 64}
if _sys.platform == "linux":
    _limits.update(AS=_memory, NPROC=1)
for _name, _value in _limits.items():
    _kind = getattr(_resource, "RLIMIT_" + _name)
    _hard = _resource.getrlimit(_kind)[1]
    _value = _value if _hard == _resource.RLIM_INFINITY else min(_value, _hard)
    _resource.setrlimit(_kind, (_value, _value))
_os.write(_began, b"+")
_os.close(_began)
_sys.argv[:], _sys.path[:1] = ["program.py"], []
_sys.modules["__main__"] = _module = type(_sys)("__main__")
exec(compile(_text, "program.py", "exec"), _module.__dict__)
"""


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Parameters
    ----------
    ended : {"ok", "failed", "timeout"}
        "ok" is exit status 0, which a program can fake.
    status : int or None
        The exit status; 128 + n after signal n; None after a time-out.
    stdout : str
        At most `OUTPUT_BYTES`.
    stderr : str
        The last `STDERR_CHARACTERS`.
    """

    ended: Literal["ok", "failed", "timeout"]
    status: int | None
    stdout: str
    stderr: str


@dataclass(frozen=True)
class _Limits:
    seconds: float
    memory_mib: int

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise InputError(f"seconds is {self.seconds}; give a positive number")
        if self.memory_mib < 64:
            raise InputError(f"memory_mib is {self.memory_mib}; Python needs at least 64")


def run_program(
    source: str, *, stdin: str = "", seconds: float = 5.0, memory_mib: int = 512, unsafe: bool = False
) -> Outcome:
    """Run a program with the standard library in a sandbox.

    Parameters
    ----------
    source : str
        Python source code.
    stdin : str
        The standard input of the program.
    seconds : float
        Wall-clock seconds after the start of the sandbox.
    memory_mib : int
        Address space, in MiB.
    unsafe : bool
        Run the program with this interpreter and without a sandbox.

    Raises
    ------
    InputError
        If there is no sandbox on this machine and `unsafe` is not set.
    """
    limits = _Limits(seconds, memory_mib)
    with _holding(stdin) as given, _holding("") as printed, _Child(source, given, printed, limits, unsafe) as child:
        child.await_start()
        status = child.wait(time.monotonic() + seconds)
        return _outcome(status, _read(printed), child.errors())


def run_judged(
    source: str, judge: str, *, seconds: float = 5.0, memory_mib: int = 512, unsafe: bool = False
) -> Outcome:
    """Run a program and a trusted judge in two sandboxes, and return the outcome of the judge.

    The output of each process is the input of the other process. No other connection exists: the program can neither
    read the judge nor exit in place of the judge. The options are the options of `run_program`.

    Returns
    -------
    Outcome
        "ok" if the judge exited with 0. `stderr` is the program's, then the judge's.
    """
    limits = _Limits(seconds, memory_mib)
    with ExitStack() as stack:
        questions, ask = (stack.enter_context(open(end, mode)) for end, mode in zip(os.pipe(), "rw", strict=True))
        answers, reply = (stack.enter_context(open(end, mode)) for end, mode in zip(os.pipe(), "rw", strict=True))
        child = stack.enter_context(_Child(source, questions, reply, limits, unsafe))
        examiner = stack.enter_context(_Child(judge, answers, ask, limits, unsafe))
        for end in (questions, ask, answers, reply):
            end.close()  # each child then sees the end of the input when the other child ends
        child.await_start()
        examiner.await_start()
        status = examiner.wait(time.monotonic() + seconds)
        return _outcome(status, "", child.errors() + examiner.errors())


def require_sandbox() -> None:
    """Raise `InputError`, with the remedy, if the sandbox does not work on this machine."""
    _recipe()


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_parallel(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """The function of each item, in order, with a thread per core: for functions that wait for children."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2) as pool:
        return list(pool.map(function, items))


class _Child:
    """A running program. Leaving the block ends the process group and closes the files."""

    def __init__(self, source: str, stdin: IO[Any], stdout: IO[Any], limits: _Limits, unsafe: bool) -> None:
        recipe = None if unsafe else _recipe()
        self._errors = _holding("")
        self._began, began = os.pipe()
        with _holding(source) as text, _holding(_system_call_filter() or b"") as calls:
            command = _UNSAFE if recipe is None else recipe.command(calls.fileno())
            numbers = (text.fileno(), began, limits.memory_mib * 2**20, math.ceil(limits.seconds) + 1, OUTPUT_BYTES)
            try:
                self._process = _spawn(
                    [*command, "-s", "-S", "-B", "-c", _START, *map(str, numbers)],
                    pass_fds=(text.fileno(), began, *([] if recipe is None else [calls.fileno()])),
                    files=(stdin, stdout, self._errors),
                )
            except BaseException:
                self._close()
                raise
            finally:
                os.close(began)

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._close()

    def _close(self) -> None:
        os.close(self._began)
        self._errors.close()

    def await_start(self) -> None:
        """Raise `RuntimeError` if the trusted part does not finish: a fault of the machine, not of the program."""
        poll = select.poll()  # `select.select` refuses file numbers above 1023
        poll.register(self._began, select.POLLIN)
        if not poll.poll(START_SECONDS * 1000) or os.read(self._began, 1) != b"+":
            lines = self.errors().strip().splitlines() or ["no error message"]
            raise RuntimeError(f"the sandbox did not start within {START_SECONDS:g} s: {lines[-1]}")

    def wait(self, deadline: float) -> int | None:
        """The exit status, or None if the program still runs at the deadline."""
        try:
            return self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None

    def errors(self) -> str:
        return _read(self._errors)[-STDERR_CHARACTERS:]


def _spawn(command: Sequence[str], pass_fds: Sequence[int], files: Sequence[IO[Any]]) -> subprocess.Popen[bytes]:
    """Start a process without the parent's environment. A fixed hash seed fixes the order of sets."""
    stdin, stdout, stderr = files
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        env={"PYTHONHASHSEED": "0"},
        cwd="/",
        start_new_session=True,
    )


def _outcome(status: int | None, stdout: str, stderr: str) -> Outcome:
    if status is None:
        return Outcome("timeout", None, stdout, stderr)
    return Outcome("failed" if status else "ok", status if status >= 0 else 128 - status, stdout, stderr)


def _holding(content: str | bytes) -> IO[bytes]:
    """A temporary file with a content, at position 0."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(content.encode("utf-8", "replace") if isinstance(content, str) else content)
    file.seek(0)
    return file


def _read(file: IO[bytes]) -> str:
    """The content from position 0. (The program shares and may move the current position.)"""
    return os.pread(file.fileno(), OUTPUT_BYTES, 0).decode("utf-8", "replace")


_UNSAFE = (sys.executable,)


@dataclass(frozen=True)
class _Recipe:
    """A command line that starts Python in a sandbox: the words before `bwrap`, and after the filter option."""

    before: tuple[str, ...]
    after: tuple[str, ...]

    def command(self, calls: int) -> list[str]:
        calls_filter = ["--seccomp", str(calls)] if _system_call_filter() else []
        return [*self.before, _found("bwrap"), *calls_filter, *self.after]


@cache
def _recipe() -> _Recipe:
    """The first recipe that works on this machine. Failures are not cached, so a later installation counts."""
    if sys.platform != "linux":
        raise InputError(f"generated code runs in a sandbox, which needs Linux, not {sys.platform}; use it, {OPT_OUT}")
    root = os.geteuid() == 0
    needed = ["bwrap", "setpriv"] if root else ["bwrap"]
    if missing := [name for name in needed if not shutil.which(name)]:
        raise InputError(f"generated code runs in a sandbox, and {missing[0]} is not installed; {INSTALL}, {OPT_OUT}")
    problems = []
    for recipe in _recipes(root):
        if (problem := _problem_of(recipe)) is None:
            return recipe
        problems.append(problem)
    raise InputError(
        f"generated code runs in a sandbox, which does not start here ({problems[0]}); allow user namespaces "
        f"(sysctl user.max_user_namespaces, in a container --security-opt seccomp=unconfined), {OPT_OUT}"
    )


def _problem_of(recipe: _Recipe) -> str | None:
    """The error of a trial run of the recipe, or None."""
    with _holding(_system_call_filter() or b"") as calls:
        trial = subprocess.run(
            [*recipe.command(calls.fileno()), "-s", "-S", "-B", "-c", "import json, resource, types"],
            pass_fds=(calls.fileno(),),
            capture_output=True,
            timeout=START_SECONDS,
            env={},
            cwd="/",
        )
    lines = trial.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit status {trial.returncode}"]
    return lines[-1] if trial.returncode else None


def _recipes(root: bool) -> list[_Recipe]:
    """Unprivileged user namespaces. Root, which limits do not bind, becomes nobody first.

    The second recipe of root, for machines without user namespaces: other namespaces as root, then nobody inside.
    """
    python = _python()
    drop = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    # Python as process 1 needs no second bwrap, whose zombie the machine's process 1 would inherit.
    options = ("--unshare-user", *_no_more_user_namespaces(), "--cap-drop", "ALL", "--as-pid-1")
    user = _Recipe((_found("setpriv"), *drop) if root else (), (*_view(python), *options, str(python)))
    if not root:
        return [user]
    setpriv = Path(_found("setpriv")).resolve()
    kept = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
    inside = (
        *_view(python, setpriv),
        *("--cap-drop", "ALL", *(word for name in kept for word in ("--cap-add", name))),
        *(str(setpriv), *drop, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", str(python)),
    )
    return [user, _Recipe((), inside)]


def _found(name: str) -> str:
    """The path of a program by the PATH of this process: children have no PATH."""
    return shutil.which(name) or name


def _python() -> Path:
    """The system's interpreter, which the user nobody may read, or else this interpreter."""
    known = ("/usr/bin/python3", "/usr/local/bin/python3", f"{sys.base_prefix}/bin/python3")
    return next(path.resolve() for path in map(Path, known) if path.exists())


def _view(*programs: Path) -> tuple[str, ...]:
    """Options for the namespaces and for a read-only file system of libraries and programs."""
    libraries = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", str(programs[0].parent.parent / "lib")]
    paths = [Path(name) for name in dict.fromkeys(libraries) if Path(name).is_dir()]
    options: list[str] = []
    shown = (*paths, *programs, Path("/dev/null"))
    for parent in sorted({parent for path in shown for parent in path.parents} - {Path("/")}):
        options += ["--dir", str(parent)]  # bubblewrap's default makes parents readable for root alone
    for path in paths:
        link = path.is_symlink()
        options += ["--symlink", os.readlink(path), str(path)] if link else ["--ro-bind", str(path), str(path)]
        for packages in glob(f"{path}/python3*/*-packages"):
            options += [] if link else ["--tmpfs", packages, "--remount-ro", packages]
    for program in programs:
        options += ["--ro-bind", str(program), str(program)]
    options += ["--dev-bind", "/dev/null", "/dev/null", "--remount-ro", "/", "--chdir", "/"]
    options += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    return (*options, "--die-with-parent", "--new-session", "--clearenv", "--setenv", "PYTHONHASHSEED", "0")


@cache
def _no_more_user_namespaces() -> tuple[str, ...]:
    """The option of bubblewrap 0.8 that forbids user namespaces inside, which hides much of the kernel."""
    options = subprocess.run([_found("bwrap"), "--help"], capture_output=True, text=True).stdout
    return ("--disable-userns",) if "--disable-userns" in options else ()


_Numbers: TypeAlias = tuple[int, ...]

# Denied system calls: memory outside the address space (memfd_create, memfd_secret, shmget, shmat, msgget,
# semget, mq_open), other processes (ptrace, process_vm_*, kcmp), keys (add_key, request_key, keyctl), sockets, and
# calls with a history of kernel faults (mount and relatives, unshare, setns, chroot, pivot_root, bpf,
# perf_event_open, userfaultfd, io_uring_setup).
_RECENT: _Numbers = (425, 428, 429, 430, 432, 442, 447)  # io_uring_setup, open_tree … memfd_secret: the same everywhere
_X86_64: _Numbers = (
    *(319, 29, 30, 68, 64, 240, 101, 310, 311, 312, 248, 249, 250, 41),
    *(165, 166, 272, 308, 161, 155, 321, 298, 323),
)
_AARCH64: _Numbers = (
    *(279, 194, 196, 186, 190, 180, 117, 270, 271, 272, 217, 218, 219, 198),
    *(40, 39, 97, 268, 51, 41, 280, 241, 282),
)
_ARCHITECTURES: dict[str, tuple[int, _Numbers]] = {
    "x86_64": (0xC000003E, (*_X86_64, *_RECENT)),
    "aarch64": (0xC00000B7, (*_AARCH64, *_RECENT)),
}


@cache
def _system_call_filter() -> bytes | None:
    """A program for the kernel's filter of system calls: EPERM for denied calls, death for another architecture."""
    if platform.machine() not in _ARCHITECTURES:
        return None
    architecture, denied = _ARCHITECTURES[platform.machine()]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    kill, allow, refuse = 0x80000000, 0x7FFF0000, 0x00050001
    checks = [(at_least, 0x40000000), *((equal, number) for number in denied)]  # first check: the x32 calls of x86-64
    steps = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, 0)]
    steps += [(code, len(checks) - place, 0, number) for place, (code, number) in enumerate(checks)]
    steps += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
