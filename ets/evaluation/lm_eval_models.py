"""The paper's models for lm-eval's command line: `--model qwen-ets --model_args model_path=…,m_candidates=15`.

lm-eval makes the prompts and scores the texts; what samples, journals and grades beside is this library's. Importing
this module registers the models.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from ets import __version__, demo
from ets.chat import Chat, ChatTemplate, as_messages, kind_of
from ets.evaluation.evaluate import Evaluation
from ets.evaluation.fast import FAST, FastSampling, opened_sampler
from ets.evaluation.hosted import problem_of, versions
from ets.evaluation.journal import Journal, Record, fingerprint
from ets.evaluation.methods import METHODS, Method, Settings, require_able, require_methods
from ets.evaluation.paper_arguments import (
    BENCHMARKS,
    CHECKPOINT,
    RESOURCES,
    PaperRun,
    read_arguments,
)
from ets.evaluation.proposing import Proposing, opened_pair
from ets.evaluation.ranks import join, require_shareable
from ets.evaluation.tables import ratio_lines, table
from ets.policies.checkpoint import Checkpoint
from ets.policies.making import SETTINGS, policy_of
from ets.tasks import Benchmark, Task, task_named
from ets.tasks.humaneval import HumanEval
from ets.thinking import THINKING, Tags
from ets.types import Chain, InputError, Message, Policy, Problem

EMBEDDED = {
    "qwen": {"embedded": demo.model_path("reference"), "embedded-small": demo.model_path("small")},
    "llada": {"embedded": demo.model_path("diffusion")},
}
TRUNCATION = ("top_k", "top_p")
NOT_RESULTS = ("folder", "width", "memory_gib", *RESOURCES)
"""Arguments that the results do not depend on."""


class PaperLM(LM):
    """A model of lm-eval's that samples by one of our methods.

    Everything that can be checked is checked here; the weights are loaded with the first request.

    Parameters
    ----------
    arguments
        As `ets.evaluation.paper_arguments` reads them for the model `paper_name`.

    Raises
    ------
    InputError
        For arguments that cannot be read or are out of range, or a missing checkpoint.
    """

    paper_name: ClassVar[str]

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.run = read_arguments(self.paper_name, arguments)
        values = self.run.values
        self.settings = _settings(self.run)
        names = [self.run.method]
        require_methods(names, values["samples"], self.settings)
        self.ranks = join()  # lm-eval itself sees one process: each gets all requests, and does its share of them
        require_shareable(values["engine"], self.ranks)
        embedded = EMBEDDED[self.run.family]
        device = self._placed(arguments)
        self.checkpoint = Checkpoint(embedded.get(values["model"], values["model"]), device=device)
        asked = {name: values[name] for name in TRUNCATION if name in values}
        self.run = _truncated(self.run, self.checkpoint)
        values = self.run.values
        settings = {name: values[name] for name in (*SETTINGS, *RESOURCES) if name in values}
        self.policy: Policy = policy_of(lambda: self.checkpoint, engine=values["engine"], **settings)
        require_able(self.policy, names, values["samples"], self.settings)
        own = self.settings.proposing
        if isinstance(own, FastSampling):
            own, self.policy = opened_sampler(own, self.policy)
        elif own is not None:
            small = Checkpoint(embedded.get(own.model, own.model), device=device)
            drawn = _truncated(replace(self.run, values={**values, **asked}), small, "small model")
            self.run = replace(self.run, notes=drawn.notes)
            own, self.policy = opened_pair(replace(own, **asked), self.policy, lambda: small)
        self.settings = replace(self.settings, proposing=own)
        self._chat = Chat(thinking=values["thinking"])
        self._conversations: dict[str, tuple[Message, ...]] = {}  # by the prompt that the template wrote
        for line in self.run.notes:
            self.ranks.say(f"note: {line}", file=sys.stderr)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """One text for each request; a request that comes again gets a sample of its own."""
        texts: dict[tuple[str, int], str] = {}
        for name in dict.fromkeys(str(request.task_name) for request in requests):
            texts |= self._sampled(name, [request for request in requests if request.task_name == name])
        if not self.ranks.first:
            raise SystemExit(0)  # what is left, lm-eval's scores and output, is the first one's
        counts: dict[str, int] = {}
        answers = []
        for request in requests:
            problem = problem_of(request).id
            answers.append(self._without_thinking(texts[problem, counts.get(problem, 0) % (request.repeats or 1)]))
            counts[problem] = counts.get(problem, 0) + 1
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise InputError(f"the model {self.paper_name} generates texts and answers no likelihoods; choose another task")

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise InputError(f"the model {self.paper_name} generates texts and answers no likelihoods; choose another task")

    def _sampled(self, name: str, requests: Sequence[Instance]) -> dict[tuple[str, int], str]:
        """Texts by problem and sample, for the requests of one of lm-eval's tasks."""
        task, values = self._task(name), self.run.values
        problems = list({problem.id: problem for problem in map(self._problem, requests)}.values())
        if self._chat.thinking is not None and not self._conversations:
            self.ranks.say("note: enable_thinking has no effect without --apply_chat_template", file=sys.stderr)
        repeats = requests[0].repeats or 1
        self.policy.start(problems)  # a prompt that does not fit is named before the weights are loaded
        with self._journal(name, problems[0]) as journal:
            evaluation = Evaluation(
                task, self.policy, problems, journal, values["width"], values["seed"], self.settings, repeats=repeats,
                noted=self._noted,
            )  # fmt: skip
            method = self._method(evaluation)
            evaluation.run(method)
            records = evaluation.records(method)
        if self.ranks.first:
            self._tell(name, evaluation, method, records)
        drawn = {(r["problem"], r["sample"]): self._returned(r) for r in records}
        chains = evaluation.chains(method)
        return {(p.id, sample): drawn[p.id, sample % chains] for p in problems for sample in range(repeats)}

    def _method(self, evaluation: Evaluation) -> Method:
        """What samples."""
        method = evaluation.method(self.run.method, 1 if self.run.method == "plain" else self.run.values["samples"])
        if (self.paper_name, method.name) != ("qwen", "plain"):
            return method
        return replace(method, label=METHODS["base"](evaluation.task, self.settings, method.samples).label)

    def _noted(self, chain: Chain) -> Mapping[str, Any]:
        """What a record keeps beside what all records do."""
        return {}

    def _returned(self, record: Record) -> str:
        """The text that lm-eval gets."""
        return str(record["vote"]["text"] if self.run.readout == "vote" else record["text"])

    def _tell(self, name: str, evaluation: Evaluation, method: Method, records: Sequence[Record]) -> None:
        """Say what has been found."""
        rows = evaluation.rows(method, records)
        told = table(rows), *ratio_lines(rows).splitlines()
        scored = ["lm-eval scores the text of the vote"] if self.run.readout == "vote" else []
        print(f"{name}, graded by ets ({evaluation.journal.folder}):", *told, *scored, sep="\n")

    def _task(self, name: str) -> Task:
        """The extraction and the grading that belong to one of lm-eval's tasks."""
        if name not in BENCHMARKS:
            raise InputError(
                f"no answers can be told in the texts of task {name!r}; choose from {', '.join(BENCHMARKS)}"
            )
        named = self.run.values["benchmark"]
        if named is not None and named != BENCHMARKS[name]:
            raise InputError(f"the arguments name the dataset {named}, but the task is {name}; leave dataset out")
        task = task_named(BENCHMARKS[name])
        if isinstance(task, HumanEval):
            task.unsafe = self.run.values["unsafe_code"]
        if isinstance(task, Benchmark | HumanEval):
            task.thinking = self._thinking
        return task

    def _journal(self, name: str, first: Problem) -> Journal:
        configuration = {key: value for key, value in self.run.values.items() if key not in NOT_RESULTS}
        configuration |= {
            **versions(self._task(name)),
            "lm_eval_task": name,
            "method": self.run.method,
            "prompt_kind": kind_of(first),
            "prompt": first.prompt,
            "until": list(first.stop),
            "model_revision": self.checkpoint.revision,
            "placement": self.checkpoint.placement,
            "ets": __version__,
        }
        folder = Path(self.run.values["folder"]) / f"{name}-{fingerprint(configuration)}"
        return Journal(folder, configuration, self.ranks)

    def _placed(self, arguments: Mapping[str, Any]) -> str | None:
        """The device, if it is not for the checkpoint to choose."""
        if self.ranks.size > 1:
            return self.ranks.device
        return "cpu" if str(arguments.get("device")) == "cpu" else None  # lm-eval always says cuda:0 where nobody did

    @property
    def tokenizer_name(self) -> str:
        return self.checkpoint.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template, by the name after `--apply_chat_template`; lm-eval calls this before it makes prompts."""
        if isinstance(chat_template, str):
            self._chat = replace(self._chat, template=chat_template)
            self.__dict__.pop("_template", None)
        return self._template.text if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        messages = as_messages(chat_history)
        text = self._template.render(messages, reply=add_generation_prompt)
        self._conversations[text] = messages
        return text

    @cached_property
    def _template(self) -> ChatTemplate:
        checkpoint = self.checkpoint
        return ChatTemplate(checkpoint.tokenizer, self._chat, checkpoint.name, checkpoint.end_ids)

    def _problem(self, request: Instance) -> Problem:
        """The problem of a request; a chat prompt has its messages, and ends where the assistant's turn does."""
        problem = replace(problem_of(request), thinking=self._thinking)
        messages = self._conversations.get(str(problem.prompt), ())
        if not messages:
            return problem
        return replace(problem, messages=messages, stop=(*problem.stop, *self._template.turn_end))

    @cached_property
    def _thinking(self) -> Tags:
        """The tags around thinking sections, with `think_end_token` as the closing tag, if it is given."""
        end = self.run.values["think_end"]
        if end is None:
            return THINKING
        if end.isdigit():  # as lm-eval has it, the number of a token
            end = str(self.checkpoint.tokenizer.decode([int(end)]))
        return THINKING[0], end

    def _without_thinking(self, text: str) -> str:
        """The text that lm-eval scores: what follows the last `think_end_token`, if one is given."""
        if self.run.values["think_end"] is None:
            return text
        end = self._thinking[1]
        return text.rpartition(end)[2].lstrip() if end in text else text


def _truncated(run: PaperRun, checkpoint: Checkpoint, model: str = "") -> PaperRun:
    """The run with a checkpoint's truncation where `top_k` and `top_p` are "checkpoint", and a note that shows it."""
    asked = [name for name in TRUNCATION if run.values.get(name) == CHECKPOINT]
    found = {name: checkpoint.truncation[name] for name in asked}
    shown = ", ".join(f"{name} {value}" for name, value in found.items() if value is not None)
    owner, law = (f"{model}'s", f"the {model}'s law") if model else ("checkpoint's", "p_ref")
    note = f"{shown}: of the {owner} generation_config, as in the paper; top_k=0,top_p=1 for none"
    lacking = ", ".join(f"{name} {value:g}" for name, value in checkpoint.unapplied.items()) if asked else ""
    without = f"{law} is without the checkpoint's {lacking}, which the paper's generate would apply too"
    notes = [*([note] if shown else []), *([without] if lacking else [])]
    return replace(run, values={**run.values, **found}, notes=(*run.notes, *notes))


def _settings(run: PaperRun) -> Settings:
    values = run.values
    names = ("candidates", "rollouts", "lam", "pool", "reward", "minimum", "beams", "best_by")
    return Settings(**{name: values[name] for name in names}, proposing=_proposing(run))


def _proposing(run: PaperRun) -> Proposing | FastSampling | None:
    if run.method != "ets-is":
        return None
    values = run.values
    if run.family == "llada":
        shared = {name: values[name] for name in ("level", "candidates", "clip")}
        return FastSampling(**shared, **{name: values[f"fast_{name}"] for name in FAST})
    temperature = values["proposal_temperature"]
    return Proposing(
        model=values["proposal"],
        candidates=values["candidates"],
        block_size=values["block_size"],
        temperature=values["temperature"] if temperature is None else temperature,
        clip=values["clip"],
    )


@register_model("qwen")
class Qwen(PaperLM):
    """The paper's Base row; with `use_bon`, `use_beam_search` or `is_rl`, another baseline."""

    paper_name = "qwen"


@register_model("qwen-beam")
class QwenBeam(PaperLM):
    """Beam search with `num_beams` beams."""

    paper_name = "qwen-beam"


@register_model("qwen-ets")
class QwenETS(PaperLM):
    """Energy-guided sampling with an autoregressive model."""

    paper_name = "qwen-ets"


@register_model("llada_dist")
class LLaDADist(PaperLM):
    """A masked-diffusion model: plain sampling, or energy-guided where `use_vanilla` asks for it."""

    paper_name = "llada_dist"
