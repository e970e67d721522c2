"""JSON by a schema: texts that are JSON values of the form that a row's JSON schema describes.

An example row::

    {"prompt": "Give a person as a JSON object with a name and an age.",
     "schema": {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
                "required": ["name", "age"]}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from ets.rewards.rows import RowReward, demand
from ets.types import InputError, one_line

_FENCE = re.compile(r"\A```(?:json)?\n(.*)\n```\Z", re.DOTALL)


@RowReward
def json_schema(row: Mapping[str, Any], text: str) -> float:
    """The share of the met demands: JSON alone (in a fence or not), its type, each property, and the whole schema.

    An unfinished text is no JSON, so it is no reward of prefixes.
    """
    from jsonschema import Draft202012Validator, SchemaError

    schema = demand(row, "schema", dict, "a JSON schema")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise InputError(f"schema is no JSON schema: {one_line(error.message)}; correct it") from error
    properties = schema.get("properties", {})
    try:
        value = json.loads(_unfenced(text))
    except (ValueError, RecursionError):
        return 0.0
    whole = Draft202012Validator({"type": schema["type"]} if "type" in schema else True).is_valid(value)
    met = [
        isinstance(value, dict)
        and (name in value or name not in schema.get("required", []))
        and (name not in value or Draft202012Validator({**_shared(schema), "allOf": [part]}).is_valid(value[name]))
        for name, part in properties.items()
    ]
    return fmean([True, whole, *met, Draft202012Validator(schema).is_valid(value)])


def _shared(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The definitions that a part of the schema may refer to."""
    return {name: schema[name] for name in ("$defs", "definitions") if name in schema}


def _unfenced(text: str) -> str:
    found = _FENCE.match(text.strip())
    return found[1] if found else text.strip()
