"""`ets serve` with many clients, against `ets.runner.run` at the same width: throughput, first texts and memory."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from typing import IO, Any

from demo_rewards import about
from measuring import Conditions, Row, Table

from ets.commands.sample import EMBEDDED
from ets.demo.stories import STORIES
from ets.kernel import energy_guided
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling
from ets.randomness import chain_key
from ets.runner import run
from ets.types import Chain, Cost, Problem

REWARD = f"{Path(__file__).with_name('demo_rewards.py')}:about"
SECONDS = 1800.0
"""Time limit of a request, so that a slow machine loses none."""
ABOUT = """\
A server in its own process, and in this process the clients, one thread of asyncio: each sends a streamed request for
a prompt of its own, and the next one when the answer is complete. Compared with `ets.runner.run` in this process,
with the same prompts, the same guide steps and as many chains at once as there are clients; the two alternate.
`throughput` is ours as a share of the compared one, in generated tokens per second, by repeat. An answer belongs to
its prompt if it repeats the numbers and the thing of no other prompt better; the reward of the guide steps asks for
the same. `equal` counts the answers of the first repeat that are the texts of the same prompts and seeds without a
server. `first text` is the time from a request to its first streamed text, while all clients ask. `RSS` is the
server's resident memory."""


@dataclass(frozen=True)
class Setting:
    """How many ask for how much.

    Parameters
    ----------
    model : str
        An embedded one.
    clients : int
        Requests at once.
    prompts : int
        Requests of a repeat.
    looks : tuple of int
        Requests after which the server's memory is read.
    candidates, rollouts, block, length : int
    lam : float
    """

    model: str
    clients: int
    prompts: int
    looks: tuple[int, int]
    candidates: int = 4
    rollouts: int = 1
    block: int = 16
    length: int = 96
    lam: float = 0.05

    def __str__(self) -> str:
        return (
            f"Model {self.model}, {self.clients} clients, {self.prompts} prompts of the task arithmetic. M "
            f"{self.candidates}, K {self.rollouts}, block {self.block}, length {self.length}, λ {self.lam:g}."
        )


@dataclass(frozen=True)
class Answer:
    """What a client got: a text, its usage, and the seconds to its first piece."""

    prompt: str
    text: str
    usage: dict[str, Any]
    first: float


@dataclass
class Server:
    """A running server, the policy to compare it with, and the prompts that have not been asked."""

    setting: Setting
    address: str
    process: int
    policy: TransformersPolicy
    questions: Iterator[str]

    def served(self) -> list[Answer]:
        """The answers to the next prompts."""
        return asyncio.run(_asked(self, list(islice(self.questions, self.setting.prompts))))

    def direct(self, prompts: Sequence[str], seed: int) -> Cost:
        """The cost of the same chains without a server."""
        setting, before = self.setting, self.policy.ledger
        step = energy_guided(about, candidates=setting.candidates, rollouts=setting.rollouts, lam=setting.lam)
        problems = [Problem(str(n), prompt) for n, prompt in enumerate(prompts)]
        list(run(self.policy, step, problems, width=setting.clients, seed=seed))
        return self.policy.ledger - before

    def expected(self, answers: Sequence[Answer]) -> list[str]:
        """The texts of the same prompts and seeds without a server; equal up to rounding, by another batch."""
        setting = self.setting
        step = energy_guided(about, candidates=setting.candidates, rollouts=setting.rollouts, lam=setting.lam)
        problems = [Problem("0", answer.prompt) for answer in answers]  # the name of a request's first prompt
        starts = zip(problems, self.policy.start(problems), strict=True)
        chains = [Chain(problem, 0, chain_key(n, "0", 0), state) for n, (problem, state) in enumerate(starts)]
        while going := [n for n, chain in enumerate(chains) if not chain.state.done]:
            for n, chain in zip(going, step(self.policy, [chains[n] for n in going]), strict=True):
                chains[n] = chain
        return [chain.state.text for chain in chains]

    @property
    def memory(self) -> float:
        """The server's resident memory in MB."""
        status = Path(f"/proc/{self.process}/status").read_text(encoding="utf-8")
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1000


@contextmanager
def running(setting: Setting, threads: int) -> Iterator[Server]:
    """A server in its own process."""
    given = {name: getattr(setting, name) for name in ("candidates", "rollouts", "lam")}
    given |= {"block_size": setting.block, "max_length": setting.length, "width": setting.clients, "port": 0}
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "ets", "serve", "--model", setting.model, "--reward", REWARD, *flags]
    command += ["--seconds", str(SECONDS), "--reward-seconds", str(SECONDS)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(Path(__file__).parents[1])}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    try:
        sampled = Sampling(), Horizon(setting.block, setting.length)
        policy = TransformersPolicy(Checkpoint(EMBEDDED[setting.model]), *sampled)
        yield Server(setting, _address(process), process.pid, policy, _questions())
    finally:
        process.terminate()
        process.wait()


def _address(process: subprocess.Popen[str]) -> str:
    output: IO[str] = process.stdout  # type: ignore[assignment]
    found = re.search(r"http://\S+", line := output.readline())
    if found is None:
        raise RuntimeError(f"the server does not say its address: {line!r}, status {process.poll()}")
    return found[0]


def _questions() -> Iterator[str]:
    """Distinct prompts without an end."""
    asked = dict.fromkeys(row.question for row in islice(STORIES.training(1), 20_000))
    return (f"Question: {question}\nAnswer:" for question in asked)


async def _asked(server: Server, prompts: Sequence[str]) -> list[Answer]:
    """The answers to prompts, in order, by as many clients as the setting says."""
    from httpx2 import AsyncClient, Limits

    answers, waiting = dict[int, Answer](), iter(enumerate(prompts))
    limits = Limits(max_connections=None)
    async with AsyncClient(timeout=None, limits=limits, trust_env=False) as http:

        async def client() -> None:
            for n, prompt in waiting:
                answers[n] = await _streamed(http, server, prompt, n)

        async with asyncio.TaskGroup() as clients:
            for _ in range(server.setting.clients):
                clients.create_task(client())
    return [answers[n] for n in range(len(prompts))]


async def _streamed(http: Any, server: Server, prompt: str, seed: int) -> Answer:
    """One request; raises for an answer that is cut off or an error."""
    body = {"model": server.setting.model, "prompt": prompt, "seed": seed, "stream": True}
    body |= {"stream_options": {"include_usage": True}}
    texts, usage, begun, first, ended = list[str](), dict[str, Any](), time.perf_counter(), None, False
    async with http.stream("POST", f"{server.address}/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line or line == "data: [DONE]":
                ended |= bool(line)
                continue
            piece = json.loads(line.removeprefix("data: "))
            if first is None:
                first = time.perf_counter() - begun
            texts += [choice["text"] for choice in piece["choices"]]
            usage |= piece.get("usage", {})
    if not ended or first is None:
        raise RuntimeError(f"the answer to {prompt!r} is cut off")
    return Answer(prompt, "".join(texts), usage, first)


def belonging(answers: Sequence[Answer]) -> int:
    """How many answers repeat the numbers and the thing of no other prompt better than those of their own."""
    prompts = [answer.prompt for answer in answers]
    return sum(
        about(answer.prompt, answer.text) >= max(about(prompt, answer.text) for prompt in prompts) for answer in answers
    )


def measure(setting: Setting, conditions: Conditions) -> Table:
    """Throughput against `run`, then memory over many requests."""
    with running(setting, conditions.threads) as server:
        warm = asyncio.run(_asked(server, list(islice(server.questions, 4))))
        server.direct([answer.prompt for answer in warm], 0)
        rows = [_throughput(server, conditions), _memory(server)]
    return Table("serving", "`ets serve` with many clients", ABOUT, str(setting), rows)


def _throughput(server: Server, conditions: Conditions) -> Row:
    answers, costs = list[list[Answer]](), list[Cost]()
    ours, direct = conditions.rounds(
        (
            lambda: answers.append(server.served()),
            lambda: costs.append(server.direct([answer.prompt for answer in answers[-1]], len(costs))),
        )
    )
    served = [sum(answer.usage["ets"]["generated_tokens"] for answer in each) for each in answers]
    speeds = [tokens / seconds for tokens, seconds in zip(served, ours, strict=True)]
    compared = [cost.generated / seconds for cost, seconds in zip(costs, direct, strict=True)]
    shares = [ours / theirs for ours, theirs in zip(speeds, compared, strict=True)]
    everything = [answer for each in answers for answer in each]
    firsts = [answer.first for answer in everything]
    same = sum(answer.text == text for answer, text in zip(answers[0], server.expected(answers[0]), strict=True))
    counts: dict[str, int | float | str] = {
        "compared (tokens/s)": round(median(compared)),
        "ours (tokens/s)": round(median(speeds)),
        "throughput": f"**{median(shares):.2f}** ({min(shares):.2f} to {max(shares):.2f})",
        "answers": f"{len(everything)} of {len(answers) * server.setting.prompts}",
        "belong": f"{sum(map(belonging, answers))} of {len(everything)}",
        "equal": f"{same} of {len(answers[0])}",
        "first text, p50 (s)": round(median(firsts), 2),
        "first text, p95 (s)": round(quantiles(firsts, n=20)[-1], 2),
    }
    return Row(f"{server.setting.clients} clients", ours, direct, counts)


def _memory(server: Server) -> Row:
    """The server's memory after some requests, and after many."""
    begun, few, many = time.perf_counter(), *server.setting.looks
    asyncio.run(_asked(server, list(islice(server.questions, few))))
    early = server.memory
    answers = asyncio.run(_asked(server, list(islice(server.questions, many - few))))
    counts: dict[str, int | float | str] = {
        "answers": f"{few + len(answers)} of {many}",
        "belong": f"{belonging(answers)} of {len(answers)}",
        f"RSS after {few} (MB)": round(early),
        f"RSS after {many} (MB)": round(server.memory),
    }
    return Row(f"{many} requests", [time.perf_counter() - begun], counts=counts)
