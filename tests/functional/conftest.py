"""A fake RunPod for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_runpod.client import FakeRunPod
from tests.fake_runpod.needs import missing
from tests.functional.providers.renting import place, renting

__all__ = ["fake_runpod", "place", "renting"]


@pytest.fixture(scope="session")
def can_run_pods() -> None:
    """Skips where pods cannot be real."""
    lacking = missing()
    if lacking:
        pytest.skip(lacking)


@pytest.fixture
def fake_runpod(can_run_pods: None, tmp_path: Path) -> Iterator[FakeRunPod]:
    """A running fake, without pods; afterwards its answers must have kept to RunPod's published contract."""
    fake = FakeRunPod.start(tmp_path / "runpod")
    try:
        yield fake
        assert fake.process.poll() is not None or fake.defects() == []
    finally:
        fake.stop()


@pytest.fixture(scope="module")
def _lasting_runpod(can_run_pods: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeRunPod]:
    fake = FakeRunPod.start(tmp_path_factory.mktemp("runpod"))
    try:
        yield fake
    finally:
        fake.stop()


@pytest.fixture
def swept_runpod(_lasting_runpod: FakeRunPod) -> Iterator[FakeRunPod]:
    """As `fake_runpod`, on one process for the whole file: for tests that leave nothing running that calls it."""
    _lasting_runpod.reset()
    yield _lasting_runpod
    assert _lasting_runpod.defects() == []
