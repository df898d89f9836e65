"""How many processes the suite runs in, and what a test does that needs an absent extra."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Generator
from typing import Final

import pytest

from engine.errors import MissingExtraError
from tests.needs import LOCAL_EXTRA

_HAS_TORCH: Final = importlib.util.find_spec("torch") is not None


def pytest_xdist_auto_num_workers() -> int:
    """One per core up to four, and three even on two cores: many tests wait for processes, links and clocks."""
    return max(3, min(4, os.cpu_count() or 1))


def _skipping() -> Generator[None, object, object]:
    """Skip where the engine asks for the local extra and it is absent; a failure where it is installed."""
    try:
        return (yield)
    except MissingExtraError:
        if _HAS_TORCH:
            raise
        pytest.skip(LOCAL_EXTRA)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    """Fixtures that build the worker's bundle need the local extra."""
    return (yield from _skipping())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Tests that build it themselves do too."""
    return (yield from _skipping())
