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
    """The cached measurement of the environment, shared by all homes and all processes of the suite."""
    return _shared(tmp_path_factory) / f"torch-{CACHE}"


def _shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder that all pytest-xdist workers share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def _copy_atomically(source: Path, target: Path) -> None:
    """Copy a file unless the target exists; another process never sees a partial copy."""
    if source.exists() and not target.exists():
        part = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copy(source, part)
        part.replace(target)


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `reference_cache`, for the small site, which each process of the suite copies for itself."""
    return tmp_path_factory.mktemp("small-reference") / CACHE


def _operator(home: Path, cache: Path) -> Iterator[Operator]:
    home.mkdir(mode=0o700)
    if cache.exists():
        shutil.copy(cache, home / CACHE)
    operator = Operator(home)
    yield operator
    _copy_atomically(home / CACHE, cache)
    operator.check_artifacts()
    for process in psutil.process_iter(["cmdline"]):
        if str(home) in " ".join(process.info["cmdline"] or ()) and process.pid != os.getpid():
            process.send_signal(signal.SIGKILL)


@pytest.fixture
def operator(
    tmp_path: Path, small_tree: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Operator]:
    """A fresh home. Every process started for it trains without torch, and is the shipped code otherwise."""
    monkeypatch.setenv("PYTHONPATH", str(small_tree))
    yield from _operator(tmp_path / "home", small_cache)


@pytest.fixture
def torch_operator(tmp_path: Path, reference_cache: Path) -> Iterator[Operator]:
    """A fresh home with the shipped code and its real training, for tests of the training itself."""
    yield from _operator(tmp_path / "home", reference_cache)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, reference_cache: Path) -> Iterator[tuple[Operator, RunView]]:
    """A finished pair, raw first, shared by many tests."""
    for operator in _operator(tmp_path_factory.mktemp("finished") / "home", reference_cache):
        run_id = operator.start(short_plan(challenge="a buyer's text"))
        view = operator.finish(run_id)
        _copy_atomically(operator.home / CACHE, reference_cache)
        yield operator, view


@pytest.fixture
def renter(
    operator: Operator, small_site: Path, fake_runpod: FakeRunPod, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Renter]:
    """An operator who rents from the fake and trains without torch; at the end the ledger must know every pod."""
    yield from _renter(Renter(operator.home, fake_runpod, (str(small_site),)), monkeypatch)


@pytest.fixture
def torch_renter(
    torch_operator: Operator, fake_runpod: FakeRunPod, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Renter]:
    """As `renter`, with the real training."""
    yield from _renter(Renter(torch_operator.home, fake_runpod, site_paths()), monkeypatch)


def _renter(renter: Renter, monkeypatch: pytest.MonkeyPatch) -> Iterator[Renter]:
    for name, value in renter.fake.environment().items():
        monkeypatch.setenv(name, value)
    renter.configure()
    yield renter
    renter.check_ledger()


SHORT = Target(steps=10)


@pytest.fixture(scope="session")
def worker_bundle() -> bytes:
    """The bundle that this checkout builds."""
    return build_bundle()


@pytest.fixture(scope="session")
def small_reference(small_site: Path) -> str:
    """The digest of an environment that consists of the small site."""
    return reference_of([small_site])


@pytest.fixture
def pods() -> Iterator[Callable[..., Pod]]:
    """`pods(bundle, sites, plan, ...)`: a staged run folder; its processes are killed when the test ends."""
    base = Path(tempfile.mkdtemp(prefix="glasshouse-pod-"))
    started: list[Pod] = []

    def begin(*args: Any, **options: Any) -> Pod:
        started.append(Pod(base / str(len(started)), *args, **options))
        return started[-1]

    yield begin
    for pod in started:
        pod.end()
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def small_pod(
    pods: Callable[..., Pod], worker_bundle: bytes, small_site: Path, small_reference: str
) -> Callable[..., Pod]:
    """`small_pod(patches, ...)`: a pod whose trainer needs no torch, with entries of its bundle patched."""

    def begin(
        patches: Patches | None = None, *, target: Target = SHORT, sites: Sequence[Path] | None = None, **options: Any
    ) -> Pod:
        bundle = with_small_training(worker_bundle, patches)
        plan = short_plan("protected", target=target)
        return pods(bundle, sites or [small_site], plan, **{"reference": small_reference, **options})

    return begin


@pytest.fixture(scope="session")
def exported(finished: tuple[Operator, RunView]) -> dict[str, Any]:
    """The finished pair's artifact, as parsed JSON."""
    operator, view = finished
    with Reader(operator.home) as reader:
        document = dump_artifact(export_run(reader, view.summary.id))
    parsed: dict[str, Any] = json.loads(json.dumps(document))
    return parsed
