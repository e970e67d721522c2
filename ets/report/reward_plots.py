"""What a reward study leaves in its folder: a summary, a table, and the distributions of right and wrong answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ets.evaluation.reward_study import RewardStudy, Separation, study_summary, study_table

LABELS = {
    "likelihood-per-token": "log-likelihood per token",
    "negative-entropy": "minus the mean entropy, nats",
    "self-certainty": "mean KL(uniform ‖ p), nats",
    "agreement-share": "share of answers that agree",
}
"""What is on a panel's axis."""
COLOURS = {"right": "#2b6cb0", "wrong": "#c05621"}
BINS = 24


def write_study(study: RewardStudy, title: str, folder: Path) -> str:
    """Write summary.json, table.md and rewards.png, and return the table."""
    table = study_table(study)
    (folder / "summary.json").write_text(json.dumps(study_summary(study), indent=2) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(f"{table}\n", encoding="utf-8")
    plot_rewards(study, title, folder / "rewards.png")
    return table


def plot_rewards(study: RewardStudy, title: str, path: Path) -> None:
    """A PNG with a panel for each reward: its distributions over right and over wrong answers, each of area 1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(study.separations) // 2  # four rewards, or two where certainty is unknown
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
