"""The environment of an allocation, over a real OpenSSH server and its pip, from an index on loopback."""

from __future__ import annotations

import asyncio
import marshal
import platform
import shutil
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from engine.attestation.measurement import list_environment
from engine.errors import RemoteError, RunError
from engine.plan import Segments, preset
from engine.providers.protocol import Address, Lease
from engine.remote import environment
from engine.remote.bundle import REQUIREMENTS, build_bundle, site_paths, worker_lock
from engine.remote.endpoint import LinkLimits
from engine.remote.environment import Prepared, measure, prepare
from engine.remote.lockfile import Lock, lock_of, parse_lock, shipped_lock
from engine.remote.reconnect import Reconnecting
from engine.remote.session import SshSession
from engine.runner.environment_local import environment_reference
from engine.runner.environment_remote import REFERENCE
from engine.runner.folder import RunFolder
from engine.runner.journal import Journal
from engine.runner.staging import BUNDLE, Staging
from engine.sealing.run_key import RunKey
from engine.store.reader import Reader
from engine.store.writer import Writer
from tests.functional.providers.openssh import USER, Sshd, openssh
from tests.functional.providers.wheels import NAMES, VERSION, Index, package_index
from tests.needs import LOCAL_EXTRA

LIMITS = LinkLimits(connect=30, login=30, command=60, retry_first=0.02, retry_most=0.1, give_up=60)
RUN = "0123456789ab"
HEAD = b"# python: 3.12\n# machine: x86_64\n# glibc: 2.28\n# disk-gb: 1\n"
MEASURING = (
    "cffi",
    "cryptography",
    "joserfc",
    "msgspec",
    "numpy",
    "numpy.libs",
    "rfc8785",
    "safetensors",
    "securesystemslib",
)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A host whose login environment has unusable settings of pip, and a token."""
    traps = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_NO_INDEX": "1", "HF_TOKEN": "hf_canary"}
    with openssh(tmp_path_factory.mktemp("sshd"), traps) as server:
        yield server


@pytest.fixture(scope="module")
def index() -> Iterator[Index]:
    with package_index() as made:
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "POLL_SECONDS", 0.05)


def _lease(sshd: Sshd, root: Path, index: Index | None = None, **more: Any) -> Lease:
    address = Address(
        host="127.0.0.1", port=sshd.port, user=USER, host_key=sshd.line, client_key_path=str(sshd.client_key)
    )
    fields: dict[str, Any] = {
        "allocation_id": "pod1",
        "provider": "runpod",
        "name": "glasshouse-test-run-1",
        "run_id": RUN,
        "gpu_model": None,
        "price_per_hour": None,
        "acquired_at": "2026-01-01T00:00:00Z",
        "root": str(root),
        "python": sys.executable,
        "site_paths": (),
        "machine": {},
        "address": address,
        "environment": "lock",
        "index": None if index is None else index.url,
    }
    return Lease(**{**fields, **more})


@pytest.fixture
async def link(sshd: Sshd, tmp_path: Path) -> AsyncIterator[Reconnecting]:
    endpoint = _lease(sshd, tmp_path).endpoint()
    async with Reconnecting(lambda: SshSession.connect(endpoint, LIMITS), LIMITS) as made:
        yield made


def _lock(text: bytes) -> Lock:
    return parse_lock("test.txt", text)


async def _output(link: Reconnecting, *command: str) -> bytes:
    return (await link.call(lambda session: session.run(command))).stdout


def _names(folder: Path | str, pattern: str) -> set[str]:
    return {path.name for path in Path(folder).glob(pattern)}


def _compiled(cache: str) -> tuple[int, str]:
    """The flags of a compiled cache (PEP 552), and the source path that it records."""
    content = Path(cache).read_bytes()
    code = marshal.loads(content[16:])  # noqa: S302  # compiled a moment ago
    return struct.unpack("<I", content[4:8])[0], code.co_filename


async def test_a_lock_is_installed_once_and_found_by_the_next_run(
    sshd: Sshd, index: Index, link: Reconnecting, tmp_path: Path
) -> None:
    lock, phases = _lock(index.lock()), list[str]()
    index.fetched.clear()
    lease = _lease(sshd, tmp_path / "root", index)
    ready = await prepare(link, lease, lock=lock, on_phase=phases.append)
    assert ready.installed
    assert ready.python == f"{tmp_path}/root/env-{lock.digest[:16]}-{platform.python_version()}/venv/bin/python"
    code = f"import glasshouse_test_a as a, sys; print(a.VERSION, a.__cached__); import {NAMES[1].replace('-', '_')}"
    version, cache = (await _output(link, ready.python, "-I", "-c", code)).decode().split()
    assert version == VERSION
    assert _compiled(cache) == (0b01, "glasshouse_test_a/__init__.py"), "its cache depends on a time or a path"
    assert phases[:2] == ["environment: checking the allocation", "environment: 0 of 2 packages"]
    assert _names(ready.site_paths[0], "*.dist-info") == {
        f"{name.replace('-', '_')}-{VERSION}.dist-info" for name in NAMES
    }
    assert sorted(index.fetched) == sorted(index.files)
    again = await prepare(link, lease, lock=lock)
    assert not again.installed
    assert msgspec.structs.replace(again, installed=True, seconds=ready.seconds) == ready
    assert sorted(index.fetched) == sorted(index.files), "something was fetched again"


async def test_one_lock_gives_one_digest_below_any_root(
    sshd: Sshd, index: Index, link: Reconnecting, tmp_path: Path
) -> None:
    """A reference value of an environment would otherwise hold for one folder's name alone."""
    lock, digests = _lock(index.lock()), set[str]()
    for root in ("one", "another/deeper"):
        ready = await prepare(link, _lease(sshd, tmp_path / root, index), lock=lock)
        site = Path(ready.site_paths[0])
        digests.add(list_environment([site], Path(sys.executable)).measure().digest)
        assert not set(NAMES) & _names(Path(ready.python).parent, "*")
        assert (site / f"{NAMES[0].replace('-', '_')}-{VERSION}.dist-info" / "entry_points.txt").exists()
    assert len(digests) == 1


async def test_a_file_with_another_hash_is_refused_with_pips_own_message(
    sshd: Sshd, index: Index, link: Reconnecting, tmp_path: Path
) -> None:
    lease = _lease(sshd, tmp_path, index)
    with pytest.raises(RemoteError) as caught:
        await prepare(link, lease, lock=_lock(index.lock(wrong=True)))
    assert caught.value.code == "environment_failed"
    assert "Got" in caught.value.message
    assert not _names(tmp_path, "env-*/ready.json")


async def test_a_lost_link_does_no_harm_and_a_second_runner_joins_the_installation(
    sshd: Sshd, index: Index, link: Reconnecting, tmp_path: Path
) -> None:
    index.gate.clear()
    index.fetched.clear()
    lease, lock, phases = _lease(sshd, tmp_path, index), _lock(index.lock()), list[str]()
    under_way = asyncio.Event()

    def first(phase: str) -> None:
        if "fetching" in phase:
            under_way.set()

    def second(phase: str) -> None:
        phases.append(phase)
        if len(phases) == 4:
            sshd.cut()
        if len(phases) == 6:
            index.gate.set()

    one = asyncio.create_task(prepare(link, lease, lock=lock, on_phase=first))
    await asyncio.wait_for(under_way.wait(), 60)
    other = await prepare(link, lease, lock=lock, on_phase=second)
    assert (await one).python == other.python
    assert len(phases) >= 6, "the second runner heard nothing of the installation after its link was lost"
    assert sorted(index.fetched) == sorted(index.files), "two installed concurrently, or one installed again"


async def test_an_exception_from_on_phase_stops_the_installation(
    sshd: Sshd, index: Index, link: Reconnecting, tmp_path: Path
) -> None:
    index.gate.clear()

    def cancel(phase: str) -> None:
        if "fetching" in phase:
            raise RunError("The run was cancelled.", code="cancelled")

    lease, lock = _lease(sshd, tmp_path, index), _lock(index.lock())
    with pytest.raises(RunError):
        await prepare(link, lease, lock=lock, on_phase=cancel)
    index.gate.set()
    assert not _names(tmp_path, "env-*/ready.json")
    assert (await prepare(link, lease, lock=lock)).installed


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ({"pythons": "3.99"}, "environment_no_lock"),
        ({"disk_gb": 10**9}, "remote_disk_full"),
    ],
)
async def test_an_impossible_installation_is_refused_before_anything_is_created(
    sshd: Sshd, index: Index, link: Reconnecting, tmp_path: Path, text: dict[str, Any], code: str
) -> None:
    with pytest.raises(RemoteError) as caught:
        await prepare(link, _lease(sshd, tmp_path, index), lock=_lock(index.lock(**text)))
    assert caught.value.code == code
    assert not _names(tmp_path, "env-*")


async def test_an_interpreter_without_pip_and_a_missing_one_have_different_codes(
    sshd: Sshd, index: Index, link: Reconnecting, tmp_path: Path
) -> None:
    making = await asyncio.create_subprocess_exec(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare"))
    assert await making.wait() == 0
    for python, code in ((f"{tmp_path}/bare/bin/python", "environment_no_pip"), ("/absent", "environment_no_lock")):
        with pytest.raises(RemoteError) as caught:
            await prepare(link, _lease(sshd, tmp_path, index, python=python), lock=_lock(index.lock()))
        assert caught.value.code == code


async def test_a_driver_too_old_for_the_locks_cuda_is_reported_before_the_installation(
    index: Index, tmp_path: Path
) -> None:
    if shutil.which("nvidia-smi") is not None:
        pytest.skip("this machine has a real nvidia-smi, which would answer: run on a machine without one")
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho '| NVIDIA-SMI 550.1  Driver Version: 550.1   CUDA Version: 12.4 |'\n")
    tool.chmod(0o755)
    with openssh(tmp_path, {"PATH": f"{tool.parent}:/usr/bin:/bin"}) as server:
        lease = _lease(server, tmp_path / "root", index)
        async with await SshSession.connect(lease.endpoint(), LIMITS) as session:
            with pytest.raises(RemoteError) as caught:
                await prepare(session, lease, lock=_lock(index.lock(cuda="13.0")))
            assert caught.value.code == "environment_driver"
            assert "12.4" in caught.value.message
            with pytest.raises(RemoteError) as caught:
                await prepare(session, lease, lock=_lock(index.lock(cuda="12.4", disk_gb=10**9)))
            assert caught.value.code == "remote_disk_full", "a suitable driver was refused"


async def test_an_image_must_hold_the_locked_versions(sshd: Sshd, link: Reconnecting, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason=LOCAL_EXTRA)
    lease = _lease(sshd, tmp_path, environment="image")
    ready = await prepare(link, lease, lock=lock_of(worker_lock()))
    assert (ready.python, ready.installed) == (sys.executable, False)
    assert set(site_paths()) <= set(ready.site_paths)
    other = {**worker_lock(), "peft": "0.0.1", "nvidia-nothing": "1.0", "torch": worker_lock()["torch"].split("+")[0]}
    with pytest.raises(RemoteError) as caught:
        await prepare(link, lease, lock=lock_of(other))
    assert caught.value.code == "environment_mismatch"
    assert f"peft is {worker_lock()['peft']} instead of 0.0.1." in caught.value.message
    elsewhere = msgspec.structs.replace(lease, site_paths=(str(tmp_path),))
    with pytest.raises(RemoteError, match=r"is missing, .* and 7 more") as caught:
        await prepare(link, elsewhere, lock=lock_of(worker_lock()))
    assert caught.value.code == "environment_mismatch"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only what the worker imports to measure."""
    made = tmp_path_factory.mktemp("site")
    for name in MEASURING:
        for folder in site_paths():
            if (Path(folder) / name).is_dir():
                shutil.copytree(Path(folder) / name, made / name)
    for folder in site_paths():
        for module in [*Path(folder).glob("_cffi_backend*.so"), *Path(folder).glob("typing_extensions.py")]:
            shutil.copy(module, made)
    return made


async def test_an_environment_without_what_the_worker_needs_cannot_be_measured(
    link: Reconnecting, tmp_path: Path
) -> None:
    bare = Prepared(
        root=str(tmp_path), python=sys.executable, site_paths=(), python_version="", installed=False, seconds=0.0
    )
    with pytest.raises(RemoteError) as caught:
        await measure(link, bare, build_bundle({}), f"{tmp_path}/run")
    assert caught.value.code == "environment_unmeasured"


class _Operator:
    """A run's staging over a real store; its bundle's lock is empty, so that a small site is enough."""

    def __init__(self, home: Path, run_id: str, segments: Segments = "protected") -> None:
        self.plan = msgspec.structs.replace(preset("demo"), segments=segments)
        self.writer = Writer(home)
        self.writer.create_run(run_id, self.plan)
        self.run_id = run_id
        self.folder = RunFolder(home, run_id)
        self.folder.create()
        RunKey.create(self.folder.path, run_id)
        self.folder.write(BUNDLE, build_bundle({}))

    def staging(self) -> Staging:
        journal = Journal(self.writer, Reader(self.folder.home), self.run_id)
        return Staging(self.plan, self.folder, self.writer, journal, self.run_id)


async def test_the_measurement_is_pinned_for_the_run_and_for_later_runs_on_the_allocation(
    sshd: Sshd, link: Reconnecting, tmp_path: Path, site: Path
) -> None:
    root = tmp_path / "root"
    lease = _lease(sshd, root, environment="image", site_paths=(str(site),))
    one = _Operator(tmp_path, RUN)
    staging, phases = one.staging(), list[str]()
    with pytest.raises(RuntimeError):
        staging.references(lease)
    placed = await staging.make_ready(link, lease, phases.append)
    expected = environment_reference(tmp_path, (str(site),))
    assert staging.references(placed).measurements.environment == expected
    assert (placed.root, placed.python, placed.site_paths) == (str(root), sys.executable, (str(site),))
    recorded = Reader(tmp_path).evidence(RUN)["environment"]
    assert (recorded["source"], recorded["digest"], recorded["python"]) == (
        "image",
        expected,
        platform.python_version(),
    )
    assert str(tmp_path) not in msgspec.json.encode(recorded).decode()
    assert phases[-1] == "environment: measuring"

    (site / "added.py").write_text("")
    try:
        resumed = one.staging()  # the pinned value counts, whatever is installed by now
        assert await resumed.make_ready(link, lease) == placed
        assert resumed.references(placed).measurements.environment == expected
        assert one.folder.read(REFERENCE) is not None
        for segments in get_args(Segments):  # a raw run is refused likewise
            with pytest.raises(RunError) as caught:
                await _Operator(tmp_path, f"a-later-{segments}", segments).staging().make_ready(link, lease)
            assert caught.value.code == "environment_changed"
    finally:
        (site / "added.py").unlink()
    later = await _Operator(tmp_path, "another-run").staging().make_ready(link, lease)
    assert later == placed


async def test_a_run_whose_bundle_holds_another_lock_does_not_install(
    sshd: Sshd, link: Reconnecting, tmp_path: Path
) -> None:
    with pytest.raises(RunError) as caught:
        await _Operator(tmp_path, RUN).staging().make_ready(link, _lease(sshd, tmp_path / "root"))
    assert caught.value.code == "lock_changed"


def test_the_shipped_lock_names_everything_that_the_worker_needs() -> None:
    lock = shipped_lock()
    assert set(REQUIREMENTS) <= set(lock.versions)
    assert lock.versions["torch"] == "2.13.0"
    assert {"3.11", "3.12", "3.13"} <= set(lock.pythons)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"numpy==1.0\n",
        HEAD + b"numpy==1.0 \\\nscipy==1.0 \\\n    --hash=sha256:" + b"0" * 64,
        HEAD + b"--index-url http://elsewhere\n",
        b"numpy==1.0 \\\n    --hash=sha256:" + b"0" * 64,
    ],
)
def test_a_lock_with_a_pin_without_hash_or_with_anything_else_is_refused(text: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        _lock(text)
    assert caught.value.code == "lock_invalid"
