"""Writes the reference values of a release: `python data/make_reference.py --key release.pem --days 730`.

They go to `reference/values.dsse.json`: an in-toto statement in a DSSE envelope, signed with the release's Ed25519
key, whose public half must be in `reference/release-keys.txt`. `--environment PLATFORM=DIGEST` adds a digest that was
measured on that platform after an installation from the shipped lock; every other platform of the lock is listed as
unknown. Without `--key` an unsigned development reference is printed, which says nothing about a release.
"""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from engine import __version__
from engine.attestation.policy import default_policy, policy_digest
from engine.attestation.signers import trust_line
from engine.attestation.statements import sign, statement
from engine.records.reference import (
    PREDICATE,
    RELEASE_VALUES,
    BundleValue,
    EnvironmentValue,
    LockValue,
    PolicyValue,
    Reference,
    ReleaseValues,
    read_reference,
    release_keys,
)
from engine.remote.bundle import build_bundle, bundle_digest
from engine.remote.lockfile import shipped_lock
from engine.wire import digest_of, utc_text

FOLDER = Path(__file__).parent / "reference"


def values(environments: dict[str, str], *, days: int, now: datetime) -> ReleaseValues:
    """The values of this checkout."""
    lock, policy = shipped_lock(), default_policy()
    known = LockValue(
        name=lock.name, sha256=digest_of(lock.versions), file_sha256=lock.digest, packages=dict(lock.versions)
    )
    platforms = {f"CPython {python} {lock.name.removesuffix('.txt')}": None for python in lock.pythons}
    return ReleaseValues(
        release=__version__,
        issued=utc_text(now),
        expires=utc_text(now + timedelta(days=days)),
        bundles=(BundleValue(lock=lock.name, sha256=bundle_digest(build_bundle(lock.versions))),),
        locks=(known,),
        environments=tuple(
            EnvironmentValue(platform=platform, lock=lock.name, sha256=digest)
            for platform, digest in {**platforms, **environments}.items()
        ),
        policies=(PolicyValue(id=policy.id, version=policy.version, sha256=policy_digest(policy)),),
    )


def unsigned(made: ReleaseValues) -> Reference:
    """The same digests without a signature."""
    return Reference(
        bundles=tuple(value.sha256 for value in made.bundles),
        locks=tuple(value.sha256 for value in made.locks),
        environments=tuple(value.sha256 for value in made.environments if value.sha256 is not None),
    )


def private_key(path: Path) -> Ed25519PrivateKey:
    """The release key from its PEM file; asks for the passphrase of an encrypted one."""
    pem = path.read_bytes()
    passphrase = getpass.getpass("Passphrase of the release key: ").encode() if b"ENCRYPTED" in pem else None
    key = load_pem_private_key(pem, passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise SystemExit(f"{path} is not an Ed25519 key")
    return key


def main() -> None:
    """Write the signed file and read it back, or print the unsigned one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--key", type=Path, metavar="PEM", help="the release's private key; it is never stored here")
    parser.add_argument("--days", type=int, default=730, help="how long the values are vouched for (default: 730)")
    parser.add_argument("--environment", action="append", default=[], metavar="PLATFORM=SHA256")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="with release-keys.txt; the file is written there")
    given = parser.parse_args()
    environments = dict(one.rpartition("=")[::2] for one in given.environment)
    made = values(environments, days=given.days, now=datetime.now(UTC))
    if not made.is_valid():
        raise SystemExit("--environment takes PLATFORM=SHA256 in hex, and --days must be positive")
    if given.key is None:
        sys.stdout.write(json.dumps(msgspec.to_builtins(unsigned(made)), indent=1) + "\n")
        return
    key = private_key(given.key)
    public = key.public_key().public_bytes_raw()
    if public not in release_keys(given.folder):
        raise SystemExit(f"add this line to release-keys.txt first, and have it reviewed: {trust_line(public)}")
    envelope = sign(statement(PREDICATE, made.subjects(), msgspec.to_builtins(made)), key)
    out = given.folder / RELEASE_VALUES
    out.write_text(json.dumps(envelope, indent=1) + "\n", encoding="ascii")
    read_reference(out, folder=given.folder)
    sys.stdout.write(f"{out}: release {made.release}, until {made.expires}\n")


if __name__ == "__main__":
    main()
