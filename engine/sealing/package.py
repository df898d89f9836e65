"""Packages: files sealed one by one under their own keys, bound to their name and their manifest."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from engine.errors import RefusedError, SealingError
from engine.sealing.cobblestone import BLOCK_BYTES, Source, decrypt_into, encrypt_stream
from engine.sealing.files import open_regular, private_file
from engine.sealing.manifest import (
    MANIFEST_NAME,
    MANIFEST_VERSION,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    check_name,
    checked_manifest,
    manifest_bytes,
    manifest_digest,
    parse_manifest,
)
from engine.sealing.memory import key_at, random_keys, wipe
from engine.wire import canonical, utc_now

SEALED_SUFFIX: Final = ".sealed"
_THREADS: Final = 2
_WORTH_THREADS: Final = 8 * 1024 * 1024

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SealedPackage:
    """A package on disk, and its keys: 32 bytes a file in manifest order. Whoever holds it wipes `keys`."""

    manifest: Manifest
    folder: Path
    keys: bytearray = field(repr=False)

    @property
    def digest(self) -> str:
        """The package's identity: the manifest's digest."""
        return manifest_digest(self.manifest)


def _changed(name: str) -> SealingError:
    return SealingError(
        f"The payload file {name} changed while it was sealed.",
        "Let nothing write to it during a run.",
        code="payload_changed",
    )


def _open_plain(name: str, source: Path) -> io.FileIO:
    try:
        return source.open("rb", buffering=0)
    except OSError as error:
        raise SealingError(
            f"The payload file {name} cannot be read: {error.strerror}.",
            "Check that the file exists and that you may read it.",
            code="payload_unreadable",
        ) from error


def _blocks(name: str, source: bytes | Path, size: int) -> Iterator[memoryview]:
    """Exactly `size` bytes of the source in blocks; a file's blocks share one buffer, wiped at the end."""
    if isinstance(source, bytes):
        view = memoryview(source)
        for start in range(0, size, BLOCK_BYTES):
            yield view[start : start + BLOCK_BYTES]
        return
    buffer = bytearray(min(BLOCK_BYTES, size))
    view = memoryview(buffer)
    left = size
    try:
        with _open_plain(name, source) as file:
            while left:
                count = file.readinto(view[: min(left, len(view))])
                if not count:
                    raise _changed(name)
                left -= count
                yield view[:count]
    finally:
        wipe(buffer)


def _identity(name: str, source: bytes | Path) -> tuple[int, ...]:
    """Size first; then, for a file, what changes when somebody writes to it or exchanges it."""
    if isinstance(source, bytes):
        return (len(source),)
    with _open_plain(name, source) as file:
        status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise SealingError(f"The payload file {name} is not a regular file.", code="payload_unreadable")
    return (status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)


def file_context(manifest: Manifest, entry: FileEntry) -> bytes:
    """The Cobblestone context of one file: canonical JSON of package id, file name and manifest digest."""
    return canonical(
        {"package_id": manifest.package_id, "file": entry.name, "manifest_sha256": manifest_digest(manifest)}
    )


class _Sealer:
    """One package being made. Both passes over the files run on two threads where they are large."""

    def __init__(self, files: Mapping[str, bytes | Path], out: Path, progress: Progress | None) -> None:
        for name in files:
            check_name(name)
        self._files = dict(sorted(files.items()))
        self._out = out
        self._identities = {name: _identity(name, source) for name, source in self._files.items()}
        plain = sum(identity[0] for identity in self._identities.values())
        self._progress = progress
        self._lock = threading.Lock()
        self._done = 0
        self._total = 2 * plain
        self._threads = _THREADS if plain >= _WORTH_THREADS else 1

    def _advance(self, count: int) -> None:
        if self._progress is None:
            return
        with self._lock:
            self._done += count
            self._progress(self._done, self._total)

    def entries(self) -> tuple[FileEntry, ...]:
        """First pass: size and digest of every file, by name."""
        with ThreadPoolExecutor(self._threads) as pool:
            return tuple(pool.map(self._entry, self._files))

    def _entry(self, name: str) -> FileEntry:
        size = self._identities[name][0]
        digest = hashlib.sha256()
        for block in _blocks(name, self._files[name], size):
            digest.update(block)
            self._advance(len(block))
        return FileEntry(name=name, size=size, sha256=digest.hexdigest())

    def seal(self, manifest: Manifest, keys: bytearray) -> None:
        """Second pass: the sealed files, then the manifest: where it is, the package is whole."""
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(lambda index: self._seal_file(manifest, index, keys), range(len(manifest.files))))
        for name, source in self._files.items():
            if _identity(name, source) != self._identities[name]:
                raise _changed(name)
        with private_file(self._out / MANIFEST_NAME) as out:
            out.write(manifest_bytes(manifest))

    def _seal_file(self, manifest: Manifest, index: int, keys: bytearray) -> None:
        entry = manifest.files[index]
        blocks = _blocks(entry.name, self._files[entry.name], entry.size)
        with private_file(self._out / f"{entry.name}{SEALED_SUFFIX}") as out:
            encrypt_stream(key_at(keys, index), file_context(manifest, entry), blocks, out.write, self._advance)

    def discard(self) -> None:
        """Remove what `seal` wrote."""
        for name in (MANIFEST_NAME, *(f"{name}{SEALED_SUFFIX}" for name in self._files)):
            (self._out / name).unlink(missing_ok=True)


def seal_package(
    files: Mapping[str, bytes | Path],
    out: Path,
    *,
    run_id: str,
    plan_digest: str,
    policy_digest: str,
    progress: Progress | None = None,
) -> SealedPackage:
    """Seal `files` (name -> content or path) into `out` (made 0700): `<name>.sealed` each, and
    `manifest.json`.

    `progress(done, total)` counts bytes over two passes, hashing and encrypting, and may be called from a
    thread. Raises `SealingError` (`manifest_*`, `payload_unreadable`, `payload_changed`,
    `package_unwritable`) and leaves nothing half-written.
    """
    sealer = _Sealer(files, out, progress)
    manifest = checked_manifest(
        Manifest(
            version=MANIFEST_VERSION,
            package_id=secrets.token_hex(16),
            created=utc_now(),
            run_id=run_id,
            plan_digest=plan_digest,
            policy_digest=policy_digest,
            files=sealer.entries(),
        )
    )
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(error) from error
    keys = random_keys(len(manifest.files))
    try:
        sealer.seal(manifest, keys)
    except BaseException as error:
        wipe(keys)
        sealer.discard()
        if isinstance(error, OSError):
            raise _unwritable(error) from error
        raise
    return SealedPackage(manifest=manifest, folder=out, keys=keys)


def _unwritable(error: OSError) -> SealingError:
    return SealingError(
        f"The package cannot be written: {error.strerror}.",
        "Free some space or choose another --home.",
        code="package_unwritable",
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the package in `folder`; raises `SealingError` (`payload_missing`, `manifest_*`)."""
    with open_regular(folder / MANIFEST_NAME, "manifest") as file:
        return parse_manifest(file.read(MAX_MANIFEST_BYTES + 1))


def open_sealed(folder: Path, entry: FileEntry) -> io.BufferedReader:
    """The sealed bytes of one file; links and special files are refused (`payload_missing`)."""
    check_name(entry.name)
    return open_regular(folder / f"{entry.name}{SEALED_SUFFIX}", entry.name)


def open_file(
    key: bytes | bytearray | memoryview,
    manifest: Manifest,
    entry: FileEntry,
    source: Source,
    target: memoryview,
) -> None:
    """Decrypt one file of a package into `target`, a writable buffer of exactly `entry.size` bytes.

    Returns only when the whole file is authentic and matches the manifest. Raises `RefusedError`:
    `payload_truncated`, `payload_tampered`, `payload_wrong_context` (another key, file, package or manifest),
    `payload_digest_mismatch`; `target` is zeroed then. `ValueError` for a buffer that does not fit. The
    caller wipes `key`.
    """
    if target.readonly or not target.c_contiguous or target.itemsize != 1 or target.nbytes != entry.size:
        raise ValueError("The target is a writable buffer of exactly the file's size.")
    if entry not in manifest.files:
        wipe(target)
        raise RefusedError(
            f"The manifest does not list {entry.name} as given.",
            "Read the entry from this manifest.",
            code="payload_wrong_context",
        )
    what = f"The sealed file {entry.name}"
    found = decrypt_into(key, file_context(manifest, entry), source, target, what=what, kind="payload")
    if found != entry.sha256:
        wipe(target)
        raise RefusedError(
            f"{what} does not match the manifest's digest.",
            "Build the package again; do not use this one.",
            code="payload_digest_mismatch",
        )
