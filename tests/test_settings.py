"""Settings dataclasses: their flags, keywords, documentation, configuration and input errors."""

from __future__ import annotations

import argparse
import inspect
from dataclasses import dataclass, make_dataclass
from typing import Any

import pytest

import ets
from ets.policies.registry import SETTINGS
from ets.policies.settings import FastSampler, Weighing
from ets.settings import (
    Guide,
    add_flags,
    boolean,
    bounds,
    configuration,
    documented,
    fields_of,
    made,
    number_or,
    require_known,
    setting,
    with_settings,
)
from ets.types import InputError


@dataclass(frozen=True)
class First:
    """Some settings."""

    block_size: int = setting(4, "tokens of a block, 100% of them", int, flags=("block",))
    share: float | None = setting(None, "a share (default: all)", number_or(float, "none", None))
    note: str = ""


@dataclass(frozen=True)
class Second:
    """Shares a setting with the first."""

    block_size: int = setting(8, "tokens of a block", int)
    clip: tuple[float, float] | None = setting(None, "LOW,HIGH", bounds)


def parsed(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser, First, Second)
    return vars(parser.parse_args(list(words)))


def test_flags_that_are_not_given_leave_defaults_to_the_dataclasses() -> None:
    assert parsed() == {}
    given = parsed("--block", "2", "--share", "none", "--clip", "0.5:2")
    assert given == {"block_size": 2, "share": None, "clip": (0.5, 2.0)}
    assert made(First, given) == First(2) and made(Second, given) == Second(2, (0.5, 2.0))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--block-size", "two"), "invalid int value: 'two'"),
        (("--share", "half"), "'half' is no number; give a number, or none"),
        (("--clip", "0.1"), "'0.1' is no pair of bounds; give the lowest and the highest, such as 0.1,10"),
    ],
)
def test_a_text_that_a_flag_cannot_read_is_named(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=message):
        parsed(*words)


def test_help_shows_defaults_once() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, First, title="of the first", leave_out=("note",))
    shown = " ".join(parser.format_help().split())
    assert "tokens of a block, 100% of them (default: 4)" in shown and "a share (default: all)" in shown
    assert shown.count("default") == 2 and "--note" not in shown


def test_configurations_are_json_values_and_settings_without_a_flag_are_parts_of_them() -> None:
    assert configuration(First(note="x"), Second(clip=(1.0, 2.0))) == {
        "block_size": 8, "share": None, "note": "x", "clip": [1.0, 2.0],
    }  # fmt: skip
    assert list(fields_of(First, Second)) == ["block_size", "share", "clip"]


def test_an_unknown_name_suggests_the_nearest() -> None:
    require_known(["block_size", "own"], [First], ["own"])
    with pytest.raises(InputError, match="blok_size is no setting here; did you mean block_size"):
        require_known(["blok_size"], [First])
    with pytest.raises(InputError, match="zzz is no setting here; the settings are block_size, share"):
        require_known(["zzz"], [First])


@pytest.mark.parametrize("text", ["", "0.1", "0.1,1,10", "a,b", "0.1;10"])
def test_bounds_are_two_numbers(text: str) -> None:
    assert bounds("0:2") == (0.0, 2.0) and bounds("1, 1") == (1.0, 1.0)
    with pytest.raises(InputError, match="is no pair of bounds"):
        bounds(text)


def test_booleans_are_words() -> None:
    assert boolean("True") is True and boolean("False") is False
    with pytest.raises(InputError, match="'yes' is neither True nor False"):
        boolean("yes")


def test_a_function_of_settings_shows_them_in_its_signature_and_docstring() -> None:
    @with_settings(First, Second)
    def sampled(prompt: str, *, seed: int = 0, **settings: Any) -> dict[str, Any]:
        """Parameters
        ----------
        {settings}
        """
        return settings

    shown = inspect.signature(sampled).parameters
    assert list(shown) == ["prompt", "seed", "block_size", "share", "clip"] and shown["block_size"].default == 8
    assert documented(First, Second).splitlines()[0] in (sampled.__doc__ or "")
    assert sampled("x", clip=3) == {"clip": 3}


def test_the_signature_of_sample_shows_every_setting_once() -> None:
    shown = inspect.signature(ets.sample).parameters
    for name, each in fields_of(Guide, *SETTINGS, Weighing).items():
        assert shown[name].default == each.default
        assert f"{name} : default {each.default!r}" in (ets.sample.__doc__ or "")
    assert "{settings}" not in (ets.sample.__doc__ or "") and "settings" not in shown


def test_no_two_dataclasses_disagree_on_how_a_shared_setting_is_read() -> None:
    readers: dict[str, set[Any]] = {}
    for owner in (*SETTINGS, Weighing, FastSampler, Guide):
        for name, each in fields_of(owner).items():
            readers.setdefault(name, set()).add(getattr(each.metadata["read"], "__qualname__", each.metadata["read"]))
    assert {name for name, found in readers.items() if len(found) > 1} == set()


@pytest.mark.parametrize("default", [None, ""])
def test_a_setting_without_a_default_shows_none(default: Any) -> None:
    made_here = make_dataclass("Owner", [("place", str, setting(default, "a folder"))], frozen=True)
    parser = argparse.ArgumentParser()
    add_flags(parser, made_here)
    assert parser.format_help().rstrip().endswith("a folder")
