"""The name under which a model takes its cache."""

from typing import Any

import pytest
from torch import nn
from transformers import MambaForCausalLM, Qwen3ForCausalLM

from ets.models.cache_argument import as_argument, cache_argument


class Renamed(nn.Module):
    """As in newer releases of transformers."""

    def forward(self, input_ids: Any, cache: Any = None, **options: Any) -> None: ...


class Older(nn.Module):
    def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...


class Without(nn.Module):
    def forward(self, input_ids: Any, use_cache: bool = False) -> None: ...


@pytest.mark.parametrize(("model", "name"), [(Renamed, "cache"), (Older, "past_key_values"), (Without, None)])
def test_the_cache_is_passed_under_the_name_that_the_model_has(model: type[nn.Module], name: str | None) -> None:
    assert cache_argument(model()) == name
    assert as_argument(7, model()) == {name or "past_key_values": 7}


@pytest.mark.parametrize("model", [Qwen3ForCausalLM, MambaForCausalLM])
def test_the_installed_transformers_has_one_of_the_names(model: type[nn.Module]) -> None:
    assert cache_argument(model.__new__(model)) is not None
