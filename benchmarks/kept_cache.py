"""ETS on a causal model against a loop over transformers' own cache, and how its cost grows."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from autoregressive import Run, Setting, needed
from floor import Floor, Shape
from measuring import Conditions, PeakMemory, Row, Table, in_new_process
from random_models import as_ets_loads, described, random_checkpoint
from transformers import DynamicCache

from ets.models.cache_argument import as_argument
from ets.policies.checkpoint import Checkpoint

LOOP = """\
Compared with the best that one writes by hand over transformers' `DynamicCache`: the loop reads the prompts once,
copies the cache for M candidates and for M·K rollouts, and goes on with a chosen candidate's. Both draw as many
tokens from the same random weights, and there is no end token."""
GROWTH = """\
The same two, while one size grows. `memory` is the peak during the run, without the weights; `needed` are the keys and
values of the largest guide step, each stored once: prompts, candidates and rollouts. `of needed` is our memory with the
weights over `needed` with the weights. The loop is left out where it would copy more than {limit:.0f} GB."""
LARGEST = 3e9
"""Bytes of the largest cache of the loop and its copy, above which it is left out."""


class Loop:
    """The loop by hand, for prompts of one length."""

    def __init__(self, run: Run) -> None:
        self.run, self.model = run, run.unpacked.model

    @torch.inference_mode()
    def __call__(self) -> None:
        setting, model = self.run.setting, self.model
        before = model.config._attn_implementation
        model.set_attn_implementation("sdpa")  # on a GPU the model is the one that ours runs
        self._run(setting, model)
        model.set_attn_implementation(before)

    def _run(self, setting: Setting, model: Any) -> None:
        cache = DynamicCache(config=model.config)
        logits = self._read(torch.tensor(self.run.prompts, device=model.device), cache)
        all_rows = torch.arange(setting.problems * setting.candidates, device=model.device)
        first = all_rows[:: setting.candidates]
        for _, rest in setting.steps:
            candidates = deepcopy(cache)
            candidates.reorder_cache(all_rows[: setting.problems].repeat_interleave(setting.candidates))
            reached = self._draw(logits.repeat_interleave(setting.candidates, 0), candidates, setting.block, bool(rest))
            if rest:
                rollouts = deepcopy(candidates)
                rollouts.reorder_cache(all_rows.repeat_interleave(setting.rollouts))
                self._draw(reached.repeat_interleave(setting.rollouts, 0), rollouts, rest, False)
            candidates.reorder_cache(first)
            cache, logits = candidates, reached[first]

    def _draw(self, logits: torch.Tensor, cache: DynamicCache, count: int, go_on: bool) -> torch.Tensor:
        """Draw `count` tokens for each row; the last logits, if the rows go on."""
        for at in range(count):
            tokens = torch.multinomial(logits.float().softmax(-1), 1)
            if go_on or at + 1 < count:
                logits = self._read(tokens, cache)
        return logits

    def _read(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        options = {"use_cache": True, "logits_to_keep": 1, **as_argument(cache, self.model)}
        logits: torch.Tensor = self.model(input_ids=ids, **options).logits[:, -1]
        return logits


def against_loop(settings: dict[str, Setting], conditions: Conditions) -> Table:
    """ETS against the loop, a line for each setting and prompt."""
    rows, abouts = [], []
    for label, setting in settings.items():
        model = random_checkpoint(setting.model, conditions.device, conditions.dtype)
        own = as_ets_loads(model)
        abouts.append(f"{described(model.model)} {setting}")
        for prompt in setting.prompts:
            run = _warm(setting, prompt, model, own)
            ours, loop = conditions.rounds((run.ets, Loop(run)))
            rows.append(Row(f"prompt {prompt}, {label}", ours, loop, floor=_floor(setting, prompt, model, conditions)))
    return Table("kept_cache", "Autoregressive: against a kept cache", LOOP, " ".join(abouts), rows)


def _floor(setting: Setting, prompt: int, model: Checkpoint, conditions: Conditions) -> Floor | None:
    """The floor of a decoder with attention in every layer."""
    if set(getattr(model.config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return None
    return Floor.of(conditions.peak, Shape.of(model.model), needed(setting, prompt))


def growth(setting: Setting, sizes: dict[str, tuple[int, ...]], conditions: Conditions) -> Table:
    """Time and memory while the prompt, M, or the number of prompts that advance together grows.

    On a CPU each line is measured in a new process: the holes that earlier lines leave in a heap would count as memory
    of later lines.
    """
    conditions = replace(conditions, repeats=1)  # memory hardly varies, and the shape of a curve is large
    lines = [_grows(setting, name, value) for name, values in sizes.items() for value in values]
    model = random_checkpoint(setting.model, conditions.device, conditions.dtype)
    if conditions.device.type == "cpu":
        rows = [in_new_process(_grown_alone, *line, conditions) for line in lines]
    else:
        rows = [_grown(*line, model, model, conditions) for line in lines]
    about = GROWTH.format(limit=LARGEST / 1e9)
    return Table("growth", "Autoregressive: growth", about, f"{described(model.model)} {setting}", rows)


def _grown_alone(label: str, setting: Setting, conditions: Conditions) -> Row:
    model = random_checkpoint(setting.model, conditions.device, conditions.dtype)
    return _grown(label, setting, model, as_ets_loads(model), conditions)


def _grows(setting: Setting, name: str, value: int) -> tuple[str, Setting]:
    """What a line is called, and its setting."""
    if name == "prompt":
        return f"prompt {value}", replace(setting, prompts=(value,))
    if name == "width":
        return f"{value} prompts together", replace(setting, problems=value)
    return f"M·K {value * setting.rollouts}", replace(setting, candidates=value)


def _grown(label: str, setting: Setting, model: Checkpoint, own: Checkpoint, conditions: Conditions) -> Row:
    prompt, shape = setting.prompts[0], Shape.of(model.model)
    run = _warm(setting, prompt, model, own)
    column = 2 * shape.layers * shape.groups * shape.head * shape.itemsize
    m, mk = setting.candidates, setting.candidates * setting.rollouts
    most = max(prompt + before + m * setting.block + mk * rest for before, rest in setting.steps)
    copied = 2 * mk * (prompt + setting.length) * setting.problems * column
    memory, loop = PeakMemory(run.ets, conditions.device), PeakMemory(Loop(run), conditions.device)
    works = (memory, loop) if copied <= LARGEST else (memory,)
    ours, *compared = conditions.rounds(works)
    stored, weights = setting.problems * most * column, sum(p.nbytes for p in model.model.parameters())
    used = median(memory.bytes)
    counts: dict[str, int | float | str] = {
        "memory (MB)": round(used / 1e6),
        "needed (MB)": round(stored / 1e6),
        "of needed": round((weights + used) / (weights + stored), 2),
        "compared: memory (MB)": round(median(loop.bytes) / 1e6) if loop.bytes else "",
    }
    return Row(label, ours, compared[0] if compared else [], counts, _floor(setting, prompt, model, conditions))


def _warm(setting: Setting, prompt: int, model: Checkpoint, own: Checkpoint) -> Run:
    """The run, after a short one of every way, so that no repeat pays for what is made once."""
    short = Run(replace(setting, problems=1, candidates=2, rollouts=2, block=2, length=4), 8, own, unpacked=model)
    short.ets(), Loop(short)()
    return Run(setting, prompt, own, unpacked=model)
