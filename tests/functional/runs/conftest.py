"""Real runs: real processes, SSH, SQLite and training, on a few steps each."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engine.runner.reference import CACHE
from engine.store.views import RunView
from tests.functional.runs.support import Operator, short_plan


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = str(Path(__file__).parent)
    missing = importlib.util.find_spec("torch") is None
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.training)
            if "finished" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group("finished"))
            if missing:
                item.add_marker(pytest.mark.skip(reason="needs the local extra: torch is not installed"))


@pytest.fixture(scope="session")
def reference_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the measured environment is kept between homes, so that it is measured once a session."""
    return tmp_path_factory.mktemp("reference") / CACHE


def _operator(home: Path, cache: Path) -> Iterator[Operator]:
    home.mkdir(mode=0o700)
    if cache.exists():
        shutil.copy(cache, home / CACHE)
    operator = Operator(home)
    yield operator
    if (home / CACHE).exists() and not cache.exists():
        shutil.copy(home / CACHE, cache)
    operator.check_artifacts()
    for process in psutil.process_iter(["cmdline"]):
        if str(home) in " ".join(process.info["cmdline"] or ()) and process.pid != os.getpid():
            process.send_signal(signal.SIGKILL)


@pytest.fixture
def operator(tmp_path: Path, reference_cache: Path) -> Iterator[Operator]:
    """A fresh home."""
    yield from _operator(tmp_path / "home", reference_cache)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, reference_cache: Path) -> Iterator[tuple[Operator, RunView]]:
    """A finished pair, raw first, that many tests look at."""
    for operator in _operator(tmp_path_factory.mktemp("finished") / "home", reference_cache):
        run_id = operator.start(short_plan(challenge="a buyer's text"))
        view = operator.finish(run_id)
        if (operator.home / CACHE).exists() and not reference_cache.exists():
            shutil.copy(operator.home / CACHE, reference_cache)
        yield operator, view
