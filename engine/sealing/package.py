"""Packages: files sealed one by one, each under its own key, bound to their name and their package.

A file's digest is computed while the file is encrypted, so no stream can be bound to it beforehand. Each stream is
bound to the outline of its manifest, which is everything but the digests, and each digest is compared with the opened
bytes. So all files of a package open under one manifest only, and `check_released` checks before the first of them that
the keys were released for this manifest.
"""

from __future__ import annotations

import io
import os
import secrets
import stat
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from engine.errors import RefusedError, SealingError, WireError
from engine.sealing.cobblestone import BLOCK_BYTES, Source, decrypt_into, encrypt_stream
from engine.sealing.hashing import HASH_BYTES, WAITING, Hasher, hashing_thread
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
from engine.sealing.sealed_file import open_regular
from engine.system.files import private_file, unbuffered
from engine.wire import canonical, parse, sha256_hex, utc_now

SEALED_SUFFIX: Final = ".sealed"
STREAM_FORMAT: Final = "glasshouse/payload/2"
_SLOTS: Final = WAITING + 1
_NO_DIGEST: Final = "0" * 64  # placeholder until the file is sealed

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SealedPackage:
    """A package on disk, and its keys: 32 bytes per file in manifest order. The owner wipes `keys`."""

    manifest: Manifest
    folder: Path
    keys: bytearray = field(repr=False)

    @property
    def digest(self) -> str:
        """The package's identity: the manifest's digest."""
        return manifest_digest(self.manifest)


def _changed(name: str) -> SealingError:
    return SealingError(
        f"The payload file {name} changed while it was being sealed, so the package was discarded.",
        "Start the run again, and do not write to the file meanwhile.",
        code="payload_changed",
    )


def _open_plain(name: str, source: Path) -> io.FileIO:
    try:
        return unbuffered(source)
    except OSError as error:
        raise SealingError(
            f"The payload file {name} cannot be read: {error.strerror}.",
            "Check that the file exists and that you may read it.",
            code="payload_unreadable",
        ) from error


def _blocks(name: str, source: bytes | Path, size: int, hasher: Hasher) -> Generator[memoryview]:
    """Exactly `size` bytes of the source in blocks, which are also hashed; buffers are wiped at the end."""
    if isinstance(source, bytes):
        yield from _hashed_parts(
            (memoryview(source)[at : at + HASH_BYTES] for at in range(0, size, HASH_BYTES)), hasher
        )
        return
    slots = bytearray(_SLOTS * min(HASH_BYTES, size))
    try:
        with _open_plain(name, source) as file:
            yield from _hashed_parts(_read_parts(name, file, memoryview(slots), size), hasher)
            hasher.drain()  # before the last parts are wiped
    finally:
        wipe(slots)


def _read_parts(name: str, file: io.FileIO, slots: memoryview, size: int) -> Iterator[memoryview]:
    """`size` bytes of the file in parts; `slots` has room for each part that may be queued, and for one to fill."""
    slot = len(slots) // _SLOTS
    left, at = size, 0
    while left:
        count = file.readinto(slots[at : at + min(left, slot)])
        if not count:
            raise _changed(name)
        yield slots[at : at + count]
        left -= count
        at = (at + slot) % len(slots)


def _hashed_parts(parts: Iterator[memoryview], hasher: Hasher) -> Iterator[memoryview]:
    for part in parts:
        hasher.update(part)
        for start in range(0, len(part), BLOCK_BYTES):
            yield part[start : start + BLOCK_BYTES]


def _identity(name: str, source: bytes | Path) -> tuple[int, ...]:
    """The size; for a file also the status fields that change when it is written to or exchanged."""
    if isinstance(source, bytes):
        return (len(source),)
    with _open_plain(name, source) as file:
        status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise SealingError(f"The payload file {name} is not a regular file.", code="payload_unreadable")
    return (status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)


def outline_digest(manifest: Manifest) -> str:
    """SHA-256 in hex over the manifest without its files' digests: all that is known before sealing begins."""
    fields = msgspec.to_builtins(manifest)
    fields["files"] = [{"name": entry.name, "size": entry.size} for entry in manifest.files]
    return sha256_hex(canonical(fields))


def _context(package_id: str, outline: str, name: str) -> bytes:
    return canonical({"format": STREAM_FORMAT, "package_id": package_id, "outline_sha256": outline, "file": name})


def file_context(manifest: Manifest, entry: FileEntry) -> bytes:
    """The Cobblestone context of one file: canonical JSON of format, package id, outline digest and file name."""
    return _context(manifest.package_id, outline_digest(manifest), entry.name)


class _Sealer:
    """Seals one package in one pass over its files: each part is hashed while it is encrypted."""

    def __init__(self, files: Mapping[str, bytes | Path], out: Path, progress: Progress | None) -> None:
        for name in files:
            check_name(name)
        self._files = dict(sorted(files.items()))
        self._out = out
        self._identities = {name: _identity(name, source) for name, source in self._files.items()}
        self._progress = progress
        self._done = 0
        self._total = sum(identity[0] for identity in self._identities.values())

    def outline(self) -> tuple[FileEntry, ...]:
        """Name and size of every file, without its digest."""
        return tuple(FileEntry(name, identity[0], _NO_DIGEST) for name, identity in self._identities.items())

    def _advance(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)

    def seal(self, draft: Manifest, keys: bytearray) -> Manifest:
        """Write the sealed files, then the manifest, which marks the package as complete. Returns the manifest."""
        outline = outline_digest(draft)
        self._advance(0)
        entries = []
        with hashing_thread(self._total) as thread:
            for index, entry in enumerate(draft.files):
                hasher = Hasher(thread)
                context = _context(draft.package_id, outline, entry.name)
                self._seal_file(entry, key_at(keys, index), context, hasher)
                entries.append(msgspec.structs.replace(entry, sha256=hasher.hexdigest()))
        for name, source in self._files.items():
            if _identity(name, source) != self._identities[name]:
                raise _changed(name)
        manifest = msgspec.structs.replace(draft, files=tuple(entries))
        with private_file(self._out / MANIFEST_NAME) as out:
            out.write(manifest_bytes(manifest))
        return manifest

    def _seal_file(self, entry: FileEntry, key: memoryview, context: bytes, hasher: Hasher) -> None:
        with (
            private_file(self._out / f"{entry.name}{SEALED_SUFFIX}") as out,
            closing(_blocks(entry.name, self._files[entry.name], entry.size, hasher)) as blocks,
        ):
            encrypt_stream(key, context, blocks, out.write, self._advance)

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
    """Seal `files` (name -> content or path) into `out` (created 0700), as `<name>.sealed` and `manifest.json`.

    `progress(done, total)` counts plain bytes from 0 to the total, in the caller's thread; an exception that it raises
    aborts the sealing. Raises `SealingError` (`manifest_*`, `payload_unreadable`, `payload_changed`,
    `package_unwritable`) and leaves no partial files behind.
    """
    sealer = _Sealer(files, out, progress)
    draft = checked_manifest(
        Manifest(
            version=MANIFEST_VERSION,
            package_id=secrets.token_hex(16),
            created=utc_now(),
            run_id=run_id,
            plan_digest=plan_digest,
            policy_digest=policy_digest,
            files=sealer.outline(),
        )
    )
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(error) from error
    keys = random_keys(len(draft.files))
    try:
        manifest = sealer.seal(draft, keys)
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


def check_released(manifest: Manifest, info: bytes) -> None:
    """Check that the keys which `open_release` returned for `info` were released for this manifest.

    Raises `RefusedError` (`payload_wrong_context`). Call it before the first `open_file`.
    """
    try:
        released = parse(info)
    except WireError:
        released = None
    if not isinstance(released, dict) or released.get("manifest_sha256") != manifest_digest(manifest):
        raise RefusedError(
            "The keys were released for another package.",
            "Start the run again; a release is valid only for the package that it was made for.",
            code="payload_wrong_context",
        )


def open_file(
    key: bytes | bytearray | memoryview,
    manifest: Manifest,
    entry: FileEntry,
    source: Source,
    target: memoryview,
    progress: Progress | None = None,
) -> None:
    """Decrypt one file of a package into `target`, a writable buffer of exactly `entry.size` bytes.

    Returns only when the whole file is authentic and matches the manifest. `progress(done, total)` counts plain
    bytes from 0; it reaches the total only then. Raises `RefusedError`: `payload_truncated`, `payload_tampered`,
    `payload_wrong_context` (another key, file, package or outline), `payload_digest_mismatch`; `target` is zeroed
    then. Raises `ValueError` for an unsuitable buffer. The caller wipes `key`.
    """
    if target.readonly or not target.c_contiguous or target.itemsize != 1 or target.nbytes != entry.size:
        raise ValueError("The target must be a writable buffer of exactly the file's size.")
    if entry not in manifest.files:
        wipe(target)
        raise RefusedError(
            f"The manifest does not list {entry.name} with this size and digest.",
            "Take the entry from this manifest.",
            code="payload_wrong_context",
        )
    what = f"The sealed file {entry.name}"
    opening = _OpeningProgress(progress, entry.size)
    context = file_context(manifest, entry)
    digest = decrypt_into(key, context, source, target, what=what, kind="payload", progress=opening.advance)
    if digest != entry.sha256:
        wipe(target)
        raise RefusedError(
            f"{what} does not match the manifest's digest.",
            "Build the package again; do not use this one.",
            code="payload_digest_mismatch",
        )
    opening.finish()


class _OpeningProgress:
    """Reports the progress of an opening; the total is reported only once the file is known to be authentic."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._report()

    def advance(self, count: int) -> None:
        """`count` more bytes are decrypted."""
        self._done += count
        if self._done < self._total:
            self._report()

    def finish(self) -> None:
        """The file is complete and authentic."""
        self._done = self._total
        self._report()

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total)
