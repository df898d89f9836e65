"""The files in a local allocation's folder, written with mode 0600 and atomically.

FOLDER/            0700, `local/NAME` of the home
  host_key         the SSH server's private key
  client_key       the operator's private key
  client_key.pub   the only key that may log in
  lease.json       the lease
  ready.json       the port, host key and process of the running server
  server.log
  root/            0700, the allocation's disk: all that SFTP can reach
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

USER: Final = "glasshouse"
HOST_KEY: Final = "host_key"
CLIENT_KEY: Final = "client_key"
CLIENT_PUBLIC_KEY: Final = "client_key.pub"
LEASE: Final = "lease.json"
READY: Final = "ready.json"
LOG: Final = "server.log"
ROOT: Final = "root"


class Ready(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A listening server: port on 127.0.0.1, public host key, pid and start time in ticks since boot."""

    port: int
    host_key: str
    pid: int
    start: int


def open_log(folder: Path) -> BinaryIO:
    """The server's log, opened for appending."""
    return os.fdopen(os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def read_ready(folder: Path) -> Ready | None:
    """The ready file, or None when the server has never listened; raises `ValueError` when it is damaged."""
    try:
        return msgspec.json.decode((folder / READY).read_bytes(), type=Ready)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise ValueError("The ready file of a local allocation is damaged.") from error
