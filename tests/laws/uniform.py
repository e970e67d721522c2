"""Tiny random networks of DiffusionGemma, and the exact laws of their paths by full forward passes without a cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeAlias

Canvas: TypeAlias = tuple[int, ...]


def random_diffusion_gemma(
    vocabulary: int = 3, canvas_length: int = 2, *, window: int = 4, spread: float = 0.3, seed: int = 6, **text: Any
) -> Any:
    """A DiffusionGemma network with random weights in float64, as far as its class allows.

    The class computes its logits, its router and the self-conditioning weights in float32.
    """
    import torch
    from transformers import (
        DiffusionGemmaConfig,
        DiffusionGemmaForBlockDiffusion,
        DiffusionGemmaTextConfig,
        Gemma4VisionConfig,
    )

    torch.manual_seed(seed)
    language = DiffusionGemmaTextConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=window,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        global_head_dim=16,
        num_experts=2,
        top_k_experts=1,
        moe_intermediate_size=8,
        max_position_embeddings=2048,
        initializer_range=spread,
        pad_token_id=None,
        eos_token_id=0,
        bos_token_id=None,
        **text,
    )
    vision = Gemma4VisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        patch_size=2,
        position_embedding_size=4,
    )
    config = DiffusionGemmaConfig(
        text_config=language,
        vision_config=vision,
        canvas_length=canvas_length,
        initializer_range=spread,
        image_token_id=vocabulary,
    )
    model = DiffusionGemmaForBlockDiffusion(config).double().eval()
    model.set_experts_implementation("eager")  # the grouped product has no float64
    return model


@dataclass(frozen=True)
class Node:
    """A path between two denoising steps: finished canvases, and the canvases of the open canvas so far."""

    path: tuple[Canvas, ...] = ()
    step: int = 0
    finished: tuple[int, ...] = ()
    canvases: tuple[Canvas, ...] = ()

    @property
    def outcome(self) -> Any:
        return self.path, self.step


@dataclass
class UniformOracle:
    """The exact laws over paths. Outcomes are (canvases that were drawn, number of the next denoising step).

    `dropped` names a part of the law that a mutation leaves out: conditioning, or schedule.
    """

    model: Any
    tokenizer: Any
    schedule: Any
    denoising: Any
    dropped: str = ""
    nodes: dict[Any, Node] = field(default_factory=dict)
    known: dict[Any, Any] = field(default_factory=dict)

    root = ((), 0)

    @property
    def by_path(self) -> UniformOracle:
        return self

    def outcome(self, state: Any) -> Any:
        return tuple(tuple(canvas.tolist()) for canvas in state.path), state.step

    def extend_law(self, problem: Any, outcome: Any) -> Any:
        return self._until(problem, outcome, self.schedule.boundary(outcome[1]))

    def finish_law(self, problem: Any, outcome: Any) -> Any:
        return self._until(problem, outcome, self.schedule.steps)

    def _until(self, problem: Any, outcome: Any, end: int) -> Any:
        prompt = problem.prompt if isinstance(problem.prompt, tuple) else tuple(self.tokenizer(problem.prompt).input_ids)
        law = {self.nodes.get((prompt, outcome), Node()): 1.0}
        while running := [node for node in law if node.step < end]:
            for node in running:
                p = law.pop(node)
                for after, q in self._after(prompt, node):
                    law[after] = law.get(after, 0.0) + p * q
        self.nodes |= {(prompt, node.outcome): node for node in law}
        return {node.outcome: p for node, p in law.items()}

    def _after(self, prompt: Canvas, node: Node) -> Iterator[tuple[Node, float]]:
        """The nodes after the next denoising step, with their probabilities."""
        length, vocabulary = self.schedule.canvas_length, self.model.config.text_config.vocab_size
        if not node.canvases:
            for canvas in product(range(vocabulary), repeat=length):
                begun = Node((*node.path, canvas), node.step, node.finished, (canvas,))
                yield from ((after, p / vocabulary**length) for after, p in self._after(prompt, begun))
            return
        logits, best, stops = self.reading(prompt, node)
        if stops:
            yield self._ended(node, best), 1.0
            return
        for canvas, p in self.step_law(logits).items():
            drawn = Node((*node.path, canvas), node.step + 1, node.finished, (*node.canvases, canvas))
            yield drawn, p

    def _ended(self, node: Node, best: Canvas) -> Node:
        finished, each = (*node.finished, *best), self.schedule.denoising_steps
        step = self.schedule.steps if 0 in best else (node.step // each + 1) * each
        return Node(node.path, step, finished)

    def reading(self, prompt: Canvas, node: Node) -> tuple[Any, Canvas, bool]:
        """Tempered logits `[C, V]`, their most probable tokens, and whether the canvas ends with this step."""
        law, before = self.denoising, (prompt, node.finished)
        found = [self.logits(*before, node.canvases[: n + 1]) for n in range(len(node.canvases))]
        bests = [tuple(logits.argmax(-1).tolist()) for logits in found]
        entropy = entropies(found[-1].double().softmax(-1).numpy()).mean()
        back = bests[-1 - law.stability_threshold : -1] if law.stability_threshold else []
        stable = len(back) == law.stability_threshold and all(best == bests[-1] for best in back)
        last = len(node.canvases) == law.max_denoising_steps
        return found[-1], bests[-1], last or (stable and entropy < law.confidence_threshold)

    def logits(self, prompt: Canvas, finished: Canvas, canvases: tuple[Canvas, ...]) -> Any:
        """Tempered logits `[C, V]` of the last of some canvases, by the recursion over self-conditioning."""
        import torch

        place = prompt, finished, canvases
        if place not in self.known:
            before = self.logits(prompt, finished, canvases[:-1])[None] if len(canvases) > 1 else None
            with torch.no_grad():
                raw = self.model(
                    input_ids=torch.tensor([[*prompt, *finished]]),
                    decoder_input_ids=torch.tensor([canvases[-1]]),
                    self_conditioning_logits=None if self.dropped == "conditioning" else before,
                ).logits[0]
            law = self.denoising
            left = 1 - (len(canvases) - 1) / law.max_denoising_steps if self.dropped != "schedule" else 1
            self.known[place] = raw / (law.t_min + (law.t_max - law.t_min) * left)
        return self.known[place]

    def step_law(self, logits: Any) -> dict[Canvas, float]:
        """The law of the next canvas, by enumeration of the draws of every position."""
        p = logits.double().softmax(-1).numpy()
        kept, law = accepted_by_hand(entropies(p), self.denoising.entropy_bound), {}
        for canvas in product(range(p.shape[1]), repeat=len(p)):
            each = [p[j, v] if j in kept else 1 / p.shape[1] for j, v in enumerate(canvas)]
            law[canvas] = math.prod(map(float, each))
        return law


def entropies(p: Any) -> Any:
    import numpy as np

    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)


def accepted_by_hand(found: Sequence[float], bound: float) -> set[int]:
    """Positions in ascending order of entropy, as long as the sum of those before is at most the bound."""
    kept: set[int] = set()
    total = 0.0
    for position in sorted(range(len(found)), key=lambda j: found[j]):
        if total > bound:
            break
        kept.add(position)
        total += float(found[position])
    return kept
