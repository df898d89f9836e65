"""Opening a file of a sealed package: regular files only, links and devices are refused."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from engine.errors import SealingError


def open_regular(path: Path, what: str) -> io.BufferedReader:
    """Open a regular file; raises `SealingError` (`payload_missing`) for absence, links and devices."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SealingError(
            f"The sealed file {what} is not there or is a link.",
            "Transfer the package again.",
            code="payload_missing",
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SealingError(
            f"The sealed file {what} is not a regular file.",
            "Transfer the package again.",
            code="payload_missing",
        )
    return os.fdopen(descriptor, "rb")
