"""Total variation to p* of several kernels at equal generated tokens, by exact laws on enumerable trees.

    python benchmarks/worth.py            prints the tables of docs/worth.md
    python benchmarks/worth.py --quick    one seed, for a test

A text is a path of I guide steps through a tree with b branches at every step, so a text costs I units. The laws are
computed, not simulated: a text of weight w is chosen among N texts in proportion to their weights with the probability
N p w E[1 / (w + S)], S the sum of the other N - 1 weights, and E[1 / (w + S)] = ∫ exp(-t w) E[exp(-t W)]^(N - 1) dt.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ets.suffix_moves import START, START_OF_PREFIXES, Plan
from ets.types import Floats
from ets.walk import Lengths

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

    @property
    def lengths(self) -> Lengths:
        """A guide step is a unit, and all texts have one length."""
        return Lengths(tuple(range(self.depth)), self.depth, 1)

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


def refined(tree: Tree, budget: int, start: float = START) -> Floats:
    """The law of `ets.refined` with one try."""
    samples = min(max(int(start * budget / tree.depth), 1), budget // tree.depth)
    law = one_step(tree, samples) if samples > 1 else tree.p
    return walked(tree, law, samples * tree.depth, budget)


def walked(tree: Tree, law: Floats, spent: int, budget: int) -> Floats:
    """A law after the moves that the rest of a budget pays for."""
    plan, ends = Plan(budget, 0.0, 1), []
    while (first := plan.first_cut(spent, tree.depth, tree.lengths)) is not None:
        for boundary in range(first, tree.depth):
            law, spent = moved(tree, law, boundary), spent + tree.depth - boundary
        ends.append(law)
    return np.mean(ends[len(ends) // 2 :], axis=0) if ends else law


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
    "refined, a quarter of the tokens": lambda tree, budget: refined(tree, budget // 4),
}


class Drawn:
    """The random numbers of a tree: p_ref and the reward of each step, and two numbers of each text."""

    def __init__(self, branches: int, depth: int, seed: int) -> None:
        rng, texts = np.random.default_rng(seed), branches**depth
        self.branch = [rng.dirichlet(np.full(branches, 0.8), branches**step) for step in range(depth)]
        self.steps = [rng.normal(size=branches ** (step + 1)) for step in range(depth)]
        self.leaf, self.hit = rng.normal(size=texts), rng.random(texts)
        self.earned = sum((np.repeat(each, texts // len(each)) for each in self.steps), np.zeros(texts))


@dataclass(frozen=True)
class Earned:
    """A reward that is earned in steps: p_ref of a branch `[prefixes, b]`, and increments of r/λ `[prefixes · b]`."""

    branch: list[Floats]
    increments: list[Floats]


def earned(shape: str, branches: int, depth: int, seed: int) -> Earned:
    """The increments of the tree of `trees` with the shape `steps` or `mixed`; the part of the leaf comes last."""
    drawn = Drawn(branches, depth, seed)
    scale = (2.5 if shape == "steps" else 1.8) / drawn.earned.std()
    increments = [scale * each for each in drawn.steps]
    if shape == "mixed":
        increments[-1] = increments[-1] + 1.8 * drawn.leaf
    return Earned(drawn.branch, increments)


def filtered(tree: Earned, particles: int, runs: int, seed: int, threshold: float = 0.5) -> Floats:
    """The law of `ets.baselines.particle_filter`, as the mean of the particles' shares over simulated runs."""
    rng = np.random.default_rng(seed)
    node, log_weights = np.zeros((runs, particles), int), np.zeros((runs, particles))
    for step, (branch, increments) in enumerate(zip(tree.branch, tree.increments, strict=True)):
        if step:
            shares = shares_of(log_weights)
            poor = 1 / (shares**2).sum(1) < threshold * particles
            bounds = np.cumsum(shares, 1)
            bounds[:, -1] = 1.0
            numbers = (rng.random((runs, 1)) + np.arange(particles)) / particles
            parents = np.stack([np.searchsorted(*row) for row in zip(bounds, numbers, strict=True)])
            node = np.where(poor[:, None], np.take_along_axis(node, parents, 1), node)
            log_weights = np.where(poor[:, None], 0.0, log_weights)
        bounds, number = np.cumsum(branch, 1)[node], rng.random((runs, particles, 1))
        width = branch.shape[1]
        node = node * width + np.minimum((number > bounds).sum(2), width - 1)
        log_weights = log_weights + increments[node]
    return np.bincount(node.ravel(), shares_of(log_weights).ravel(), increments.size) / runs


def shares_of(log_weights: Floats) -> Floats:
    weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def refined_of_prefixes(tree: Tree, particles: Earned, budget: int, runs: int, seed: int) -> Floats:
    """The law of `ets.refined` for a reward of prefixes."""
    count = Plan(budget, START_OF_PREFIXES, 1).particles(tree.lengths)
    return walked(tree, filtered(particles, count, runs, seed), count * tree.depth, budget)


def trees(shape: str, branches: int, depth: int, seed: int) -> Tree:
    """A random tree and a reward of a shape, at λ = 1 in units of the spread of the reward."""
    drawn = Drawn(branches, depth, seed)
    earned, leaf, hit, p = drawn.earned, drawn.leaf, drawn.hit, np.ones(1)
    for each in drawn.branch:
        p = (p[:, None] * each).ravel()
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


def table_of_prefixes(branches: int, depth: int, sizes: Sequence[int], seeds: int, runs: int) -> Iterator[str]:
    """The lines of a table of rewards that are earned in steps, at the tokens of so many complete texts."""
    shapes = ("steps", "mixed")
    yield f"| I = {depth} | " + " | ".join(f"{shape}, {texts}" for shape in shapes for texts in sizes) + " |"
    yield "| --- |" + " ---: |" * (len(shapes) * len(sizes))
    rows: dict[str, list[float]] = {"particle filter": [], "refined": [], "refined, reward of prefixes": []}
    for shape in shapes:
        for texts in sizes:
            found = []
            for seed in range(seeds):
                tree, steps = trees(shape, branches, depth, seed), earned(shape, branches, depth, seed)
                budget = texts * depth
                laws = (
                    filtered(steps, texts, runs // texts, seed),
                    refined(tree, budget),
                    refined_of_prefixes(tree, steps, budget, runs // texts, seed),
                )
                found.append([distance(law, tree) for law in laws])
            for row, mean in zip(rows.values(), np.mean(found, axis=0), strict=True):
                row.append(float(mean))
    for name, cells in rows.items():
        yield f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    seeds = 1 if quick else 5
    for branches, depth in ((5, 4), (2, 8)):
        for texts in (8,) if quick else (8, 16, 32, 64, 92, 128):
            print(*table(branches, depth, texts, seeds), sep="\n", end="\n\n", flush=True)
    for branches, depth in ((5, 4), (2, 8)):
        sizes, runs = ((8,), 40_000) if quick else ((8, 16, 64, 92), 400_000)
        print(*table_of_prefixes(branches, depth, sizes, seeds, runs), sep="\n", end="\n\n", flush=True)


if __name__ == "__main__":
    main()
