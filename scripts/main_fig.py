"""Draw main_fig.png, the method in one picture: `python scripts/main_fig.py`

The texts and rewards of the example are written down here; the energies, the probabilities and the choice are computed
from them, with the functions that the sampler itself uses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from ets.weights import log_mean_exp, normalised, pick

OUT = Path(__file__).parents[1] / "main_fig.png"
WIDTH, HEIGHT = 1600, 700

LAM, UNIFORM = 0.5, 0.3
PROMPT = "Max has 11 coins.\nHe gives 8 to Sam.\nThe rest is doubled.\nHow many now?"
STATE = "11 − 8 = 3 are left."
CANDIDATES = ("He has 2 · 3 = 6.", "Then 3 + 2 = 5.", "Doubling 3 gives")
ROLLOUTS = (
    (("Answer: 6", 1), ("So it is 6.", 1), ("He has 6.", 1)),
    (("Answer: 5", 0), ("So it is 5.", 0), ("He has 5.", 0)),
    (("6. Answer: 6", 1), ("9. Answer: 9", 0), ("6. So it is 6.", 1)),
)
REWARDS = np.array([[float(reward) for _, reward in row] for row in ROLLOUTS])

INK, GREY, LIGHT, BLUE, PALE, GREEN, RED = "#1a202c", "#4a5568", "#f1f5f9", "#2b6cb0", "#a3cdf2", "#2f855a", "#c53030"
COLUMNS = (30, 390, 720, 1075)
"""Where state, candidates, rollouts and energies begin."""
ROWS = (495, 353, 211)
"""The heights at which the candidates stand."""


def box(axes: Any, x: float, y: float, width: float, height: float, face: str, edge: str, line: float) -> None:
    """A rounded box, centred vertically at y."""
    style = "round,pad=0,rounding_size=10"
    axes.add_patch(FancyBboxPatch((x, y - height / 2), width, height, boxstyle=style, fc=face, ec=edge, lw=line))


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], **options: Any) -> None:
    look = {"color": GREY, "lw": 1.5, "arrowstyle": "-|>", "mutation_scale": 16, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, **look | options))


def write(axes: Any, x: float, y: float, text: str, size: float, colour: str = INK, **options: Any) -> None:
    axes.text(x, y, text, **{"size": size, "color": colour, "va": "center"} | options)


def draw_headings(axes: Any) -> None:
    headings = (
        ("1  State", "prompt $y$, text so far $x_t$"),
        ("2  $\\mathbf{M}$ candidates", r"$x_s^m \sim p_{\mathrm{ref}}(\cdot\,|\,x_t)$"),
        ("3  $\\mathbf{K}$ rollouts each", r"$x_0^{mk} \sim p_{\mathrm{ref}}(\cdot\,|\,x_s^m)$, rewarded"),
        ("4  Estimated energies", r"$\log \hat{E}_m = \log\;\mathrm{mean}_k\;\exp(r_{mk}/\lambda)$"),
    )
    for x, (title, formula) in zip(COLUMNS, headings, strict=True):
        write(axes, x, 664, title, 19, weight="bold")
        write(axes, x, 612, formula, 17, GREY, va="baseline")


def draw_state(axes: Any) -> None:
    x, y = COLUMNS[0], ROWS[1]
    box(axes, x, y, 250, 206, "white", GREY, 1.5)
    write(axes, x + 18, y + 30, PROMPT, 16, GREY, linespacing=1.4)
    axes.plot([x + 18, x + 232], [y - 43, y - 43], color="#cbd5e0", lw=1.2)
    write(axes, x + 18, y - 72, STATE, 16)


def draw_candidate(axes: Any, m: int, chosen: bool) -> None:
    x, y = COLUMNS[1], ROWS[m]
    arrow(axes, (COLUMNS[0] + 254, ROWS[1]), (x - 4, y))
    box(axes, x, y, 240, 60, "#e6f0fb" if chosen else LIGHT, BLUE if chosen else GREY, 3.5 if chosen else 1.2)
    write(axes, x + 18, y, CANDIDATES[m], 16)


def draw_rollouts(axes: Any, m: int) -> None:
    x = COLUMNS[2]
    for k, (text, reward) in enumerate(ROLLOUTS[m]):
        y = ROWS[m] + 43 * (1 - k)
        arrow(axes, (COLUMNS[1] + 244, ROWS[m]), (x - 4, y), lw=1.1)
        box(axes, x, y, 262, 36, "white", "#a0aec0", 1.0)
        write(axes, x + 14, y, f"… {text}", 15)
        write(axes, x + 250, y, f"r = {reward}", 15, GREEN if reward else RED, ha="right", weight="bold")


def draw_energy(axes: Any, m: int, log_energy: float, probability: float, chosen: bool) -> None:
    x, y, length = COLUMNS[3], ROWS[m], 380 * probability
    arrow(axes, (COLUMNS[2] + 270, y), (x - 12, y))
    write(axes, x, y + 1, f"{log_energy:.2f}", 17)
    axes.add_patch(Rectangle((x + 75, y - 21), length, 42, color=BLUE if chosen else PALE))
    write(axes, x + 87 + length, y, f"{probability:.0%}", 18, weight="bold")


def draw_choice(axes: Any, choice: int) -> None:
    """From the chosen bar back to the state, below everything."""
    right, low, left = 1560, 112, COLUMNS[0] + 125
    axes.plot([1440, right, right, left], [ROWS[choice], ROWS[choice], low, low], color=BLUE, lw=2.5)
    arrow(axes, (left, low), (left, ROWS[1] - 105), color=BLUE, lw=2.5)
    label = r"5  Draw one in proportion to $\mathbf{\hat{E}}$, go on from it, until the text is complete"
    write(axes, 857, low, label, 18, BLUE, ha="center", weight="bold", backgroundcolor="white")


def draw_law(axes: Any) -> None:
    law = r"$p^*(x\,|\,y)\;\propto\;p_{\mathrm{ref}}(x\,|\,y)\,\cdot\,\exp(\,r(y,x)\,/\,\lambda\,)$"
    axes.add_patch(Rectangle((0, 0), WIDTH, 72, color=LIGHT))
    write(axes, WIDTH / 2, 35, f"What is sampled, as $M$ grows:   {law}", 20, ha="center")


def draw() -> Figure:
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    log_weights = log_mean_exp(REWARDS / LAM, axis=1)
    probabilities = normalised(log_weights)
    choice = pick(probabilities, UNIFORM)
    draw_headings(axes)
    draw_state(axes)
    for m in range(len(ROWS)):
        draw_candidate(axes, m, m == choice)
        draw_rollouts(axes, m)
        draw_energy(axes, m, log_weights[m], probabilities[m], m == choice)
    write(axes, 1560, 612, f"$\\lambda = {LAM}$", 17, GREY, va="baseline", ha="right")
    draw_choice(axes, choice)
    draw_law(axes)
    return figure


if __name__ == "__main__":
    draw().savefig(OUT)
    print(f"wrote {OUT.name}")
