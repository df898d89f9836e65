"""Notices that the home, its database or the run's folder was removed or replaced, and leaves a last word elsewhere.

An open database goes on working after its file was deleted, so a runner would train, and pay, for a run that nobody
can see any more.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from pathlib import Path
from typing import Final

from platformdirs import user_state_dir

from engine.errors import StoreError
from engine.store.home import database_path
from engine.wire import utc_now

LAST_WORDS: Final = "last-words.log"
LOST: Final = frozenset({"home_gone", "database_gone"})
"""Codes after which nothing can be stored any more."""
_TIMES: Final = 2
"""How often in succession a path must be found changed: a network file system may fail for a moment."""


class Watched:
    """The identity of paths as they were when they were opened."""

    def __init__(self, home: Path, run_folder: Path | None = None) -> None:
        paths = {"home_gone": home, "database_gone": database_path(home)}
        if run_folder is not None:
            paths["run_folder_missing"] = run_folder
        self._paths = {code: (path, _identity(path)) for code, path in paths.items()}
        self._seen: dict[str, int] = {}
        for path in paths.values():
            self._hold(path)

    def _hold(self, path: Path) -> None:
        """Keep the inode in use: a file system gives the number of a removed one to the next file that is made."""
        with contextlib.suppress(OSError):
            # A descriptor of O_PATH opens nothing, so that closing it does not drop the database's POSIX locks.
            weakref.finalize(self, os.close, os.open(path, os.O_PATH | os.O_CLOEXEC))

    @property
    def is_doubtful(self) -> bool:
        """Whether something is changed now; `lost` tells once that is certain."""
        return any(_is_changed(path, identity) for path, identity in self._paths.values())

    def lost(self) -> StoreError | None:
        """The error once a path has been gone, or another file or folder, at `_TIMES` calls in succession."""
        for code, (path, identity) in self._paths.items():
            self._seen[code] = self._seen.get(code, 0) + 1 if _is_changed(path, identity) else 0
        for code, (path, _) in self._paths.items():
            if self._seen[code] >= _TIMES:
                return _error(code, path)
            if self._seen[code]:
                return None  # what this path contains is gone too, and is not the reason
        return None


_UNKNOWN: Final = (-1, -1)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode; None if there is nothing, `_UNKNOWN` if that cannot be told now."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return _UNKNOWN
    return status.st_dev, status.st_ino


def _is_changed(path: Path, identity: tuple[int, int] | None) -> bool:
    present = _identity(path)
    return identity is not None and present is not _UNKNOWN and present != identity


def _error(code: str, path: Path) -> StoreError:
    what = {"home_gone": "The home", "database_gone": "The database", "run_folder_missing": "The run's private folder"}
    return StoreError(
        f"{what[code]} {path} was removed or replaced while it was in use.",
        "What was rented is released. Start the run again.",
        code=code,
    )


def last_words_path() -> Path:
    """Where processes write what happened to them once their home is gone."""
    return Path(user_state_dir("glasshouse", appauthor=False)) / LAST_WORDS


def say_last(text: str) -> None:
    """Write a line to stderr and, 0600, to `last_words_path`; never raises."""
    line = f"{utc_now()} {text}\n"
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(line)
        sys.stderr.flush()
    with contextlib.suppress(OSError):
        path = last_words_path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o600), "a", encoding="utf-8") as file:
            file.write(line)
