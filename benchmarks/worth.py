"""Total variation to p* of several kernels at equal generated tokens, by exact laws on enumerable trees.

    python benchmarks/worth.py            prints the tables of docs/choosing.md
    python benchmarks/worth.py --quick    one seed, for a test

A text is a path of I guide steps through a tree with b branches at every step, so a text costs I units. The laws are
computed, not simulated: a text of weight w is chosen among N texts in proportion to their weights with the probability
N p w E[1 / (w + S)], S the sum of the other N - 1 weights, and E[1 / (w + S)] = ∫ exp(-t w) E[exp(-t W)]^(N - 1) dt.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ets.refined import Plan
from ets.types import Floats

POINTS = 400
"""Points of the quadrature in t, on a logarithmic scale."""


@dataclass(frozen=True)
class Tree:
    """p_ref of the texts `[b^I]` in the order of their paths, and their weights w = exp(r/λ)."""

    branches: int
    depth: int
    p: Floats
    w: Floats

    @property
    def target(self) -> Floats:
        return self.p * self.w / np.sum(self.p * self.w)

    def given(self, boundary: int) -> Floats:
        """p_ref of a text given its prefix, `[b^boundary, rest]`."""
        rows = self.p.reshape(self.branches**boundary, -1)
        return rows / rows.sum(1, keepdims=True)


def distance(law: Floats, tree: Tree) -> float:
    return 0.5 * float(np.abs(law - tree.target).sum())


def times() -> Floats:
    return np.logspace(-7, 7, POINTS)


def integral(values: Floats) -> Floats:
    """∫ values dt over `times`, along the last axis."""
    t = times()
    return np.trapezoid(values * t, np.log(t), axis=-1) + values[..., 0] * t[0]


def one_step(tree: Tree, samples: int) -> Floats:
    """The law of a choice among N texts in proportion to their weights."""
    w = tree.w / tree.w.max()
    decay = np.exp(-np.outer(w, times()))  # [texts, t]
    others = (tree.p @ decay) ** (samples - 1)
    return samples * tree.p * w * integral(decay * others)


def guided(tree: Tree, candidates: int, rollouts: int) -> Floats:
    """The law of ETS: at every step a choice among M candidates by the mean weight of K completions each."""
    w, t, law = tree.w / tree.w.max(), times(), np.ones(1)
    for step in range(tree.depth):
        prefixes, after = tree.branches**step, tree.branches ** (tree.depth - step - 1)
        p = tree.p.reshape(prefixes, tree.branches, after)
        branch = p.sum(2) / p.sum((1, 2))[:, None]
        rest = p / p.sum(2, keepdims=True)
        weights = w.reshape(prefixes, tree.branches, after)
        chosen = np.empty((prefixes, tree.branches))
        for prefix in range(prefixes):
            count = 1 if after == 1 else rollouts
            decay = np.exp(-weights[prefix][..., None] * t / count)  # of one completion [branch, after, t]
            mean = np.einsum("ba,bat->bt", rest[prefix], decay)
            gain = np.einsum("ba,bat->bt", rest[prefix] * weights[prefix], decay)
            others = (branch[prefix] @ mean**count) ** (candidates - 1)
            chosen[prefix] = candidates * branch[prefix] * integral(gain * mean ** (count - 1) * others)
        law = (law[:, None] * chosen / chosen.sum(1, keepdims=True)).ravel()
    return law


def moved(tree: Tree, law: Floats, boundary: int) -> Floats:
    """A law after a suffix move at a boundary, with one try."""
    q, w = tree.given(boundary), tree.w.reshape(tree.branches**boundary, -1)
    rows = law.reshape(q.shape)
    moves = q[:, None, :] * np.minimum(1.0, w[:, None, :] / w[:, :, None])  # [prefix, x, x'] where accepted
    flow = np.einsum("px,pxy->py", rows, moves)
    return (flow + rows * (1 - moves.sum(2))).ravel()


def refined(tree: Tree, budget: int, start: float = 0.25, last_alone: bool = False) -> Floats:
    """The law of `ets.refined` with one try."""
    plan, lengths = Plan(budget, start, 1), tuple(range(tree.depth + 1))
    samples = min(max(int(start * budget / tree.depth), 1), budget // tree.depth)
    law, spent, ends = one_step(tree, samples) if samples > 1 else tree.p, samples * tree.depth, []
    while (first := plan.first_cut(spent, lengths)) is not None:
        for boundary in range(first, tree.depth):
            law, spent = moved(tree, law, boundary), spent + tree.depth - boundary
        ends.append(law)
    if not ends:
        return law
    return ends[-1] if last_alone else np.mean(ends[len(ends) // 2 :], axis=0)


def iterated(tree: Tree, samples: int, iterations: int) -> Floats:
    """The law of iterated sampling-importance-resampling."""
    w, t = tree.w / tree.w.max(), times()
    decay = np.exp(-np.outer(w, t))
    law, others = one_step(tree, samples), (tree.p @ decay) ** (samples - 2)
    follows = np.stack([integral(row * decay * others) for row in decay])  # E[1 / (w_x + w_y + Σ)], [x, y]
    kernel = (samples - 1) * tree.p * w * follows
    kernel[np.diag_indices(len(w))] += 1 - kernel.sum(1)
    for _ in range(iterations - 1):
        law = law @ kernel
    return law


def tokens_of_guided(depth: int, candidates: int, rollouts: int) -> int:
    return sum(candidates * (1 + rollouts * (depth - step - 1)) for step in range(depth))


def largest_guided(tree: Tree, budget: int, rollouts: int) -> int:
    """M of ETS for a budget; at least 1."""
    return max((m for m in range(1, budget + 1) if tokens_of_guided(tree.depth, m, rollouts) <= budget), default=1)


KERNELS: dict[str, Callable[[Tree, int], Floats]] = {
    "ETS, K = 3": lambda tree, budget: guided(tree, largest_guided(tree, budget, 3), 3),
    "ETS, K = 1": lambda tree, budget: guided(tree, largest_guided(tree, budget, 1), 1),
    "one step": lambda tree, budget: one_step(tree, budget // tree.depth),
    "iterated resampling (4)": lambda tree, budget: iterated(tree, (budget // tree.depth - 1) // 4 + 1, 4),
    "refined": refined,
    "refined, last cycle": lambda tree, budget: refined(tree, budget, last_alone=True),
    "refined, a quarter of the tokens": lambda tree, budget: refined(tree, budget // 4),
}


def trees(shape: str, branches: int, depth: int, seed: int) -> Tree:
    """A random tree and a reward of a shape, at λ = 1 in units of the spread of the reward."""
    rng = np.random.default_rng(seed)
    p = np.ones(1)
    for step in range(depth):
        p = (p[:, None] * rng.dirichlet(np.full(branches, 0.8), branches**step)).ravel()
    earned = np.zeros(branches**depth)
    for step in range(depth):
        earned += np.repeat(rng.normal(size=branches ** (step + 1)), branches ** (depth - step - 1))
    leaf = rng.normal(size=branches**depth)
    hit = rng.random(branches**depth)
    r = {
        "steps": 2.5 * earned / earned.std(),
        "mixed": 1.8 * (earned / earned.std() + leaf),
        "leaf": 2.5 * leaf,
        "sparse": 6.0 * (hit < 0.05),
        "rare": 8.0 * (hit < 0.01),
        "needle": 10.0 * (np.arange(branches**depth) == int(hit[0] * branches**depth)),
    }[shape]
    return Tree(branches, depth, p, np.exp(r))


SHAPES = ("steps", "mixed", "leaf", "sparse", "rare", "needle")


def table(branches: int, depth: int, texts: int, seeds: int) -> Iterator[str]:
    """The lines of a table at the tokens of so many complete texts."""
    yield f"| I = {depth}, {texts} texts | " + " | ".join(SHAPES) + " |"
    yield "| --- |" + " ---: |" * len(SHAPES)
    for name, law in KERNELS.items():
        cells = []
        for shape in SHAPES:
            found = [trees(shape, branches, depth, seed) for seed in range(seeds)]
            cells.append(np.mean([distance(law(tree, texts * depth), tree) for tree in found]))
        yield f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    for branches, depth in ((5, 4), (2, 8)):
        for texts in (16,) if quick else (16, 64, 92):
            print(*table(branches, depth, texts, 1 if quick else 5), sep="\n")
            print()


if __name__ == "__main__":
    main()
