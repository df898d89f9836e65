from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from msgspec.structs import replace

from engine.errors import RunError
from engine.sealing.adapter import AdapterBinding, open_adapter
from engine.sealing.manifest import MANIFEST_NAME, manifest_bytes
from engine.sealing.package import SEALED_SUFFIX, SealedPackage, seal_package
from engine.sealing.release import release_info, seal_release
from engine.worker.isolation import memfd, patterns
from engine.worker.key_process import ENVIRONMENT
from tests.unit.worker.isolation.clients import KeyClient, ScannerClient

if TYPE_CHECKING:
    from tests.unit.worker.isolation.conftest import Role, Start

RUN = "run-1"
FILES = {
    "adapter.safetensors": os.urandom(70_000),
    "config.json": b'{"layers":2}',
    "empty.json": b"",
    "weights.safetensors": os.urandom(9 * 1024 * 1024),  # large enough to be hashed in a thread
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> SealedPackage:
    folder = tmp_path_factory.mktemp("package")
    return seal_package(FILES, folder, run_id=RUN, plan_digest="0" * 64, policy_digest="1" * 64)


@dataclass
class Supervisor:
    """The supervisor's side: a key process, a scanner, and the targets with the maps that it keeps."""

    role: Role
    key: KeyClient
    scanner: ScannerClient | None
    ready: dict[str, Any]

    def scan(self, label: str) -> dict[str, Any]:
        """The report of the key process."""
        assert self.scanner is not None
        report: dict[str, Any] = self.scanner.scan(label)["targets"]["keyproc"]
        return report

    def exit(self) -> int:
        """Let the key process end; its status."""
        self.key.exit()
        return self.role.process.wait(60)


@pytest.fixture
def supervise(start: Start) -> Any:
    def begin(task: str, *, scanned: bool = False) -> Supervisor:
        scanner = ScannerClient(start("scanner").channel, 30.0) if scanned else None
        role = start("keyproc", task, env=ENVIRONMENT)
        key = KeyClient(role.channel, 30.0)
        memory, maps = key.memory()
        ready = key.ready()
        if scanner is not None:
            scanner.ready()
            scanner.add_target("keyproc", memory, maps)
        os.close(memory)
        os.close(maps)
        return Supervisor(role, key, scanner, ready)

    return begin


def info_for(package: SealedPackage, evidence: str = "2" * 64) -> bytes:
    return release_info(evidence_sha256=evidence, policy_sha256="1" * 64, manifest_sha256=package.digest, run_id=RUN)


class Opening:
    """One package being opened into targets of exact size, with the maps that the supervisor keeps."""

    def __init__(self, package: SealedPackage, *, sealed: dict[str, bytes] | None = None) -> None:
        self.entries = package.manifest.files
        self.manifest = os.open(package.folder / MANIFEST_NAME, os.O_RDONLY)
        self.patterns = memfd.create("patterns", patterns.STORE_BYTES)
        self.targets = [memfd.create(entry.name, entry.size) for entry in self.entries]
        self.maps = [
            memfd.map_writable(fd) if entry.size else b"" for fd, entry in zip(self.targets, self.entries, strict=True)
        ]
        self.sources = [
            memfd.from_bytes("sealed", (sealed or {})[entry.name])
            if entry.name in (sealed or {})
            else os.open(package.folder / f"{entry.name}{SEALED_SUFFIX}", os.O_RDONLY)
            for entry in self.entries
        ]

    def pairs(self) -> list[tuple[int, int]]:
        """The descriptors in manifest order."""
        return list(zip(self.sources, self.targets, strict=True))

    def plain(self) -> dict[str, bytes]:
        """What the targets hold."""
        return {entry.name: bytes(mapping) for entry, mapping in zip(self.entries, self.maps, strict=True)}


def release(package: SealedPackage, ready: dict[str, Any], info: bytes) -> bytes:
    return seal_release(package.keys, base64.b64decode(ready["public"]), info)


def zeros() -> dict[str, bytes]:
    return {name: bytes(len(data)) for name, data in FILES.items()}


@pytest.mark.parametrize("attempt", range(5))
def test_a_package_opens_and_no_key_is_left_behind(attempt: int, supervise: Any, package: SealedPackage) -> None:
    run: Supervisor = supervise("open", scanned=True)
    opening = Opening(package)
    counts = run.key.package(
        release(package, run.ready, info_for(package)),
        info_for(package),
        opening.manifest,
        opening.patterns,
        opening.pairs(),
    )
    assert counts == {"content_key": 4, "content_key_half": 8, "release_key": 1, "release_key_half": 2}
    assert run.scanner is not None
    assert run.scanner.add_patterns(opening.patterns) == counts
    before = run.scan("before")
    opened = run.key.opened()
    after = run.scan("after")
    assert {name: before["hits"][name] >= count for name, count in counts.items()} == dict.fromkeys(counts, True)
    assert after["hits"] == dict.fromkeys(counts, 0)
    assert (after["state"], after["unread_other"]) == ("read", [])
    assert opening.plain() == FILES
    assert opened["manifest_sha256"] == package.digest
    assert {each["name"]: each["sha256"] for each in opened["files"]} == {
        name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()
    }
    assert all(memfd.is_sealed(fd) for fd in opening.targets)
    assert run.exit() == 0
    assert run.scan("gone")["state"] == "gone"
    for mapping in opening.maps:
        if not isinstance(mapping, bytes):
            memfd.wipe_map(mapping)
    assert opening.plain() == zeros()


def test_the_key_process_is_hardened_and_wipes_what_is_freed(supervise: Any) -> None:
    ready = supervise("open").ready
    sure = ("single_task", "no_dump", "no_core", "no_new_privs", "seccomp", "dontdump")
    assert {name: ready["enforcement"][name]["value"] for name in sure} == dict.fromkeys(sure, "enforced")
    assert ready["wiping"] == {"perturb": True, "tcache_off": True, "bound_at_start": True}
    assert len(base64.b64decode(ready["public"])) == 32


def test_each_key_process_attests_another_key(supervise: Any) -> None:
    assert supervise("open").ready["public"] != supervise("open").ready["public"]


def sealed_bytes(package: SealedPackage, name: str) -> bytes:
    return (package.folder / f"{name}{SEALED_SUFFIX}").read_bytes()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


WEIGHTS, ADAPTER = "weights.safetensors", "adapter.safetensors"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda package: {WEIGHTS: flipped(sealed_bytes(package, WEIGHTS), 5_000_000)}, "payload_tampered"),
        (lambda package: {WEIGHTS: sealed_bytes(package, WEIGHTS)[: 56 + 16400]}, "payload_truncated"),
        (lambda package: {WEIGHTS: sealed_bytes(package, ADAPTER)}, "payload_wrong_context"),
    ],
)
def test_a_tampered_package_is_refused_and_leaves_zeros(
    supervise: Any, package: SealedPackage, change: Any, code: str
) -> None:
    run: Supervisor = supervise("open")
    opening = Opening(package, sealed=change(package))
    info = info_for(package)
    run.key.package(release(package, run.ready, info), info, opening.manifest, opening.patterns, opening.pairs())
    with pytest.raises(RunError) as caught:
        run.key.opened()
    assert caught.value.code == code
    assert run.role.process.wait(60) == 1
    assert opening.plain() == zeros()


@pytest.mark.parametrize("wrong", ["info", "key", "ciphertext", "count"])
def test_a_release_that_is_not_for_this_key_and_evidence_is_refused(
    supervise: Any, package: SealedPackage, wrong: str
) -> None:
    run: Supervisor = supervise("open")
    opening = Opening(package)
    info = info_for(package)
    ready = dict(run.ready)
    if wrong == "key":
        ready["public"] = base64.b64encode(X25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
    sealed = release(package, ready, info_for(package, "3" * 64) if wrong == "info" else info)
    if wrong == "count":
        sealed = seal_release(package.keys[:32], base64.b64decode(ready["public"]), info)
    if wrong == "ciphertext":
        sealed = flipped(sealed, 60)
    with pytest.raises(RunError) as caught:
        run.key.package(sealed, info, opening.manifest, opening.patterns, opening.pairs())
    expected = "release_wrong_size" if wrong == "count" else "release_wrong_binding"
    assert caught.value.code == expected
    assert run.role.process.wait(60) == 1
    assert opening.plain() == zeros()


def test_keys_released_for_one_manifest_open_nothing_under_another(supervise: Any, package: SealedPackage) -> None:
    run: Supervisor = supervise("open")
    opening = Opening(package)
    *files, last = package.manifest.files
    other = replace(package.manifest, files=(*files, replace(last, sha256="5" * 64)))
    opening.manifest = memfd.from_bytes("manifest", manifest_bytes(other))
    info = info_for(package)
    with pytest.raises(RunError) as caught:
        run.key.package(release(package, run.ready, info), info, opening.manifest, opening.patterns, opening.pairs())
    assert caught.value.code == "payload_wrong_context"
    assert run.role.process.wait(60) == 1
    assert opening.plain() == zeros()


def test_a_target_of_another_size_is_refused(supervise: Any, package: SealedPackage) -> None:
    run: Supervisor = supervise("open")
    opening = Opening(package)
    opening.targets[0] = memfd.create("short", 100)
    info = info_for(package)
    run.key.package(release(package, run.ready, info), info, opening.manifest, opening.patterns, opening.pairs())
    with pytest.raises(RunError) as caught:
        run.key.opened()
    assert caught.value.code == "target_size"
    assert opening.plain() == zeros()


def test_commands_out_of_order_end_the_key_process(supervise: Any) -> None:
    run: Supervisor = supervise("open")
    with pytest.raises(RunError) as caught:
        run.key.opened()
    assert caught.value.code == "worker_protocol"
    assert run.role.process.wait(60) == 1


def test_the_key_process_ends_when_its_supervisor_is_gone(supervise: Any) -> None:
    run: Supervisor = supervise("open")
    run.role.channel.close()
    assert run.role.process.wait(60) == 1


@pytest.mark.parametrize("attempt", range(3))
def test_an_adapter_is_sealed_to_the_operator_and_its_key_is_gone(attempt: int, supervise: Any, tmp_path: Path) -> None:
    run: Supervisor = supervise("seal", scanned=True)
    assert "public" not in run.ready
    private = X25519PrivateKey.generate()
    adapter = os.urandom(300_000)
    plain = memfd.from_bytes("adapter", adapter + bytes(1000))
    laid = memfd.create("patterns", patterns.STORE_BYTES)
    path = tmp_path / "adapter.sealed"
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    binding = {
        "run_id": RUN,
        "segment": "protected",
        "manifest_sha256": "4" * 64,
        "nonce_sha256": "5" * 64,
    }
    recipient = private.public_key().public_bytes_raw()
    counts = run.key.adapter(plain, len(adapter), laid, out, recipient, binding)
    assert run.scanner is not None
    assert run.scanner.add_patterns(laid) == counts == {"adapter_key": 1, "adapter_key_half": 2}
    before = run.scan("before")["hits"]
    sealed = run.key.sealed()
    after = run.scan("after")
    assert before["adapter_key"] >= 1
    assert before["adapter_key_half"] >= 2
    assert after["hits"] == dict.fromkeys(counts, 0)
    assert after["unread_other"] == []
    assert run.exit() == 0
    assert sealed["size"] == path.stat().st_size
    assert sealed["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert open_adapter(path, private, AdapterBinding(**binding)) == adapter


@pytest.mark.parametrize(
    ("recipient", "segment", "code"),
    [
        (bytes(31), "protected", "recipient_invalid"),
        (b"\x07" + bytes(31), "other", "adapter_binding_invalid"),
    ],
)
def test_an_adapter_with_an_invalid_recipient_or_binding_is_not_sealed(
    supervise: Any, tmp_path: Path, recipient: bytes, segment: str, code: str
) -> None:
    run: Supervisor = supervise("seal")
    plain = memfd.from_bytes("adapter", os.urandom(1000))
    laid = memfd.create("patterns", patterns.STORE_BYTES)
    out = os.open(tmp_path / "sealed", os.O_WRONLY | os.O_CREAT, 0o600)
    binding = {"run_id": RUN, "segment": segment, "manifest_sha256": "4" * 64, "nonce_sha256": "5" * 64}
    run.key.adapter(plain, 1000, laid, out, recipient, binding)
    with pytest.raises(RunError) as caught:
        run.key.sealed()
    assert caught.value.code == code
    assert run.role.process.wait(60) == 1
    assert (tmp_path / "sealed").stat().st_size == 0
