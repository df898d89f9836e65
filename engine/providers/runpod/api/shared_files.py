"""Files that the processes of one home share for RunPod: locks and caches in `allocations/`.

They are 0600 in a folder that is 0700, replaced atomically, and may be lost without harm.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from engine.errors import StoreError
from engine.system.clock import boot_seconds
from engine.system.files import write_private

FOLDER: Final = "allocations"
_POLL_SECONDS: Final = 0.02
_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC
Read = TypeVar("Read")


def folder_of(home: Path) -> Path:
    """The folder, created if it is missing; raises `StoreError`."""
    folder = home / FOLDER
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error
    return folder


@asynccontextmanager
async def locked(path: Path, patience: float) -> AsyncIterator[bool]:
    """Hold the file's lock; yields False when it could not be taken within `patience` seconds, or at all.

    The lock only saves calls to RunPod: nothing may depend on it for correctness.
    """
    descriptor = _open(path)
    if descriptor is None:
        yield False
        return
    try:
        until = boot_seconds() + patience
        held = try_lock(descriptor)
        while not held and boot_seconds() < until:
            await asyncio.sleep(_POLL_SECONDS)
            held = try_lock(descriptor)
        yield held
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file; False when another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def read_record(path: Path, kind: type[Read]) -> Read | None:
    """The record in a file, or None if it is missing or cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _FLAGS)
        with os.fdopen(descriptor, "rb") as file:
            return msgspec.json.decode(file.read(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def write_record(path: Path, record: object) -> bool:
    """Replace a file by a record; False if that fails."""
    try:
        write_private(path, msgspec.json.encode(record), durable=False)
    except OSError:
        return False
    return True


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
    except OSError:
        return None


def _unusable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path} cannot be used: {error.strerror}.",
        "Free some space, or choose another home with --home.",
        code="store_unusable",
    )
