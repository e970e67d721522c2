"""`ets serve`: a model, steered by a reward, behind OpenAI's interfaces."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ets.commands.chat import add_chat_arguments, chat_of
from ets.commands.sample import EMBEDDED
from ets.evaluation.methods import METHODS, MethodSettings
from ets.policies.registry import SETTINGS
from ets.policies.settings import Weighing, Weights
from ets.rewards.registry import NAMES, OF_CERTAINTY
from ets.serving.operation import Limits, Operation
from ets.settings import Spending, add_flags, fields_of, made, setting
from ets.types import InputError, not_installed

if TYPE_CHECKING:
    from ets.serving.offer import Offer

EXAMPLE = """example:
  ets serve --model Qwen/Qwen3-1.7B --reward rewards.py:helpful --candidates 8 --rollouts 1 --lam 0.5 --block-size 64
  curl http://127.0.0.1:8001/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{"model": "Qwen3-1.7B", "messages": [{"role": "user", "content": "What is a Markov chain?"}]}'
"""
METHODS_SERVED = "ets,plain"
"""The methods of a server by default."""
UNSERVED = ("reward", "best_by", "beams", "base_temperature", "base_top_k", "base_top_p", "is_candidates", "highest")
"""Settings of methods that are not served."""


@dataclass(frozen=True)
class Address:
    """Where the server listens, and who may ask."""

    host: str = setting("127.0.0.1", "the address that the server listens at")
    port: int = setting(8001, "its port; 0 for a free one, which is printed", int)
    api_key_file: Path | None = setting(None, "a file with a key per line; requests then need one of them", Path)
    served_name: str | None = setting(None, "the model's name for clients (default: the last part of --model)")

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise InputError(f"port is {self.port}; choose a number from 0 to 65535")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a checkpoint's folder, GGUF file or hub name, or embedded")
    text = "transformers, vllm or masked-diffusion (default: by the model; endpoint, where --endpoint is given)"
    parser.add_argument("--engine", default=None, help=text)
    named = ", ".join(name for name in NAMES)
    text = f"a reward for clients, as file.py:function, module:function, NAME=file.py:function, or {named}; repeatable"
    parser.add_argument("--reward", action="append", default=[], help=text)
    served = ", ".join(name for name, method in METHODS.items() if method.of_one_prompt)
    text = f"methods for clients, the first by default: of {served} (default: {METHODS_SERVED})"
    parser.add_argument("--methods", default=METHODS_SERVED, help=text)
    parser.add_argument("--extract", metavar="REGEX", help="finds answers, for rewards and methods that compare them")
    add_chat_arguments(parser, benchmark=False)
    add_flags(parser, Address, Operation, Limits, title="the server")
    add_flags(parser, MethodSettings, Spending, title="methods", leave_out=UNSERVED)
    add_flags(parser, Weights, *SETTINGS, Weighing, title="the model", leave_out=("certainty",))


def execute(options: argparse.Namespace) -> None:
    """Serve until a signal ends the process.

    Raises
    ------
    InputError
        For bad input, before the weights are loaded; for a port that is taken.
    """
    require_packages()
    from ets.serving.app import Service
    from ets.serving.server import listen

    values = vars(options)
    address, operation = made(Address, values), made(Operation, values)
    keys = _keys(address.api_key_file)
    offer = offer_of(options, address)
    listen(Service(offer, operation, keys), address.host, address.port)


def require_packages() -> None:
    """Raise `InputError` without the packages of a server."""
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            raise not_installed(package, "serve")


def offer_of(options: argparse.Namespace, address: Address) -> Offer:
    """What the options offer to clients."""
    from ets.policies.opening import policies_of
    from ets.serving.offer import Offer

    values = vars(options)
    rewards = rewards_named(options.reward)
    own = fields_of(Operation)  # --seconds is the time limit of a request, not that of a row at an endpoint
    law = {name: values[name] for name in fields_of(*SETTINGS) if name in values and name not in own}
    methods = [name.strip() for name in options.methods.split(",") if name.strip()]
    if set(rewards.values()) & set(OF_CERTAINTY) or "confident-majority" in methods:
        law["certainty"] = True
    engine = options.engine or ("endpoint" if "endpoint" in law else None)
    model = EMBEDDED.get(options.model, options.model)
    opened = policies_of(model, engine, made(Weights, values).dtype, law, made(Weighing, values))
    return Offer(
        address.served_name or Path(options.model).name,
        opened,
        made(MethodSettings, values),
        methods,
        rewards,
        tokens=values.get("tokens"),
        extract=options.extract,
        limits=made(Limits, values),
        chat=chat_of(options),
    )


def rewards_named(given: Sequence[str]) -> dict[str, str]:
    """The rewards by the names that clients use: NAME in NAME=file.py:function, else the function's name."""
    found: dict[str, str] = {}
    for each in given:
        name, _, code = each.partition("=") if "=" in each else (each.rpartition(":")[2], "", each)
        if not name or not code:
            raise InputError(f"the reward {each!r} has no name or no code; give NAME=file.py:function")
        if name in found:
            raise InputError(f"two rewards are named {name!r}; name them NAME=file.py:function")
        found[name] = code
    return found


def _keys(file: Path | None) -> list[str]:
    """The keys of a file, one per line."""
    if file is None:
        return []
    try:
        found = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the keys in {file}: {error}; give a file with a key per line") from None
    if not found:
        raise InputError(f"{file} holds no key; write a key per line, or leave --api-key-file out")
    return found
