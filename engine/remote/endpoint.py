"""Where an allocation's SSH server is, how it is trusted, and the limits of a link to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One SSH server and the keys of both sides.

    `client_key` is a private OpenSSH key or the path of one, None if the agent at `agent_path` signs, which is never
    forwarded. `host_key` is the server's public key line; no other host key is accepted. `jumps` are the servers that
    the connection goes through, first to last, each with keys of its own; `label` names one in a sentence.
    """

    host: str
    port: int
    user: str
    client_key: bytes | Path | None = field(repr=False)
    host_key: str
    agent_path: str | None = None
    jumps: tuple[Endpoint, ...] = ()
    label: str = ""


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Times of a link, in seconds.

    A silent link counts as lost after `keepalive_count` intervals. After a loss, attempts to reconnect follow after
    pauses with full jitter, whose upper bound doubles from `retry_first` to `retry_most`, until `give_up` has passed
    since the loss.
    """

    connect: float = 15.0
    login: float = 30.0
    command: float = 90.0
    keepalive_interval: float = 15.0
    keepalive_count: int = 4
    retry_first: float = 1.0
    retry_most: float = 60.0
    give_up: float = 900.0
