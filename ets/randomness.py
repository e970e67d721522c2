"""Counter-based randomness: every number is a pure function of its place in the run.

A key is 64 bits. The fields of a place (seed, problem, step, purpose, candidate, rollout, token position) are absorbed
one after the other, each through a full mixing round: an exclusive-or or a sum of hashes would collide. A result
depends neither on its batch nor on earlier results.
"""

from __future__ import annotations

from enum import IntEnum
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ets.types import Floats, Keys

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


class Purpose(IntEnum):
    """The purpose of a number. Never renumber: stored results depend on the values."""

    CANDIDATE = 1
    ROLLOUT = 2
    CHOICE = 3
    COMPLETION = 4
    POSITION = 5


def _mix(x: Keys) -> Keys:
    """SplitMix64's output function (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


def derive(keys: Keys, *absorbed: int | NDArray[np.integer]) -> Keys:
    """New keys from old ones and one or more fields; all are broadcast against each other."""
    with np.errstate(over="ignore"):
        for field in absorbed:
            keys = _mix((np.asarray(keys, np.uint64) ^ np.asarray(field).astype(np.uint64)) + _INCREMENT)
    return keys


def uniform(keys: Keys, *absorbed: int | NDArray[np.integer]) -> Floats:
    """Uniforms in [0, 1) with 53 bits, one per key."""
    return (derive(keys, *absorbed) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def chain_key(seed: int, problem_id: str, sample: int) -> int:
    """The key of one chain, from (seed, problem id, sample)."""
    name = int.from_bytes(blake2b(problem_id.encode(), digest_size=8).digest(), "big")
    return int(derive(np.zeros((), np.uint64), np.array(seed % 2**64, np.uint64), np.array(name, np.uint64), sample))
