"""The key of one run: it signs what the runner states, and seals the content keys while the run lasts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from engine.errors import RefusedError, SealingError
from engine.sealing.memory import wipe
from engine.sealing.pem import fingerprint, key_id, load_ed25519, load_x25519, private_pem, read_pem
from engine.sealing.release import SUITE
from engine.system.files import overwrite, write_private
from engine.wire import canonical

SIGNING_FILE: Final = "run_signing.pem"
SEALING_FILE: Final = "run_sealing.pem"
RUN_KEY_FILES: Final = (SIGNING_FILE, SEALING_FILE)
_PROTOCOL: Final = "glasshouse/run-keys/1"


@dataclass(frozen=True)
class RunKey:
    """The pair of a run: Ed25519 to sign, X25519 to keep content keys across a restart of the runner."""

    run_id: str
    signing: Ed25519PrivateKey = field(repr=False)
    sealing: X25519PrivateKey = field(repr=False)

    @classmethod
    def create(cls, folder: Path, run_id: str) -> RunKey:
        """A new pair, stored in `folder` (0600).

        Raises `SealingError` (`run_key_exists`, `run_key_unwritable`).
        """
        if (folder / SIGNING_FILE).exists():
            raise SealingError("This run has its key already.", "Use `glasshouse resume`.", code="run_key_exists")
        made = cls(run_id, Ed25519PrivateKey.generate(), X25519PrivateKey.generate())
        try:
            write_private(folder / SEALING_FILE, private_pem(made.sealing, None))
            write_private(folder / SIGNING_FILE, private_pem(made.signing, None))
        except OSError as error:
            raise SealingError(
                f"The run's key cannot be written: {error.strerror}.",
                "Free some space or choose another --home.",
                code="run_key_unwritable",
            ) from error
        return made

    @classmethod
    def load(cls, folder: Path, run_id: str) -> RunKey:
        """The pair in `folder`; raises `SealingError` (`key_missing`, `key_permissions`, `key_invalid`)."""
        return cls(
            run_id,
            load_ed25519(read_pem(folder / SIGNING_FILE), None, SIGNING_FILE),
            load_x25519(read_pem(folder / SEALING_FILE), None, SEALING_FILE),
        )

    @property
    def public(self) -> bytes:
        """The raw public signing key (32 bytes)."""
        return self.signing.public_key().public_bytes_raw()

    @property
    def key_id(self) -> str:
        """SHA-256 in hex over the raw public signing key."""
        return key_id(self.public)

    @property
    def fingerprint(self) -> str:
        """The signing key's name for people."""
        return fingerprint(self.public)

    def _info(self) -> bytes:
        return canonical({"protocol": _PROTOCOL, "run_id": self.run_id})

    def seal_keys(self, keys: bytearray | memoryview) -> bytes:
        """Content keys by HPKE to this run's own sealing key, for the run folder."""
        return SUITE.encrypt(keys, self.sealing.public_key(), info=self._info())

    def open_keys(self, sealed: bytes) -> bytearray:
        """What `seal_keys` sealed; the caller wipes it. Raises `RefusedError` (`run_keys_wrong_binding`)."""
        try:
            opened = SUITE.decrypt(sealed, self.sealing, info=self._info())
        except InvalidTag:
            raise RefusedError(
                "The stored content keys do not belong to this run.",
                "Start the run again.",
                code="run_keys_wrong_binding",
            ) from None
        keys = bytearray(opened)
        wipe(opened)
        return keys


def destroy_run_key(folder: Path) -> None:
    """Overwrite and remove a run's key files. A file system that copies on write may keep the old blocks."""
    for name in RUN_KEY_FILES:
        try:
            overwrite(folder / name)
            (folder / name).unlink()
        except FileNotFoundError:
            continue
