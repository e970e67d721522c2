"""IFEval (Zhou et al. 2023, arXiv 2311.07911): 541 prompts with one to three demands that a program checks.

An example row (invented, in the format of google/IFEval)::

    key:                 7
    prompt:              Write about rain in at least 30 words. Do not use any commas.
    instruction_id_list: ["length_constraints:number_words", "punctuation:no_comma"]
    kwargs:              [{"relation": "at least", "num_words": 30}, {}]

lm-eval's functions check the demands. Those for sentences and for words in capitals split texts by NLTK's punkt_tab.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from statistics import fmean
from typing import Any

from ets.rewards.rows import RowReward, demand
from ets.tasks.task import Benchmark, opened_in
from ets.thinking import after_thinking
from ets.types import InputError, Problem, not_installed

PUNKT = (
    "NLTK's punkt_tab is not installed; run `python -m nltk.downloader punkt_tab`, or without a network set NLTK_DATA "
    "to a folder with tokenizers/punkt_tab"
)


class IFEval(Benchmark):
    """Whether a text follows all instructions of the prompt (lm-eval's prompt_level_strict_acc).

    Texts state no answers to vote on. The reward `ifeval` steers the methods instead.
    """

    name = "ifeval"
    lm_eval = "ifeval"
    packages = ("nltk", "langdetect", "immutabledict")
    answers = False
    graded = True
    reward = "ets.tasks.ifeval:ifeval"

    def require(self) -> None:
        checks()

    def extract(self, problem: Problem, text: str) -> None:
        """None: no text has an answer."""

    def grade(self, problem: Problem, text: str) -> bool:
        answer = after_thinking(opened_in(problem, self.thinking) + text, self.thinking)
        return all(followed(problem.doc, answer or ""))


@RowReward
def ifeval(row: Mapping[str, Any], text: str) -> float:
    """The share of the row's instructions that a text follows; an empty text follows none.

    Many instructions demand something of the whole text, so it is no reward of prefixes.
    """
    return fmean(followed(row, text))


def followed(row: Mapping[str, Any], text: str) -> list[bool]:
    """Whether a text follows each instruction of a row, by lm-eval's strict checks.

    Raises
    ------
    InputError
        For a row that lacks a column or names an unknown instruction, or if a package is not installed.
    """
    names = demand(row, "instruction_id_list", list, 'a list such as ["punctuation:no_comma"]')
    values = demand(row, "kwargs", list, "a list with an object for each instruction")
    utils, known = checks()
    if len(names) != len(values):
        raise InputError(f"kwargs has {len(values)} objects for {len(names)} instructions; give one for each")
    for name in names:
        if name not in known:
            raise InputError(f"instruction_id_list has {name!r}; choose from {', '.join(known)}")
    asked = utils.InputExample(row.get("key"), names, str(row.get("prompt", "")), values)
    found: list[bool] = utils.test_instruction_following_strict(asked, text).follow_instruction_list
    return found


@cache
def checks() -> tuple[Any, Mapping[str, Any]]:
    """lm-eval's checks of texts, and the instructions by name. (The import downloads punkt_tab where it is missing.)"""
    for package in ("lm_eval", *IFEval.packages):
        if find_spec(package) is None:
            raise not_installed(package, "benchmarks")
    import langdetect
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        raise InputError(PUNKT) from None
    from lm_eval.tasks.ifeval import instructions_registry, utils

    langdetect.DetectorFactory.seed = 0  # languages are else detected at random
    return utils, instructions_registry.INSTRUCTION_DICT
