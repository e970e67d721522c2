"""Which rewards without training separate right answers from wrong ones: the paper's study behind its reward.

    python benchmarks/reward_study.py --task arithmetic --model embedded --count 20 --samples 8 --max-length 96 \\
        --temperature 1.9 --out results/study

The script draws N answers to each problem and computes the AUC of each reward: the probability that a right answer has
a higher reward than a wrong one, where ties count one half. The AUC over all pairs of answers also credits a reward for
separating easy problems from hard ones, which guides no choice within a problem. The mean of the AUCs within the
problems leaves this part out. The folder keeps each answer, so an interrupted command continues, and a larger
`--samples` draws the missing answers only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ets import baselines, demo
from ets.chat import Chat, ChatTemplate
from ets.evaluation.bootstrap import RESAMPLES
from ets.evaluation.hosted import conditions, opened_task
from ets.evaluation.intervals import Accuracy, accuracy
from ets.evaluation.journal import Journal, Record
from ets.evaluation.run import problem_digest
from ets.exits import exit_status
from ets.policies.checkpoint import Checkpoint
from ets.policies.registry import engine_named, policy_of
from ets.report.tables import aligned
from ets.rewards import entropy, likelihood, self_certainty
from ets.runner import run
from ets.settings import fields_of
from ets.step import require_counts, require_variety
from ets.tasks.task import Slow, Task
from ets.types import Chain, Floats, InputError, Policy, Problem, Reward

OF_A_TEXT: Mapping[str, Reward] = {
    "likelihood-per-token": likelihood(per_token=True),
    "negative-entropy": entropy(),
    "self-certainty": self_certainty(),
}
"""Rewards of a single text, recorded when the text is drawn."""
OF_CERTAINTY = ("negative-entropy", "self-certainty")
"""Rewards that need whole token distributions, which the setting `certainty` records where the engine has it."""
AGREEMENT = "agreement-share"
"""The share of a problem's answers that agree with an answer; computed after all answers are drawn."""
LABELS = {
    "likelihood-per-token": "log-likelihood per token",
    "negative-entropy": "minus the mean entropy, nats",
    "self-certainty": "mean KL(uniform ‖ p), nats",
    AGREEMENT: "share of answers that agree",
}
"""The labels of the plot's axes."""
COLOURS = {"right": "#2b6cb0", "wrong": "#c05621"}
BINS = 24
EMBEDDED: dict[str, Literal["reference", "small", "diffusion"]] = {
    "embedded": "reference",
    "embedded-small": "small",
    "embedded-diffusion": "diffusion",
}
"""The models that are part of the package, by the name after `--model`."""
FLAGS: dict[str, tuple[Any, str]] = {
    "--max-length": (int, "tokens of an answer, or of a masked-diffusion model's canvas"),
    "--temperature": (float, "of the sampled distribution"),
    "--top-k": (int, "sample from the k most probable tokens (default: all)"),
    "--top-p": (float, "sample from the most probable tokens whose mass reaches p (default: all)"),
    "--steps": (int, "masked diffusion: denoising steps (default: one per token)"),
    "--block-length": (int, "masked diffusion: tokens of a block (default: the model's)"),
    "--cfg": (float, "masked diffusion: classifier-free guidance (default: none)"),
    "--remasking": (str, "masked diffusion: the order of positions (default: low_confidence)"),
}
"""Settings of the sampled law, with types and help texts."""
LAW = [flag[2:].replace("-", "_") for flag in FLAGS]


@dataclass(frozen=True)
class Area:
    """An AUC with its 95% interval; NaN where no pair of a right and a wrong answer exists."""

    auc: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Separation:
    """How well a reward separates right answers from wrong ones.

    Parameters
    ----------
    reward : str
    pooled : Area
        Over all pairs of a right answer and a wrong one.
    within : Area
        The mean of the AUCs within the problems that have both.
    right, wrong : array
        The reward's values.
    """

    reward: str
    pooled: Area
    within: Area
    right: Floats
    wrong: Floats


@dataclass(frozen=True, eq=False)
class RewardStudy:
    """The study of N answers to each problem.

    Parameters
    ----------
    problems, samples : int
    mixed : int
        Problems that have both right and wrong answers.
    accuracy : Accuracy
        The share of right answers.
    separations : tuple of Separation
        One for each reward.
    """

    problems: int
    samples: int
    mixed: int
    accuracy: Accuracy
    separations: tuple[Separation, ...]


def reward_study(task: Task, problems: Sequence[Problem], records: Sequence[Record], *, seed: int = 0) -> RewardStudy:
    """The study of journal records.

    Parameters
    ----------
    task : Task
        Extracts the answers for `agreement`.
    problems : sequence of Problem
    records : sequence of Record
        Made by `recorded`, the same number for each problem.
    seed : int
        Of the bootstrap over problems. All rewards share the resamples.
    """
    by_problem: dict[str, list[Record]] = {problem.id: [] for problem in problems}
    for record in records:
        by_problem[record["problem"]].append(record)
    groups = list(by_problem.values())
    right = [np.array([record["correct"] for record in group], bool) for group in groups]
    scores = {
        name: [np.array([r["rewards"][name] for r in group]) for group in groups] for name in groups[0][0]["rewards"]
    }
    scores[AGREEMENT] = [
        agreement(task, problem, [record["text"] for record in by_problem[problem.id]]) for problem in problems
    ]
    counts = _resampled(len(groups), seed)
    samples = len(groups[0])
    return RewardStudy(
        len(groups),
        samples,
        sum(bool(values.any() and not values.all()) for values in right),
        accuracy([fmean(values.tolist()) for values in right], samples),
        tuple(_separation(name, values, right, counts) for name, values in scores.items()),
    )


def agreement(task: Task, problem: Problem, texts: Sequence[str]) -> Floats:
    """The share `[N]` of a problem's texts that agree with each, 0 for a text without an answer."""
    pairs = [(problem, text) for text in texts]
    answers = task.extract_all(pairs) if isinstance(task, Slow) else [task.extract(*pair) for pair in pairs]
    counts = Counter(answers)
    return np.array([0.0 if answer is None else counts[answer] / len(texts) for answer in answers])


def wins(scores: Sequence[Floats], right: Sequence[NDArray[np.bool_]]) -> Floats:
    """Counts `[P, P]` of the pairs of a right answer to p and a wrong one to q in which the right one scores higher.

    Ties count one half. The diagonal holds the pairs within a problem.

    Parameters
    ----------
    scores, right : sequence of arrays
        One array `[N]` per problem.
    """
    of_right = np.concatenate([values[known] for values, known in zip(scores, right, strict=True)])
    owner = np.repeat(np.arange(len(right)), [known.sum() for known in right])
    found = np.zeros((len(right), len(right)))
    for q, (values, known) in enumerate(zip(scores, right, strict=True)):
        wrong = np.sort(values[~known])
        below = (np.searchsorted(wrong, of_right, "left") + np.searchsorted(wrong, of_right, "right")) / 2
        found[:, q] = np.bincount(owner, below, minlength=len(right))
    return found


def _resampled(problems: int, seed: int) -> Floats:
    """Weights of the problems `[1 + RESAMPLES, P]`: ones in the first row, then the counts of each resample."""
    counts = np.random.default_rng(seed % 2**64).multinomial(problems, np.full(problems, 1 / problems), size=RESAMPLES)
    return np.vstack((np.ones(problems), counts))


def _separation(name: str, scores: Sequence[Floats], right: Sequence[NDArray[np.bool_]], counts: Floats) -> Separation:
    found = wins(scores, right)
    good, bad = (np.array([known.sum() for known in kind], float) for kind in (right, [~known for known in right]))
    pooled = _ratio(((counts @ found) * counts).sum(1), (counts @ good) * (counts @ bad))
    mixed = good * bad > 0
    each = found.diagonal()[mixed] / (good * bad)[mixed]
    within = _ratio(counts[:, mixed] @ each, counts[:, mixed].sum(1))
    values, known = np.concatenate(scores), np.concatenate(right)
    return Separation(name, _area(pooled), _area(within), values[known], values[~known])


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _area(aucs: Floats) -> Area:
    """The AUC in the first entry, with a percentile interval over the resamples that have an AUC."""
    known = aucs[1:][np.isfinite(aucs[1:])]
    low, high = np.quantile(known, (0.025, 0.975)) if known.size else (np.nan, np.nan)
    return Area(float(aucs[0]), float(low), float(high))


def study_table(study: RewardStudy) -> str:
    """A Markdown table with a caption."""
    headings = ("reward", "AUC, all answers", "95% interval", "AUC, within a problem", "95% interval")
    rows = [(each.reward, *_cells(each.pooled), *_cells(each.within)) for each in study.separations]
    share = study.accuracy
    return (
        f"{aligned([headings, *rows])}\n\n"
        f"{study.samples} answers to each of {study.problems} problems, {share.mean:.1%} of them right "
        f"({share.low:.1%} to {share.high:.1%}); {study.mixed} problems have right and wrong ones. The AUC is the "
        "probability that a right answer has a higher reward than a wrong one, ties counting one half: 50% is chance."
    )


def _cells(area: Area) -> tuple[str, str]:
    if np.isnan(area.auc):
        return "none", ""
    return f"{area.auc:.1%}", f"{area.low:.1%} to {area.high:.1%}"


def study_summary(study: RewardStudy) -> dict[str, Any]:
    """JSON values; an AUC that does not exist is null."""

    def numbers(area: Area) -> dict[str, float | None]:
        return {name: None if np.isnan(value) else value for name, value in vars(area).items()}

    return {
        **{name: getattr(study, name) for name in ("problems", "samples", "mixed")},
        "accuracy": vars(study.accuracy),
        "rewards": {
            each.reward: {"pooled": numbers(each.pooled), "within": numbers(each.within)} for each in study.separations
        },
    }


def write_study(study: RewardStudy, title: str, folder: Path) -> str:
    """Write summary.json, table.md and rewards.png, and return the table."""
    table = study_table(study)
    (folder / "summary.json").write_text(json.dumps(study_summary(study), indent=2) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(f"{table}\n", encoding="utf-8")
    plot_rewards(study, title, folder / "rewards.png")
    return table


def plot_rewards(study: RewardStudy, title: str, path: Path) -> None:
    """Write a PNG with one panel per reward: the densities of the reward over right and over wrong answers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(study.separations) // 2  # four rewards, or two without the rewards of certainty
    figure = Figure(figsize=(10, 3.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, separation in zip(figure.subplots(rows, 2).flat, study.separations, strict=True):
        _panel(axes, separation)
    counts = f"{study.samples} answers to each of {study.problems} problems, {study.accuracy.mean:.1%} right"
    figure.suptitle(f"{title}\n{counts}", parse_math=False)
    figure.savefig(path, dpi=120)


def _panel(axes: Any, separation: Separation) -> None:
    of = {"right": separation.right, "wrong": separation.wrong}
    edges = np.histogram_bin_edges(np.concatenate([*of.values()]), BINS)
    for name, values in of.items():
        if values.size:
            style = {"alpha": 0.55, "color": COLOURS[name], "label": f"{name} ({values.size:,})"}
            axes.hist(values, bins=edges, density=True, **style)
    pooled, within = separation.pooled, separation.within
    axes.set_title(f"{separation.reward}: AUC {pooled.auc:.3f}, within a problem {within.auc:.3f}", fontsize=11)
    axes.set_xlabel(LABELS[separation.reward])
    axes.set_ylabel("density")
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)


def recorded(task: Task, chain: Chain) -> Record:
    """A journal record of a drawn answer: the text, whether it is right, and the rewards of the text."""
    texts, problem = chain.trace[0].candidates, chain.problem
    rewards = {
        name: reward(problem, texts, chain)[0]
        for name, reward in OF_A_TEXT.items()
        if name not in OF_CERTAINTY or texts[0].certainty is not None
    }
    text = chain.state.text
    return {
        "method": "draw",
        "problem": problem.id,
        "sample": chain.sample,
        "asked": problem_digest(problem),
        "correct": bool(task.grade(problem, text)),
        "rewards": rewards,
        "text": text,
    }


def drawn(
    task: Task, policy: Policy, problems: Sequence[Problem], journal: Journal, samples: int, width: int, seed: int
) -> list[Record]:
    """The records of N answers to each problem; answers that the journal lacks are drawn and appended first."""
    journal.require_asked({problem.id: problem_digest(problem) for problem in problems})
    ids = {problem.id for problem in problems}
    done = {(record["problem"], record["sample"]) for record in journal.of("draw")}
    known = sum(problem in ids and sample < samples for problem, sample in done)
    chains = run(policy, baselines.plain(), problems, width=width * samples, seed=seed, samples=samples, done=done)
    for chain in tqdm(chains, "answers", total=len(problems) * samples, initial=known, unit="answer"):
        journal.append(recorded(task, chain))
    return [r for r in journal.of("draw") if r["sample"] < samples and r["problem"] in ids]


def read_problems(task: Task, options: argparse.Namespace, checkpoint: Checkpoint) -> list[Problem]:
    """The problems, as turns of the checkpoint's chat template with `--chat` or where the task gives messages."""
    problems = list(task.problems(options.count, options.shots))
    if not options.chat and not any(problem.messages for problem in problems):
        return problems
    template = ChatTemplate(checkpoint.tokenizer, Chat(), checkpoint.name, checkpoint.end_ids)
    return [template.problem(problem) for problem in problems]


def _has_certainty(engine: str | None) -> bool:
    return engine is None or "certainty" in fields_of(*engine_named(engine).settings)


def study(options: argparse.Namespace) -> None:
    """Draw the answers, and write the table, the summary and the plot.

    Raises
    ------
    InputError
        For bad input, before the weights are loaded.
    """
    require_counts(samples=options.samples, width=options.width)
    if options.samples < 2:
        raise InputError("samples is 1, and one answer to a problem agrees with itself alone; draw 2 or more")
    task = opened_task(options.task, options.data, chat=Chat() if options.chat else None)
    name = EMBEDDED.get(options.model)
    checkpoint = Checkpoint(demo.model_path(name) if name else options.model)
    law = {name: getattr(options, name) for name in LAW if getattr(options, name) is not None}
    policy = policy_of(
        lambda: checkpoint,
        engine=options.engine,
        block_size=options.max_length,  # one guide step draws a whole answer
        **law,
        **({"certainty": True} if _has_certainty(options.engine) else {}),
        **({"stop_at_end": True} if options.stop_at_end else {}),
        **({"endpoint": options.endpoint} if options.endpoint else {}),
    )
    require_variety(policy, options.samples)
    problems = read_problems(task, options, checkpoint)
    policy.start(problems)  # a prompt that does not fit is refused before the weights are loaded
    configuration = {
        **{name: getattr(options, name) for name in ("task", "model", "engine", "chat", "seed", "stop_at_end", *LAW)},
        **conditions(task),
        "prompt": problems[0].prompt if isinstance(problems[0].prompt, str) else list(problems[0].prompt),
        "model_revision": checkpoint.revision,
    }
    try:
        with Journal(options.out, configuration) as journal:
            records = drawn(task, policy, problems, journal, options.samples, options.width, options.seed)
    finally:
        getattr(policy, "close", lambda: None)()
    found = reward_study(task, problems, records, seed=options.seed)
    print(f"\n{write_study(found, f'{task.name}: {options.model}', options.out)}\n")
    print(f"results: {options.out}/ (configuration.json, journal.jsonl, summary.json, table.md, rewards.png)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; bad input ends in one line on standard error and exit status 2."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--task", required=True, help="a task of ets eval, such as math500; or file.py:name")
    parser.add_argument("--model", required=True, help=f"a checkpoint's folder or hub name; or {', '.join(EMBEDDED)}")
    parser.add_argument("--engine", help="transformers, masked-diffusion, vllm or endpoint (default: by the model)")
    parser.add_argument("--endpoint", help="the address of the server, for the engine endpoint")
    parser.add_argument("--samples", type=int, required=True, help="N, answers to each problem")
    parser.add_argument("--count", type=int, help="problems (default: all)")
    parser.add_argument("--shots", type=int, help="worked examples in a prompt (default: the task's number)")
    parser.add_argument("--data", type=Path, help="the benchmark's rows, a folder or a file (default: from the hub)")
    parser.add_argument("--chat", action="store_true", help="write prompts by the checkpoint's chat template")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=8, help="problems that advance together")
    parser.add_argument("--out", type=Path, required=True, help="the results folder")
    parser.add_argument("--stop-at-end", action="store_true", help="masked diffusion: draw no block after an end token")
    for flag, (kind, text) in FLAGS.items():
        parser.add_argument(flag, type=kind, required=flag in ("--max-length", "--temperature"), help=text)
    options = parser.parse_args(arguments)
    return exit_status(lambda: study(options))


if __name__ == "__main__":
    sys.exit(main())
