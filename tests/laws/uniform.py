"""Tiny random networks of DiffusionGemma, and the exact laws of their paths by full forward passes without a cache."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
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
        image_token_id=vocabulary + 1,
    )
    model = DiffusionGemmaForBlockDiffusion(config).double().eval()
    model.set_experts_implementation("eager")  # the grouped product has no float64
    return model


def saved_diffusion_gemma(folder: Path) -> Path:
    """A checkpoint in float32 whose generation configuration holds some of the settings."""
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

    from tests.conftest import tiny_tokenizer

    model = random_diffusion_gemma(8, 4).float()
    published = {"max_denoising_steps": 6, "t_max": 0.9, "sampler_config": EntropyBoundSamplerConfig(0.3)}
    for name, value in published.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    tiny_tokenizer(("<end>", *"123=+a ")).save_pretrained(folder)
    return folder


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

    def opened(self, canvas: Canvas) -> Node:
        return Node((*self.path, canvas), self.step, self.finished, (canvas,))

    def drawn(self, canvas: Canvas) -> Node:
        return Node((*self.path, canvas), self.step + 1, self.finished, (*self.canvases, canvas))


@dataclass
class UniformOracle:
    """The exact laws over paths. Outcomes are (canvases that were drawn, number of the next denoising step)."""

    model: Any
    tokenizer: Any
    schedule: Any
    denoising: Any
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

    def prompt(self, problem: Any) -> Canvas:
        given = problem.prompt
        return given if isinstance(given, tuple) else tuple(self.tokenizer(given)["input_ids"])

    def _until(self, problem: Any, outcome: Any, end: int) -> Any:
        prompt = self.prompt(problem)
        law = {self.nodes.get((prompt, outcome), Node()): 1.0}
        while running := {node: p for node, p in law.items() if node.step < end}:
            law = {node: p for node, p in law.items() if node not in running}
            begun = {node: p * q for before, p in running.items() for node, q in self._begun(before)}
            self.read(prompt, begun)
            for node, p in begun.items():
                for after, q in self._after(prompt, node):
                    law[after] = law.get(after, 0.0) + p * q
        self.nodes |= {(prompt, node.outcome): node for node in law}
        return {node.outcome: p for node, p in law.items()}

    def _begun(self, node: Node) -> Iterator[tuple[Node, float]]:
        """The node with an open canvas: itself, or with each first canvas, equally probable."""
        if node.canvases:
            yield node, 1.0
            return
        each = self._vocabulary**self.schedule.canvas_length
        for canvas in product(range(self._vocabulary), repeat=self.schedule.canvas_length):
            yield node.opened(canvas), 1 / each

    def _after(self, prompt: Canvas, node: Node) -> Iterator[tuple[Node, float]]:
        """The nodes after the next denoising step of an open canvas, with their probabilities."""
        logits, best, stops = self.reading(prompt, node)
        if stops:
            yield self._ended(node, best), 1.0
            return
        for canvas in product(range(self._vocabulary), repeat=self.schedule.canvas_length):
            yield node.drawn(canvas), math.exp(self.step_logp(logits, canvas))

    def _ended(self, node: Node, best: Canvas) -> Node:
        each = self.schedule.denoising_steps
        step = self.schedule.steps if 0 in best else (node.step // each + 1) * each
        return Node(node.path, step, (*node.finished, *best))

    @property
    def _vocabulary(self) -> int:
        return int(self.model.config.text_config.vocab_size)

    def reading(self, prompt: Canvas, node: Node) -> tuple[Any, Canvas, bool]:
        """Tempered logits `[C, V]`, their most probable tokens, and whether the canvas ends with this step."""
        law = self.denoising
        self.read(prompt, [node])
        found = [self.known[prompt, node.finished, node.canvases[: n + 1]] for n in range(len(node.canvases))]
        bests = [tuple(logits.argmax(-1).tolist()) for logits in found]
        back = bests[-1 - law.stability_threshold : -1] if law.stability_threshold else []
        stable = len(back) == law.stability_threshold and all(best == bests[-1] for best in back)
        last = len(node.canvases) == law.max_denoising_steps
        return found[-1], bests[-1], last or (stable and entropies(found[-1]).mean() < law.confidence_threshold)

    def read(self, prompt: Canvas, nodes: Iterable[Node]) -> None:
        """Compute tempered logits `[C, V]` by passes over whole texts, without a cache."""
        import torch

        batches: dict[tuple[Canvas, int], list[tuple[Canvas, ...]]] = {}
        for node in nodes:
            for n in range(1, len(node.canvases) + 1):
                if (prompt, node.finished, node.canvases[:n]) not in self.known:
                    batches.setdefault((node.finished, n), []).append(node.canvases[:n])
        for (finished, n), rows in sorted(batches.items(), key=lambda batch: batch[0][1]):
            distinct = list(dict.fromkeys(rows))
            signals = [self.known[prompt, finished, canvases[:-1]] for canvases in distinct] if n > 1 else None
            with torch.no_grad():
                raw = self.model(
                    input_ids=torch.tensor([(*prompt, *finished)] * len(distinct)),
                    decoder_input_ids=torch.tensor([canvases[-1] for canvases in distinct]),
                    self_conditioning_logits=None if signals is None else torch.stack(signals),
                ).logits
            law = self.denoising
            warmth = law.t_min + (law.t_max - law.t_min) * (1 - (n - 1) / law.max_denoising_steps)
            self.known |= {(prompt, finished, c): one / warmth for c, one in zip(distinct, raw, strict=True)}

    def step_logp(self, logits: Any, canvas: Canvas) -> float:
        """The log-probability of a step to a canvas: accepted positions by their law, others uniform."""
        log_p = logits.double().log_softmax(-1)
        kept = accepted_by_hand(entropies(logits), self.denoising.entropy_bound)
        uniform = -math.log(self._vocabulary)
        return sum(float(log_p[j, v]) if j in kept else uniform for j, v in enumerate(canvas))

    def replay(self, problem: Any, path: Sequence[Canvas]) -> tuple[list[float], Canvas]:
        """The terms of a complete path's log-probability, and the tokens of its canvases."""
        prompt, node, terms = self.prompt(problem), Node(), list[float]()
        for canvas in path:
            if node.canvases:
                logits, best, stops = self.reading(prompt, node)
                if not stops:
                    terms.append(self.step_logp(logits, canvas))
                    node = node.drawn(canvas)
                    continue
                node = self._ended(node, best)
            terms.append(-len(canvas) * math.log(self._vocabulary))
            node = node.opened(canvas)
        logits, best, stops = self.reading(prompt, node)
        assert stops, "the path stops within a canvas"
        return terms, self._ended(node, best).finished


def entropies(logits: Any) -> Any:
    log_p = logits.double().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).numpy()


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
