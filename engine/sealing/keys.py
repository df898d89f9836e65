"""Keys at rest, in one place: the operator's keys, their backup, and the key of a run."""

from __future__ import annotations

from engine.sealing.backup import backup, restore
from engine.sealing.keyring import KeyStatus, OperatorKeys, read_public, status
from engine.sealing.pem import fingerprint, key_id
from engine.sealing.ring import PublicKeys, Ring, read_ring
from engine.sealing.runkey import RunKey, destroy_run_key

__all__ = [
    "KeyStatus",
    "OperatorKeys",
    "PublicKeys",
    "Ring",
    "RunKey",
    "backup",
    "destroy_run_key",
    "fingerprint",
    "key_id",
    "read_public",
    "read_ring",
    "restore",
    "status",
]
