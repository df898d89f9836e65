"""A file that `-o` names: made anew, or left as it was."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from engine.errors import UsageError


@contextmanager
def new_file(path: Path | None) -> Iterator[BinaryIO]:
    """A new file at `path`, made before the block so that nothing is done in vain, and removed when the block fails;
    a buffer that nobody reads for None.

    Raises `UsageError` (`output_exists`, `output_unwritable`).
    """
    if path is None:
        yield io.BytesIO()
        return
    try:
        file = path.open("xb")
    except FileExistsError as error:
        raise UsageError(f"{path} is there already.", "Give -o another name.", code="output_exists") from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}.", "Give -o another place.", code="output_unwritable"
        ) from error
    try:
        with file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise
