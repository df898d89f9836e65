"""Real runs: real processes, SSH, SQLite and training, on a few steps each."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.plan import Target
from engine.records.artifact import dump_artifact
from engine.records.export import export_run
from engine.remote.bundle import build_bundle, site_paths
from engine.runner.environment_local import CACHE
from engine.store.reader import Reader
from engine.store.views import RunView
from tests.fake_runpod.client import FakeRunPod
from tests.functional.runs.pod import Patches, Pod, reference_of, with_small_training
from tests.functional.runs.renter import Renter
from tests.functional.runs.support import Operator, short_plan
from tests.needs import LOCAL_EXTRA


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = str(Path(__file__).parent)
    missing = importlib.util.find_spec("torch") is None
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.training)
            if "finished" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group("finished"))
            if missing:
                item.add_marker(pytest.mark.skip(reason=LOCAL_EXTRA))


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


@pytest.fixture
def renter(operator: Operator, fake_runpod: FakeRunPod, monkeypatch: pytest.MonkeyPatch) -> Iterator[Renter]:
    """An operator who rents from the fake, and has lost track of nothing when the test ends."""
    for name, value in fake_runpod.environment().items():
        monkeypatch.setenv(name, value)
    made = Renter(operator.home, fake_runpod)
    made.configure()
    yield made
    made.check_ledger()


SHORT = Target(steps=10)
KEY_PACKAGES = ("cffi", "cryptography", "joserfc", "msgspec", "pycparser", "rfc8785", "securesystemslib")
KEY_MODULES = ("_cffi_backend*", "typing_extensions.py")


@pytest.fixture(scope="session")
def worker_bundle() -> bytes:
    """The bundle that this checkout builds."""
    return build_bundle()


@pytest.fixture(scope="session")
def key_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the worker imports beside torch and its like: small enough to be measured in a moment."""
    target = tmp_path_factory.mktemp("site")
    for installed in map(Path, site_paths()):
        for name in KEY_PACKAGES:
            if (installed / name).is_dir():
                shutil.copytree(installed / name, target / name, symlinks=True)
        for pattern in KEY_MODULES:
            for module in installed.glob(pattern):
                shutil.copy(module, target)
    return target


@pytest.fixture(scope="session")
def key_reference(key_site: Path) -> str:
    """The digest of an environment that has the copy alone."""
    return reference_of([key_site])


@pytest.fixture
def pods() -> Iterator[Callable[..., Pod]]:
    """`pods(bundle, sites, plan, ...)`: a staged run folder; whatever runs in it is ended with the test."""
    base = Path(tempfile.mkdtemp(prefix="glasshouse-pod-"))
    made: list[Pod] = []

    def begin(*given: Any, **more: Any) -> Pod:
        made.append(Pod(base / str(len(made)), *given, **more))
        return made[-1]

    yield begin
    for pod in made:
        pod.end()
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def small_pod(pods: Callable[..., Pod], worker_bundle: bytes, key_site: Path, key_reference: str) -> Callable[..., Pod]:
    """`small_pod(patches, ...)`: a pod whose trainer needs no torch, with entries of its bundle patched."""

    def begin(
        patches: Patches | None = None, *, target: Target = SHORT, sites: Sequence[Path] | None = None, **more: Any
    ) -> Pod:
        bundle = with_small_training(worker_bundle, patches)
        plan = short_plan("protected", target=target)
        return pods(bundle, sites or [key_site], plan, **{"reference": key_reference, **more})

    return begin


@pytest.fixture(scope="session")
def exported(finished: tuple[Operator, RunView]) -> dict[str, Any]:
    """The finished pair's artifact, as parsed JSON."""
    operator, view = finished
    with Reader(operator.home) as reader:
        document = dump_artifact(export_run(reader, view.summary.id))
    parsed: dict[str, Any] = json.loads(json.dumps(document))
    return parsed
