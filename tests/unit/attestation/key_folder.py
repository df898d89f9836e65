"""Helpers for tests of the operator's key folder: states, files, and an adapter that only its keys open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.attestation.signers import TrustedKeys
from engine.errors import GlasshouseError
from engine.sealing.adapter import AdapterBinding, open_adapter, seal_adapter
from engine.sealing.memory import random_keys
from engine.sealing.operator_keys import OperatorKeys

BINDING = AdapterBinding("0123456789ab", "protected", "a" * 64, "b" * 64)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(GlasshouseError) as caught:
        call()
    return caught.value.code


def sealed_to(keys: OperatorKeys, folder: Path) -> Path:
    file = folder / f"{keys.recipient_public.hex()[:8]}.sealed"
    with file.open("wb") as out:
        seal_adapter(memoryview(b"weights of one run"), keys.recipient_public, BINDING, random_keys(1), out)
    return file


def opened(file: Path, keys: OperatorKeys) -> bytes:
    return bytes(keys.with_recipient(lambda recipient: open_adapter(file, recipient, BINDING)))


def states(folder: Path) -> dict[str, str]:
    return {name: key.state for name, key in TrustedKeys.from_home(folder).keys.items()}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
