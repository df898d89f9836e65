"""A fake RunPod for each test that asks for one, and an installation whose training needs no torch."""

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
    """Skips on a machine that cannot run pods."""
    lacking = missing()
    if lacking:
        pytest.skip(lacking)


@pytest.fixture
def fake_runpod(can_run_pods: None, tmp_path: Path) -> Iterator[FakeRunPod]:
    """A running fake, without pods; afterwards its answers must have conformed to RunPod's published contract."""
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
    """As `fake_runpod`, but one process for the whole file: only for tests after which nothing still calls it."""
    _lasting_runpod.reset()
    yield _lasting_runpod
    assert _lasting_runpod.defects() == []


@pytest.fixture(scope="session")
def small_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the worker imports apart from torch and its dependencies: small enough to be measured in a moment."""
    from tests.functional.runs.small_tree import copy_site

    target = tmp_path_factory.mktemp("site")
    copy_site(target)
    return target


@pytest.fixture(scope="session")
def small_tree(small_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation whose training needs no torch and whose workers have that site."""
    from tests.functional.runs.small_tree import copy_engine

    tree = tmp_path_factory.mktemp("tree")
    copy_engine(tree, small_site)
    return tree
