"""Every parser of untrusted input as a function of bytes, with valid inputs to start from.

Changed content is signed again, so that the change reaches the code behind the signature check: the signer is the
attacker.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec

from engine.attestation.challenge import CHALLENGE_TYPE, open_challenge
from engine.attestation.dsse import open_envelope, seal_envelope
from engine.attestation.ear import peek_result, sign_result
from engine.attestation.nonce import NonceLedger
from engine.attestation.policy import default_policy, load_policy
from engine.attestation.receipts import (
    RELEASE,
    check_delegation,
    delegate,
    read_release,
    read_run_receipt,
    release_receipt,
    run_receipt,
)
from engine.attestation.revocation import read_revocations, rotation_statement
from engine.attestation.statements import PAYLOAD_TYPE, open_statement
from engine.attestation.verifier import appraise
from engine.attestation.wipe_proof import runtime_state
from engine.attestation.zeroization import read_zeroization, zeroization_receipt
from engine.measure.safetensors_header import plan_layout, read_header
from engine.payload.adapter_config import planned
from engine.payload.data.read import read_data
from engine.plan import dump_plan, load_plan, preset
from engine.records.adapters.config import differences, read_config
from engine.records.adapters.signature import read_signature
from engine.records.trust import anchors
from engine.records.verify import verify_bytes
from engine.remote.launch import parse_stat
from engine.remote.session import SshSession
from engine.remote.tail import Tail
from engine.sealing.adapter import open_adapter, read_adapter_header
from engine.sealing.key_generations import PublicKeys, Ring, parse_ring
from engine.sealing.manifest import parse_manifest
from engine.sealing.operator_keys import OperatorKeys
from engine.store.progress import Steps, body_of, steps_of
from engine.system.resources import data_path
from engine.wire import ChainReader, canonical, parse
from engine.worker.inbox import Inbox
from engine.worker.job import JOB_FILE, Job, read_job
from tests.vectors import evidence_cases, honest, log_cases
from tests.vectors.honest import BASE, RUN, digest, public, signing
from tests.vectors.model_signature import signed_over, statement

T = TypeVar("T")
Read = Callable[[bytes], object]

_OPERATOR: Final = OperatorKeys.generate()
ARTIFACT: Final = BASE.parent / "artifact"
_TEMPORARY: Final = tempfile.TemporaryDirectory(prefix="glasshouse-fuzz-")  # removed when the process ends
_FOLDER: Final = Path(_TEMPORARY.name)

_DATA: Final = (
    b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":1}],"tools":[]}\n',
    b'[{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}]',
    b'{"data":\n[{"prompt":"a","completion":"b"}]}',
    b'prompt,completion\n"a, b",c\n',
    gzip.compress(b'{"text":"a"}\n{"text":"b"}\n', mtime=0),
)


class Target(msgspec.Struct, frozen=True):
    """`read` may raise nothing but `GlasshouseError`; `seeds` are inputs that it accepts."""

    read: Read
    seeds: tuple[bytes, ...]


def _file(name: str, data: bytes) -> Path:
    path = _FOLDER / name
    path.write_bytes(data)
    return path


def _json(data: bytes) -> object:
    return canonical(parse(data))


def _appraised(token: str) -> object:
    _file("nonces.json", canonical(honest.ledger()))
    ledger = NonceLedger(_FOLDER / "nonces.json", clock=lambda: float(honest.SECONDS), boot=lambda: honest.BOOT)
    return appraise(token, expected=honest.expectations(), policy=default_policy(), nonces=ledger, now=honest.NOW)


def _nonces(data: bytes) -> object:
    _file("ledger.json", data)
    ledger = NonceLedger(_FOLDER / "ledger.json", clock=lambda: float(honest.SECONDS), boot=lambda: honest.BOOT)
    nonce = ledger.outstanding(RUN)
    ledger.redeem(honest.seed("nonce") if nonce is None else nonce, RUN)
    return nonce


def _signed(payload: bytes, key: str, kind: str = PAYLOAD_TYPE) -> dict[str, Any]:
    return seal_envelope(payload, kind, signing(key))


def _challenge(data: bytes) -> object:
    return open_challenge(_signed(data, "run", CHALLENGE_TYPE), public(signing("run")), run_id=RUN)


def _delegation(data: bytes) -> object:
    return check_delegation(
        _signed(data, "operator"), public(signing("operator")), run_id=RUN, plan_digest=digest("plan")
    )


def _zeroization(data: bytes) -> object:
    proof = honest.zeroization()
    receipt = read_zeroization(
        _signed(data, "attester"),
        public(signing("attester")),
        run_id=RUN,
        manifest_sha256=proof.manifest_sha256,
        nonce_sha256=proof.nonce_sha256,
    )
    return runtime_state(receipt, honest.expected_wipe())


class _Hostile:
    """A remote side that serves `data` as its log."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def size(self, _path: str) -> int:
        return len(self._data)

    async def read_at(self, _path: str, offset: int, most: int) -> bytes:
        return self._data[offset : offset + most]

    async def call(self, operation: Callable[[SshSession], Awaitable[T]]) -> T:
        return await operation(cast("SshSession", self))


def _tail(data: bytes) -> object:
    async def follow() -> int:
        tail = Tail(_Hostile(data), "events.jsonl", 0, ChainReader(RUN))
        while await tail.poll():
            pass
        return tail.offset

    return asyncio.run(follow())


def _adapter(data: bytes) -> object:
    path = _file("adapter.sealed", data + b"\n" + (BASE / "adapter.sealed").read_bytes().split(b"\n", 1)[1])
    read_adapter_header(path)
    return open_adapter(path, honest.receiving("recipient"), None)


def _job(data: bytes) -> object:
    _file(JOB_FILE, data)
    return read_job(_FOLDER)[0].parsed_plan()


def _data(data: bytes) -> object:
    return read_data(_file("data", data))


def _message(data: bytes) -> object:
    _file("message.json", data)
    return Inbox(_FOLDER).take("message.json")


def _steps(data: bytes) -> object:
    body = parse(data)
    return steps_of(body) if isinstance(body, dict) else None


def _payload(envelope: dict[str, Any]) -> bytes:
    return base64.b64decode(envelope["payload"])


def _honest_job() -> bytes:
    plan = preset("demo")
    job = Job(
        run_id=RUN,
        allocation_id="pod-1",
        plan=dump_plan(plan),
        plan_digest=digest("plan"),
        policy={},
        policy_digest=digest("policy"),
        manifest_digest=None,
        payload_files={},
        hub_weights={},
        hub_revision=None,
        model_type="qwen2",
        noise_seed=1,
        run_public_key="",
        recipient_public_key="",
        ssh_host_key_digest="",
    )
    return canonical(msgspec.to_builtins(job))


def _verified(data: bytes) -> object:
    """The verification of an artifact by a stranger; a changed one must never be genuine."""
    known = anchors(_FOLDER, trust=[str(ARTIFACT / "operator.txt")], references=[ARTIFACT / "reference.json"])
    verification = verify_bytes(data, known)
    assert not verification.genuine or parse(data) == parse((ARTIFACT / "row.json").read_bytes())
    return verification


def _ring() -> bytes:
    public_keys = PublicKeys(created="2026-05-17T00:00:00.000Z", signing=digest("a"), recipient=digest("b"))
    return canonical(msgspec.to_builtins(Ring.fresh(public_keys)))


def _rotation() -> dict[str, Any]:
    return rotation_statement(signing("operator"), signing("run"), at=datetime(2026, 5, 17, tzinfo=UTC))


def _statements(data: bytes) -> object:
    return read_revocations([_file("statements.jsonl", data)])


def _run_receipt() -> dict[str, Any]:
    return run_receipt(
        run_id=RUN,
        row={},
        plan_digest=digest("plan"),
        manifest_sha256=None,
        adapters={"raw": digest("adapter")},
        series={"raw": digest("series")},
        runner_head=digest("head"),
        pod_head=digest("pod head"),
        delegation={},
        bundle_sha256=digest("bundle"),
        challenge=None,
        privates=[signing("run")],
    )


def _tensors() -> bytes:
    header, _, size = plan_layout({"a": ("F32", (2, 3)), "b": ("BF16", (4,))}, "{}")
    return header + bytes(size - len(header))


def targets() -> dict[str, Target]:
    """Every target by name."""
    run = public(signing("run"))
    token = honest.token()
    claims = base64.urlsafe_b64decode(token.split(".")[1] + "===")
    result = sign_result(honest.result(), signing("run"))
    release = release_receipt(honest.release(), signing("run"))
    delegation = delegate(signing("operator"), run, run_id=RUN, plan_digest=digest("plan"), seconds=1e9)
    log = log_cases.lines()
    return {
        "json": Target(_json, (b'{"a":[1,2.5,null,true,"x"]}',)),
        "evidence": Target(lambda data: _appraised(data.decode("utf-8", "surrogateescape")), (token.encode(),)),
        "claims": Target(lambda data: _appraised(evidence_cases.resigned(payload=data)), (claims,)),
        "result": Target(lambda data: peek_result(data.decode("utf-8", "surrogateescape")), (result.encode(),)),
        "policy": Target(load_policy, (data_path("policies", "default.json").read_bytes(),)),
        "model_signature": Target(read_signature, (signed_over(_OPERATOR, statement(["a.json", "base/b"])),)),
        "model_statement": Target(
            lambda data: read_signature(signed_over(_OPERATOR, data)), (canonical(statement(["a.json", "base/b"])),)
        ),
        "adapter_config": Target(
            lambda data: differences(preset("demo"), read_config(data)), (canonical(planned(preset("demo"))),)
        ),
        "manifest": Target(parse_manifest, ((BASE / "package" / "manifest.json").read_bytes(),)),
        "challenge": Target(_challenge, (canonical(msgspec.to_builtins(honest.challenge())),)),
        "nonces": Target(_nonces, (canonical(honest.ledger()),)),
        "envelope": Target(lambda data: open_statement(parse(data), run, RELEASE), (canonical(release),)),
        "signatures": Target(lambda data: open_envelope(parse(data), PAYLOAD_TYPE, [run]), (canonical(release),)),
        "release": Target(lambda data: read_release(_signed(data, "run"), run, run_id=RUN), (_payload(release),)),
        "delegation": Target(_delegation, (_payload(delegation),)),
        "zeroization": Target(
            _zeroization, (_payload(zeroization_receipt(honest.zeroization(), signing("attester"))),)
        ),
        "run_receipt": Target(
            lambda data: read_run_receipt(_signed(data, "run"), run, run_id=RUN, row={}), (_payload(_run_receipt()),)
        ),
        "line": Target(lambda data: ChainReader(RUN).feed(data), (log[0],)),
        "tail": Target(_tail, (b"".join(log),)),
        "adapter": Target(_adapter, ((BASE / "adapter.sealed").read_bytes().split(b"\n", 1)[0],)),
        "tensors": Target(lambda data: read_header(memoryview(data)), (_tensors(),)),
        "plan": Target(lambda data: load_plan(parse(data)), (canonical(dump_plan(preset("demo"))),)),
        "job": Target(_job, (_honest_job(),)),
        "data": Target(_data, _DATA),
        "message": Target(_message, (b'{"codes":["x"]}',)),
        "artifact": Target(_verified, ((ARTIFACT / "row.json").read_bytes(),)),
        "ring": Target(parse_ring, (_ring(),)),
        "revocations": Target(_statements, (canonical(_rotation()),)),
        "steps": Target(_steps, (canonical(body_of(Steps("raw", 0, bytes(8), bytes(16)))),)),
        "stat": Target(parse_stat, (b"7 (sh) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1\n",)),
    }
