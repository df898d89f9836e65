"""A release made with a key of this test alone, by the script that a maintainer runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from engine.attestation.signers import trust_line
from engine.attestation.statements import sign, statement, unverified_payload
from engine.records.reference import PREDICATE, RELEASE_KEYS, RELEASE_VALUES, ReleaseValues
from engine.system.resources import data_path


def new_key(path: Path) -> Ed25519PrivateKey:
    """A release key in PEM."""
    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the maker."""
    command = [sys.executable, str(data_path("make_reference.py")), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def release_folder(folder: Path, key: Path, *words: str) -> ReleaseValues:
    """A folder as `data/reference` of a release: its keys, and the values that the maker signed."""
    folder.mkdir()
    public = new_key(key).public_key().public_bytes_raw()
    (folder / RELEASE_KEYS).write_text(f"# keys\n{trust_line(public)}\n")
    done = make("--key", str(key), "--folder", str(folder), *words)
    assert done.returncode == 0, done.stderr
    return values_in(folder)


def values_in(folder: Path) -> ReleaseValues:
    """What the folder's signed file states."""
    payload = unverified_payload(json.loads((folder / RELEASE_VALUES).read_text()))
    return msgspec.convert(payload["predicate"], ReleaseValues)


def write_release(
    folder: Path, key: Path, values: ReleaseValues, subjects: dict[str, str] | None = None, kind: str = PREDICATE
) -> None:
    """Other values, signed with the same key."""
    private = load_pem_private_key(key.read_bytes(), None)
    assert isinstance(private, Ed25519PrivateKey)
    named = values.subjects() if subjects is None else subjects
    envelope = sign(statement(kind, named, msgspec.to_builtins(values)), private)
    (folder / RELEASE_VALUES).write_text(json.dumps(envelope))
