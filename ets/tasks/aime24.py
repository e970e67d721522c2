r"""AIME 2024: thirty competition problems, whose answers are whole numbers from 0 to 999.

An example row (invented, in the format of BytedTsinghua-SIA/AIME-2024, which repeats each problem 32 times)::

    data_source:  math_dapo
    prompt:       [{"role": "user", "content": "Solve the following math problem step by step. The last line of your
                   response should be of the form Answer: $Answer (without quotes) where $Answer is the answer to the
                   problem.\n\nFind the remainder when $2^{10}$ is divided by $1000$.\n\nRemember to put your answer
                   on its own line after \"Answer:\"."}]
    ability:      MATH
    reward_model: {"ground_truth": "24", "style": "rule-lighteval/MATH_v2"}
    extra_info:   {"index": 3, "raw_problem": "Find the remainder …", "split": null}

and as lm-eval passes the row on (the rows of lm-eval's `aime24` have the columns Problem and Answer)::

    problem:      Solve the following math problem …
    answer:       24
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ets.tasks.latex import in_words, right_side, undecorated
from ets.tasks.task import AnswerBenchmark
from ets.types import Problem

_WHOLE = re.compile(r"[(\[]?\s*(\d+)(?:\.0*)?\s*[)\]]?(?:\s*\^\s*\{?\\circ\}?)?(?:\s+[a-zA-Z]{2,}){0,3}")


class Aime24(AnswerBenchmark):
    r"""A whole number from 0 to 999; ``\boxed{033}`` is 33.

    The last whole ``\boxed{}`` decides, even without a number. A text without a box: the last "answer is n".
    """

    name = "aime24"
    lm_eval = "aime24"
    box_decides = True

    def whole(self, stated: str) -> int | None:
        return _in_range(_WHOLE.fullmatch(right_side(in_words(undecorated(stated)))))

    def truth(self, row: Mapping[str, Any]) -> int:
        values = [str(value).strip() for name, value in row.items() if name.lower() == "answer"]
        found = self.whole(values[0]) if values else None  # a row of 2025 has 336^\circ
        if found is None:
            raise self.no_truth(row, "answer from 0 to 999")
        return found


def _in_range(found: re.Match[str] | None) -> int | None:
    if found is None or len(found.group(1).lstrip("0")) > 3:
        return None
    return int(found.group(1))


def process_docs(dataset: Any) -> Any:
    """For lm-eval: the distinct problems of the rows, each once, in the order of their first appearance."""
    first: dict[str, int] = {}
    for number, row in enumerate(dataset):
        first.setdefault(_question(row), number)
    return dataset.select(list(first.values())).map(_plain_row, remove_columns=dataset.column_names)


def _question(row: Mapping[str, Any]) -> str:
    return str([message["content"] for message in row["prompt"] if message["role"] == "user"][-1])


def _plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"problem": _question(row), "answer": str(row["reward_model"]["ground_truth"])}


def process_results(doc: Mapping[str, Any], results: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """For lm-eval: see `share_right`."""
    return share_right(Aime24(), doc, results)


def share_right(task: Aime24, doc: Mapping[str, Any], results: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """The share of right answers among all the responses to a problem, whose mean is avg@k."""
    problem = Problem("", "", doc=doc)
    texts = [text for result in results for text in ([result] if isinstance(result, str) else result)]
    return {"exact_match": fmean(task.grade(problem, text) for text in texts)}
