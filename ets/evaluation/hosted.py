"""Benchmarks of lm-eval: its prompts, few-shot examples and scorers, and our stricter score."""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from ets.chat import Chat, as_messages
from ets.tasks import Benchmark, Task, has_answers, is_graded, task_named
from ets.tasks.code import CodeTask
from ets.tasks.data import task_file
from ets.tasks.evalplus import EvalPlus
from ets.types import InputError, Message, Problem, not_installed

FEWSHOT_SEED = 1234
"""lm-eval's seed for few-shot examples: `ets eval` gives the prompts of lm-eval's command line."""


def require_lm_eval() -> None:
    """Raise `InputError` if lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise not_installed("lm-eval", "benchmarks")


class Hosted:
    """A benchmark with lm-eval's prompts, few-shot examples and scorers; the answers are extracted and graded here.

    Parameters
    ----------
    task : Benchmark
        Our extraction and grading.
    data : Path, optional
        The benchmark's rows, a folder or a file; by default they come from the hub.
    chat : Chat, optional
        Problems then have messages and an empty prompt: a system turn, worked examples, and the question.
    """

    def __init__(self, task: Benchmark, data: Path | None = None, chat: Chat | None = None) -> None:
        require_lm_eval()
        task.require()
        self.task, self.data, self.chat = task, data, chat
        self._host: Any = None
        self._instances: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def answers(self) -> bool:
        return has_answers(self.task)

    @property
    def graded(self) -> bool:
        return is_graded(self.task)

    @property
    def main_thread(self) -> bool:
        return self.task.main_thread

    @property
    def shots(self) -> int:
        """Worked examples in each prompt, once the problems are made."""
        return int(self._host.get_config("num_fewshot"))

    def problems(self, count: int | None = None, shots: int | None = None) -> list[Problem]:
        """The first `count` problems, or all; each prompt opens with `shots` solved examples, or the task's own number.

        Raises
        ------
        InputError
            For data that is neither local nor on the hub, or numbers out of range.
        """
        self._host = _loaded(configuration_of(self.name, self.data, shots))
        size = len(self._host.eval_docs)
        if count is not None and not 0 < count <= size:
            raise InputError(f"{count} problems of {self.name} asked for; choose 1 to {size}")
        with quiet():
            self._host.build_all_requests(limit=count, **_as_turns(self.chat))
        problems = [replace(problem_of(instance), thinking=self.task.thinking) for instance in self._host.instances]
        if self.chat is not None:
            problems = [
                replace(problem, prompt="", messages=turns, stop=(), user_text=_user_text(turns))
                for problem in problems
                for turns in [as_messages(json.loads(str(problem.prompt)))]
            ]
        self._instances = dict(zip((problem.id for problem in problems), self._host.instances, strict=True))
        return problems

    def extract(self, problem: Problem, text: str) -> Hashable | None:
        return self.task.extract(problem, text)

    def grade(self, problem: Problem, text: str) -> bool:
        return self.task.grade(problem, text)

    def scores(self, problem: Problem, text: str) -> dict[str, float]:
        """lm-eval's metrics of a text; with several filters, `exact_match,strict-match` and so on."""
        instance = self._instances[problem.id]
        instance.resps, instance.filtered_resps = [text], {}
        several = len(self._host._filters) > 1
        found: dict[str, float] = {}
        for ensemble in self._host._filters:
            ensemble.apply([instance])
            with quiet():
                metrics = self._host.process_results(instance.doc, [instance.filtered_resps[ensemble.name]])
            suffix = f",{ensemble.name}" if several else ""
            found |= {_name(name, value) + suffix: _mean(value) for name, value in metrics.items()}
        return found


def _mean(value: Any) -> float:
    """A metric of a text; the mean of a metric of the text's parts, such as IFEval's of single instructions."""
    return fmean(value) if isinstance(value, list) else float(value)


def _name(name: str, value: Any) -> str:
    """lm-eval's mean over the parts of all texts is another number than a mean over texts, which has another name."""
    return f"{name}_by_text" if isinstance(value, list) else name


def _user_text(turns: Sequence[Message]) -> str | None:
    """The benchmark's prompt as text, where it is the user's only turn."""
    return str(turns[0]["content"]) if [turn["role"] for turn in turns] == ["user"] else None


def _as_turns(chat: Chat | None) -> dict[str, Any]:
    """The arguments that make lm-eval's task return its turns as JSON in place of a prompt."""
    if chat is None:
        return {}

    def written(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        return json.dumps(messages)

    turns = {"fewshot_as_multiturn": chat.multiturn, "system_instruction": chat.system}
    return {"apply_chat_template": True, "chat_template": written, **turns}


def opened_task(
    name: str,
    data: Path | None = None,
    *,
    unsafe: bool = False,
    stops: str | None = None,
    chat: Chat | None = None,
) -> Task:
    """A task by its name: a task that makes its problems, or a benchmark of lm-eval with local data or the hub's.

    With `unsafe`, code that a model wrote runs without the sandbox. `stops` (`CodeTask.stop_by`) names the end of the
    code: by default the end of the function's body, or in a chat the end of the turn. With `chat`, the problems of a
    benchmark have messages.

    Raises
    ------
    InputError
        For an unknown task; for data, `unsafe`, `stops` or worked examples as turns where the task has none; or if a
        package of the task is not installed.
    """
    task = task_named(name)
    if isinstance(task, CodeTask):
        if chat is not None and stops not in (None, "answer"):
            raise InputError(f"stops is {stops!r}, but a chat's text is an answer; leave stops out, or add chat-stop")
        task.unsafe = unsafe
        task.stop_by(stops or ("completion" if chat is None else "answer"))
    elif unsafe:
        raise InputError(f"the task {name} runs no code that a model wrote; leave unsafe_code out")
    elif stops is not None:
        raise InputError(f"stops is {stops!r}, but the task {name} asks for no code; leave stops out")
    if isinstance(task, Benchmark):
        return Hosted(task, data, chat)
    if chat is not None and chat.multiturn:
        raise InputError(
            f"the task {name} writes its worked examples as text, not as turns; leave fewshot-as-multiturn out"
        )
    if isinstance(task, EvalPlus):
        task.data = data
    elif data is not None:
        raise InputError(f"the task {name} brings its own problems, and takes no data; leave data out")
    return task


def configuration_of(name: str, data: Path | None = None, shots: int | None = None) -> dict[str, Any]:
    """The configuration of lm-eval's task for a benchmark, with the place of its data.

    Raises
    ------
    InputError
        For data that is neither local nor on the hub.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    if shots is not None and shots < 0:
        raise InputError(f"shots is {shots}; it must be 0 or more")
    folder = Path(tempfile.mkdtemp(prefix="ets-task-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    configuration = dict(load_yaml(task_file(name, folder, data, shots=shots), resolve_func=True))
    if data is not None:
        configuration["dataset_kwargs"] = {**configuration["dataset_kwargs"], "cache_dir": str(folder / "cache")}
    return configuration


def _loaded(configuration: Mapping[str, Any]) -> Any:
    """lm-eval's task, with its data loaded."""
    from lm_eval.tasks import TaskManager

    with quiet():
        (task,) = TaskManager(include_defaults=False).load(dict(configuration))["tasks"].values()
    if task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(FEWSHOT_SEED)
    return task


def problem_of(instance: Any) -> Problem:
    """The problem of a request of lm-eval."""
    context, options = instance.args
    until = options.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    return Problem(f"{instance.task_name}-{instance.doc_id}", context, stop, dict(instance.doc))


def conditions(task: Task) -> dict[str, Any]:
    """Further conditions of the results: the ends of code, or the versions of graders."""
    if isinstance(task, CodeTask):
        return {"stops": list(task.stop)}
    return versions(task.task) if isinstance(task, Hosted) else {}


def versions(task: Task) -> dict[str, str]:
    """The versions of lm-eval and of the packages that grade a task's answers."""
    packages = task.packages if isinstance(task, Benchmark) else ()
    return {name: version(name) for name in ("lm_eval", *packages)}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars and the log lines of lm-eval and datasets off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)
