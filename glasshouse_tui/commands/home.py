"""The home folder as commands meet it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from engine.store.home import prepare_home, unwritable

if TYPE_CHECKING:
    from engine.store.reader import Reader
    from glasshouse_tui.commands.base import Session


def check_home(home: Path) -> None:
    """Make the home folder (0700) where it is absent; raises `StoreError` (`store_unwritable`)."""
    prepare_home(home)
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        raise unwritable(home, "its permissions forbid it")


def open_reader(session: Session) -> Reader:
    """The store for reading; raises `StoreError` where the home could not hold one either."""
    reader = session.reader()
    if not reader.exists():
        check_home(session.home)
    return reader
