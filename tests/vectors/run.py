"""Feeds a vector to the code that the attack would reach, and reports where and with which codes it was refused."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from engine.attestation.challenge import open_challenge
from engine.attestation.nonce import NonceLedger
from engine.attestation.policy import checked_policy, default_policy, load_policy, policy_from
from engine.attestation.receipts import Release, check_delegation, read_closing, read_release, read_run_receipt
from engine.attestation.release import prepare_release
from engine.attestation.statements import open_statement
from engine.attestation.verifier import AttestationResult, Expectations, appraise
from engine.attestation.wipe_proof import Expected as ExpectedWipe
from engine.attestation.wipe_proof import zeroization_faults
from engine.attestation.zeroization import read_zeroization
from engine.errors import GlasshouseError, RefusedError, WireError
from engine.measure.safetensors_header import read_header
from engine.sealing.adapter import AdapterBinding, open_adapter
from engine.sealing.memory import key_at
from engine.sealing.package import open_file, open_sealed, read_manifest
from engine.sealing.release import open_release, release_info
from engine.wire import ChainReader, canonical, parse
from tests.vectors.case import Vector
from tests.vectors.honest import BASE, signing

_UNTOUCHED: Final = 0xAA


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Where a vector was refused and why; `yielded` is what was obtained: keys, plaintext, or parsed content."""

    stage: str | None = None
    codes: tuple[str, ...] = ()
    yielded: tuple[Any, ...] = ()


class _Stages:
    """Records the current stage, so that a refusal is attributed to it."""

    def __init__(self) -> None:
        self.stage = ""
        self.yielded: list[Any] = []

    def run(self, steps: Callable[[_Stages], None]) -> Outcome:
        try:
            steps(self)
        except GlasshouseError as error:
            return Outcome(stage=self.stage, codes=(error.code,), yielded=tuple(self.yielded))
        return Outcome(yielded=tuple(self.yielded))


def run(vector: Vector, scratch: Path) -> Outcome:
    """The outcome of one vector; exceptions other than typed errors are not caught. `scratch` is an empty folder."""
    if vector.kind == "evidence":
        return _evidence(vector.given, scratch)
    if vector.kind == "zeroization":
        return _zeroization(vector.given)
    steps: dict[str, Callable[[_Stages, Vector, Path], None]] = {
        "release": _release,
        "opening": _opening,
        "policy": _policy,
        "package": _package,
        "challenge": _challenge,
        "delegation": _delegation,
        "envelope": _envelope,
        "signed": _signed,
        "log": _log,
        "adapter": _adapter,
        "tensors": _tensors,
    }
    return _Stages().run(lambda stages: steps[vector.kind](stages, vector, scratch))


def _prepared(result: AttestationResult | None, run_id: str, previous: tuple[Release, ...] = ()) -> Any:
    keys = bytearray(64)
    return prepare_release(
        result,
        keys,
        run_id=run_id,
        run_key=signing("run"),
        runner_head="0" * 64,
        pod_head="0" * 64,
        previous=previous,
    )


def _evidence(given: dict[str, Any], scratch: Path) -> Outcome:
    """Appraisal, then the release that would follow: refused evidence must not lead to a release."""
    expected = msgspec.convert(given["reference"], Expectations, strict=True)
    policy = checked_policy(policy_from(given["policy"]), default_policy())
    path = scratch / "nonces.json"
    path.write_bytes(canonical(given["nonces"]))
    clock = given["clock"]
    ledger = NonceLedger(path, clock=lambda: float(clock["seconds"]), boot=lambda: str(clock["boot"]))
    token = given["token"] + "A" * given.get("pad", 0)
    for _ in range(given.get("times", 1)):
        result = appraise(token, expected=expected, policy=policy, nonces=ledger, now=clock["now"])
    if not result.accepted:
        stage = "evidence" if len(result.checks) == 1 else "appraisal"
        try:
            return Outcome(stage=stage, codes=result.reason_codes, yielded=(_prepared(result, expected.run_id),))
        except RefusedError as error:
            is_refused = error.code == "release_before_result" and result.cnf is None
            return Outcome(stage=stage, codes=result.reason_codes, yielded=() if is_refused else (error.code,))
    try:
        return Outcome(yielded=(_prepared(result, expected.run_id),))
    except RefusedError as error:
        return Outcome(stage="release", codes=(error.code,))


def _release(stages: _Stages, vector: Vector, _scratch: Path) -> None:
    stages.stage = "release"
    given = vector.given
    result = None if given["result"] is None else msgspec.convert(given["result"], AttestationResult)
    previous = tuple(msgspec.convert(one, Release) for one in given["previous"])
    stages.yielded.append(_prepared(result, given["run_id"], previous))


def _opening(stages: _Stages, vector: Vector, _scratch: Path) -> None:
    stages.stage = "opening"
    given = vector.given
    info = release_info(
        evidence_sha256=given["evidence"],
        policy_sha256=given["policy"],
        manifest_sha256=given["manifest"],
        run_id=given["run_id"],
    )
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(given["cnf"]))
    stages.yielded.append(open_release(bytes.fromhex(given["ciphertext"]), private, info).hex())


def _policy(stages: _Stages, vector: Vector, _scratch: Path) -> None:
    stages.stage = "policy"
    data = (vector.folder / "policy.json").read_bytes() + b" " * vector.given.get("pad", 0)
    floor = msgspec.structs.replace(default_policy(), version=vector.given["floor"])
    stages.yielded.append(checked_policy(load_policy(data), floor))


def _pieces(pieces: list[list[Any]]) -> bytes:
    """A stream assembled from parts of the files in `base/` and from bytes in hex."""
    return b"".join(
        bytes.fromhex(piece[1]) if piece[0] == "hex" else (BASE / piece[0]).read_bytes()[piece[1] : piece[2]]
        for piece in pieces
    )


def _lay_out(vector: Vector, folder: Path) -> None:
    manifest = (vector.folder / "manifest.json").read_bytes() + b" " * vector.given.get("pad", 0)
    (folder / "manifest.json").write_bytes(manifest)
    for name, pieces in vector.given["streams"].items():
        (folder / f"{name}.sealed").write_bytes(_pieces(pieces))
    for name, target in vector.given.get("links", {}).items():
        (folder / name).rename(folder / "elsewhere")
        (folder / name).symlink_to(target)
    for name in vector.given.get("pipes", []):
        (folder / name).unlink()
        os.mkfifo(folder / name)


def _package(stages: _Stages, vector: Vector, scratch: Path) -> None:
    """As the key process does it: read the staged manifest, then open each file into its buffer."""
    _lay_out(vector, scratch)
    stages.stage = "staged"
    manifest = read_manifest(scratch)
    stages.stage = "opening"
    keys = bytearray.fromhex(vector.given["keys"])
    for index, entry in enumerate(manifest.files):
        target = bytearray([_UNTOUCHED]) * entry.size
        try:
            with open_sealed(scratch, entry) as source:
                open_file(key_at(keys, index), manifest, entry, source, memoryview(target))
        except RefusedError:
            if any(target):
                stages.yielded.append("plaintext is left in the buffer")
            raise
        stages.yielded.append(bytes(target).hex())


def _challenge(stages: _Stages, vector: Vector, _scratch: Path) -> None:
    stages.stage = "challenge"
    given = vector.given
    opened = open_challenge(given["envelope"], bytes.fromhex(given["run_key"]), run_id=given["run_id"])
    stages.yielded.append(opened)


def _delegation(stages: _Stages, vector: Vector, _scratch: Path) -> None:
    stages.stage = "receipt"
    given = vector.given
    at = datetime.fromisoformat(given["at"])
    operator = bytes.fromhex(given["operator"])
    checked = check_delegation(given["envelope"], operator, run_id=given["run_id"], plan_digest=given["plan"], at=at)
    stages.yielded.append(checked)


def _envelope(stages: _Stages, vector: Vector, _scratch: Path) -> None:
    stages.stage = "receipt"
    envelope = parse((vector.folder / "envelope.json").read_bytes())
    publics = [bytes.fromhex(key) for key in vector.given["publics"]]
    stages.yielded.append(open_statement(envelope, publics, vector.given["predicate"]))


def _signed(stages: _Stages, vector: Vector, _scratch: Path) -> None:
    stages.stage = "receipt"
    given = vector.given
    envelope, key, run_id = given["envelope"], bytes.fromhex(given["key"]), given["run_id"]
    read: dict[str, Callable[[], object]] = {
        "release": lambda: read_release(envelope, key, run_id=run_id),
        "closing": lambda: read_closing(envelope, key, run_id=run_id),
        "run": lambda: read_run_receipt(envelope, key, run_id=run_id, row=given["row"]),
    }
    stages.yielded.append(read[given["document"]]())


def _zeroization(given: dict[str, Any]) -> Outcome:
    try:
        receipt = read_zeroization(
            given["envelope"],
            bytes.fromhex(given["attester"]),
            run_id=given["run_id"],
            manifest_sha256=given["manifest"],
            nonce_sha256=given["nonce"],
        )
    except RefusedError as error:
        return Outcome(stage="zeroization", codes=(error.code,))
    faults = zeroization_faults(receipt, msgspec.convert(given["expected"], ExpectedWipe, strict=True))
    return Outcome(stage="zeroization", codes=faults) if faults else Outcome(yielded=(receipt,))


def _log(stages: _Stages, vector: Vector, _scratch: Path) -> None:
    stages.stage = "log"
    data = (vector.folder / "events.jsonl").read_bytes() + b"x" * vector.given.get("pad", 0)
    reader = ChainReader(vector.given["run_id"])
    try:
        for line in io.BytesIO(data):
            reader.feed(line)
    except WireError:
        if reader.next_seq != vector.given["accepted"]:
            stages.yielded.append(f"{reader.next_seq} lines were accepted")
        raise
    stages.yielded.append(reader.next_seq)


def _adapter(stages: _Stages, vector: Vector, _scratch: Path) -> None:
    stages.stage = "adapter"
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(vector.given["recipient"]))
    binding = msgspec.convert(vector.given["binding"], AdapterBinding)
    stages.yielded.append(open_adapter(vector.folder / "adapter.sealed", private, binding))


def _tensors(stages: _Stages, vector: Vector, _scratch: Path) -> None:
    stages.stage = "collecting"
    stages.yielded.append(read_header(memoryview((vector.folder / "adapter.safetensors").read_bytes())))
