"""This home's salt, so that digests of names and keys that are published or stored cannot be reversed by guessing."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Final

from engine.errors import StoreError
from engine.system.files import write_private

SALT_FILE: Final = Path("allocations") / "account.salt"
SALT_BYTES: Final = 32


def salt_of(home: Path) -> bytes:
    """This home's salt, generated on first use; raises `StoreError` (`store_unusable`)."""
    path = home / SALT_FILE
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            candidate = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            write_private(candidate, os.urandom(SALT_BYTES))
            with contextlib.suppress(FileExistsError):  # another process was first, and its salt is used
                path.hardlink_to(candidate)
            candidate.unlink()
        salt = path.read_bytes()
    except OSError as error:
        raise StoreError(
            f"{path} cannot be used: {error.strerror}.",
            "Free some space, or choose another home with --home.",
            code="store_unusable",
        ) from error
    if len(salt) != SALT_BYTES:
        raise StoreError(
            f"{path} is damaged.",
            "Delete it while no run is in progress; a new one is then created.",
            code="store_unusable",
        )
    return salt
