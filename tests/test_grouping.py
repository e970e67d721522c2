"""The processes that share the tests take whole files, so that each builds the fixtures of a file once."""

from __future__ import annotations

import pytest


def test_a_file_is_a_group(request: pytest.FixtureRequest) -> None:
    """pytest-xdist 3.8.0 puts the group behind a test's name, which pytest 9.2.0 ignores without a word."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("one process runs all tests here; `bash scripts/test.sh`")
    assert request.node.nodeid.endswith(f"@{request.path}")
