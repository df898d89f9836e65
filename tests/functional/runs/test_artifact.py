"""The public artifact of a real pair: its contents, that a stranger can verify it, and that every change is refused."""

from __future__ import annotations

import base64
import contextlib
import copy
import functools
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from engine.attestation.measurement import Measurements
from engine.attestation.policy import default_policy
from engine.attestation.public_text import is_public_text
from engine.attestation.signers import TrustedKeys, trust_line, trusted_key
from engine.errors import GlasshouseError, UsageError
from engine.records.artifact import dump_artifact, parse_artifact
from engine.records.export import export_run
from engine.records.proofs import PROOFS, Case
from engine.records.reference import BundleValue, EnvironmentValue, remember
from engine.records.trust import Anchors, anchors
from engine.records.verify import Verification, tried, verify_bytes
from engine.store.home import database_path
from engine.store.reader import Reader
from engine.store.views import RunView
from engine.system.resources import data_path
from tests.functional.runs.support import Operator
from tests.unit.records.releases import release_folder, write_release

Finished = tuple[Operator, RunView]
Path_ = tuple[str | int, ...]


@pytest.fixture(scope="session")
def known(finished: Finished) -> Anchors:
    """The trust anchors of the operator's own home."""
    return anchors(finished[0].home)


def _bytes(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def _line(document: dict[str, Any]) -> str:
    """The operator's key as `key show` prints it for `--trust`."""
    return trust_line(bytes.fromhex(document["bundle"]["operator"]))


def _failed(verification: Verification) -> dict[str, str]:
    return {proof.name: proof.code for proof in verification.proofs if proof.status == "failed"}


def test_it_verifies_at_home(finished: Finished, exported: dict[str, Any], known: Anchors) -> None:
    verification = verify_bytes(_bytes(exported), known)
    assert _failed(verification) == {}
    assert {proof.status for proof in verification.proofs} == {"passed"}
    assert [proof.name for proof in verification.proofs] == list(PROOFS)
    assert (verification.genuine, verification.complete, verification.clean) == (True, True, True)
    assert verification.known
    assert "this home measured it on this machine" in next(
        proof.reason for proof in verification.proofs if proof.name == "environment"
    )
    assert verification.id == finished[1].summary.id
    assert len(verification.checks) == 19


def test_it_has_the_published_names_on_top(exported: dict[str, Any]) -> None:
    published = json.loads(data_path("published_rows.json").read_text())["loraRows"]
    ours = {"workload", "published", "scope"}  # fields of the facts file, not of the published rows
    names = {name for row in published for name in row} - ours
    assert len(names) > 15
    assert names <= exported.keys()


def test_it_fits_the_shipped_schema(exported: dict[str, Any]) -> None:
    schema = json.loads(data_path("schemas", "artifact.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(exported)
    assert not validator.is_valid(exported | {"hostPath": "/srv"})
    assert not validator.is_valid({name: value for name, value in exported.items() if name != "seed"})


def test_a_verifier_without_trusted_keys_gets_signer_unknown_and_every_other_proof(
    exported: dict[str, Any], tmp_path: Path
) -> None:
    verification = verify_bytes(_bytes(exported), anchors(tmp_path / "nobody"))
    assert _failed(verification) == {"signer": "signer_unknown"}
    assert [proof.name for proof in verification.proofs if proof.status == "unknown"] == ["environment"]
    assert [proof.status for proof in verification.proofs].count("passed") == len(PROOFS) - 2


def test_leaving_out_a_document_that_the_logs_mention_is_refused(exported: dict[str, Any], known: Anchors) -> None:
    for name in ("challenge", "evidence", "result", "policy", "lock"):
        failed = _failed(verify_bytes(_bytes(_replaced(exported, ("bundle", name), None)), known))
        assert failed["parts"] == "receipt_mismatch"
    for name in ("release", "zeroization"):
        assert not _accepts(_replaced(exported, ("bundle", "receipts", name), None), known)


def test_a_stranger_verifies_by_trusting_the_operators_key(exported: dict[str, Any], tmp_path: Path) -> None:
    verification = verify_bytes(_bytes(exported), anchors(tmp_path / "x", trust=[_line(exported)]))
    assert (verification.genuine, verification.complete, verification.known) == (True, True, False)


def _measured(exported: dict[str, Any]) -> dict[str, str]:
    body = next(one["body"] for one in exported["bundle"]["logs"]["pod"] if one["event"] == "enclave.measured")
    return {name: body[name] for name in ("bundle", "lock", "environment")}


def _environment(verification: Verification) -> tuple[str, str]:
    return next((proof.status, proof.reason) for proof in verification.proofs if proof.name == "environment")


def test_a_strangers_reference_makes_the_environment_known(exported: dict[str, Any], tmp_path: Path) -> None:
    measured, reference = _measured(exported), tmp_path / "reference.json"

    def judged(**values: list[str]) -> Verification:
        reference.write_text(json.dumps({"version": 1, "bundles": [], **values}))
        known = anchors(tmp_path / "x", trust=[_line(exported)], references=[reference])
        return verify_bytes(_bytes(exported), known)

    both = {"locks": [measured["lock"]], "environments": [measured["environment"]]}
    status, reason = _environment(judged(**both))
    assert (status, "unsigned" in reason) == ("passed", True)
    assert judged(bundles=[measured["bundle"]], environments=[measured["environment"]]).known
    # Files that are known do not make the lock's names true, and the reverse.
    assert measured["lock"] in _environment(judged(environments=[measured["environment"]]))[1]
    assert measured["environment"] in _environment(judged(locks=[measured["lock"]]))[1]
    assert not judged().known


def test_a_signed_release_makes_it_known_and_the_verifier_names_it(exported: dict[str, Any], tmp_path: Path) -> None:
    released, key = tmp_path / "reference", tmp_path / "release.pem"
    made = release_folder(released, key)
    measured = _measured(exported)
    values = msgspec.structs.replace(
        made,
        bundles=(*made.bundles, BundleValue(lock=made.locks[0].name, sha256=measured["bundle"])),
        environments=(EnvironmentValue(platform="here", lock=made.locks[0].name, sha256=measured["environment"]),),
    )
    write_release(released, key, values)
    shipped = anchors(tmp_path / "x", trust=[_line(exported)], shipped_folder=released)
    verification = verify_bytes(_bytes(exported), shipped)
    assert verification.known, _environment(verification)
    assert f"signed reference values of release {made.release}" in _environment(verification)[1]


def test_what_an_allocation_measured_of_itself_covers_this_homes_rows_only(
    exported: dict[str, Any], finished: Finished, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(finished[0].home / "keys", home / "keys")
    remember(home, Measurements(**_measured(exported)), on_this_machine=False)
    status, reason = _environment(verify_bytes(_bytes(exported), anchors(home)))
    assert (status, "vouched for by nobody" in reason) == ("passed", True)
    shutil.rmtree(home / "keys")
    assert not verify_bytes(_bytes(exported), anchors(home, trust=[_line(exported)])).known
    remember(home, Measurements(**_measured(exported)), on_this_machine=True)
    assert verify_bytes(_bytes(exported), anchors(home, trust=[_line(exported)])).known


def test_an_unknown_bundle_is_reported(
    exported: dict[str, Any], finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if this version of the project built another bundle.
    monkeypatch.setattr("engine.records.trust.rebuilt", lambda _: "0" * 64)
    assert _failed(verify_bytes(_bytes(exported), anchors(finished[0].home))) == {"measurement": "measurement_unknown"}
    reference = tmp_path / "reference.json"
    digest = next(
        e["body"]["bundleDigest"] for e in exported["bundle"]["logs"]["pod"] if e["event"] == "launch.accepted"
    )
    reference.write_text(json.dumps({"version": 1, "bundles": [digest]}))
    assert verify_bytes(_bytes(exported), anchors(finished[0].home, references=[reference])).genuine
    reference.write_text(json.dumps({"version": 1, "bundles": [digest], "environments": ["0" * 64]}))
    verification = verify_bytes(_bytes(exported), anchors(finished[0].home, references=[reference]))
    assert _failed(verification) == {"measurement": "measurement_unknown"}


def test_a_policy_looser_than_the_verifiers_is_refused(exported: dict[str, Any], known: Anchors) -> None:
    from dataclasses import replace

    strict = msgspec.structs.replace(
        default_policy(), required_controls=(*default_policy().required_controls, "network_namespace")
    )
    verification = verify_bytes(_bytes(exported), replace(known, policies=(strict,)))
    assert _failed(verification) == {"policy": "policy_loosened"}


def test_the_challenge_must_be_the_requested_one(exported: dict[str, Any], finished: Finished) -> None:
    home = finished[0].home
    assert verify_bytes(_bytes(exported), anchors(home, challenge="a buyer's text")).genuine
    verification = verify_bytes(_bytes(exported), anchors(home, challenge="another text"))
    assert _failed(verification) == {"challenge": "challenge_mismatch"}


def test_a_summary_states_what_it_leaves_out(finished: Finished, known: Anchors) -> None:
    operator, view = finished
    with Reader(operator.home) as reader:
        short = dump_artifact(export_run(reader, view.summary.id, summary=True))
    assert short["bundle"]["series"] is None
    assert short["bundle"]["leftOut"] == ["series"]
    verification = verify_bytes(_bytes(short), known)
    assert (verification.genuine, verification.complete, verification.clean) == (True, False, None)
    assert [proof.name for proof in verification.proofs if proof.status == "not_checked"] == [
        "series",
        "training",
        "row",
    ]
    short["bundle"]["leftOut"] = []
    assert _failed(verify_bytes(_bytes(short), known)) == {"series": "series_mismatch"}


def _leaves(value: Any, at: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every scalar value of a document, and every empty list and object."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, (*at, name))
    elif isinstance(value, list) and value:
        for place, inner in enumerate(value):
            yield from _leaves(inner, (*at, place))
    else:
        yield at, value


def _changed(value: Any) -> list[Any]:
    """Other values of the same type, and of another."""
    if isinstance(value, bool):
        return [not value, None]
    if isinstance(value, int):
        return [value + 1, None]
    if isinstance(value, float):
        return [value * (1 + 1e-9) + 1e-12, None]
    if isinstance(value, str):
        middle = len(value) // 2
        other = "A" if value[middle : middle + 1] != "A" else "B"
        first = ("0" if value[:1] != "0" else "1") + value[1:]
        return [value[:middle] + other + value[middle + 1 :], first, value[:-1] or "x", value + "0", None]
    if value is None:
        return ["x", 0]
    return [[{}], {"x": 1}, None]


def _replaced(document: dict[str, Any], at: Path_, value: Any) -> dict[str, Any]:
    """The document with one value changed; everything else is shared with the original."""
    changed = copy.copy(document)
    inner: Any = changed
    for step in at[:-1]:
        inner[step] = copy.copy(inner[step])
        inner = inner[step]
    inner[at[-1]] = value
    return changed


def _accepts(document: dict[str, Any], known: Anchors) -> bool:
    """Whether no proof fails; stops at the first that does, because thousands of changes are tried."""
    try:
        artifact = parse_artifact(_bytes(document))
    except GlasshouseError:
        return False
    if artifact.bundle is None:
        return False
    case = Case(artifact, artifact.bundle, known)
    return all(tried(name, proof, case).status != "failed" for name, proof in PROOFS.items())


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache the check of each text, because thousands of changed artifacts share most of their texts."""
    monkeypatch.setattr("engine.records.public.is_public_text", functools.cache(is_public_text))


@pytest.mark.usefixtures("remembered")
def test_every_single_field_change_is_refused(exported: dict[str, Any], known: Anchors) -> None:
    accepted = []
    count = 0
    leaves = list(_leaves(exported))
    assert len(leaves) > 800
    for at, value in leaves:
        for other in _changed(value)[: 5 if len(at) < 5 else 1]:
            count += 1
            if _accepts(_replaced(exported, at, other), known):
                accepted.append((at, other))
    assert accepted == []
    assert count > 1000


@pytest.mark.usefixtures("remembered")
def test_every_field_that_is_dropped_or_added_is_refused(exported: dict[str, Any], known: Anchors) -> None:
    parents = {at[:-1] for at, _ in _leaves(exported)}
    accepted = []
    for parent in parents:
        inner: Any = exported
        for step in parent:
            inner = inner[step]
        if isinstance(inner, dict):
            for name in inner:
                fewer = {other: value for other, value in inner.items() if other != name}
                if _accepts(_replaced(exported, parent, fewer) if parent else fewer, known):
                    accepted.append((*parent, name))
            more = {**inner, "added": 1}
            if _accepts(_replaced(exported, parent, more) if parent else more, known):
                accepted.append((*parent, "added"))
        else:
            fewer_of = [[*inner[:place], *inner[place + 1 :]] for place in {0, len(inner) - 1}]
            accepted += [parent for fewer in fewer_of if _accepts(_replaced(exported, parent, fewer), known)]
            if len(inner) > 1 and inner[::-1] != inner and _accepts(_replaced(exported, parent, inner[::-1]), known):
                accepted.append((*parent, "reversed"))
    assert accepted == []


@pytest.mark.usefixtures("remembered")
def test_any_changed_bit_of_a_series_is_refused(exported: dict[str, Any], known: Anchors) -> None:
    for kind in ("raw", "protected"):
        data = bytearray(base64.b64decode(exported["bundle"]["series"][kind]["data"]))
        for place in range(0, len(data), 7):
            data[place] ^= 1
            other = base64.b64encode(bytes(data)).decode()
            assert not _accepts(_replaced(exported, ("bundle", "series", kind, "data"), other), known)
            data[place] ^= 1


def _resigned(exported: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The row rewritten and signed again by an attacker who has none of the keys and uses new ones."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from engine.attestation.receipts import RUN, delegate, sign, statement
    from engine.wire import digest_of

    forged = copy.deepcopy(exported)
    change(forged)
    operator, run = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    bundle = forged["bundle"]
    row = {name: value for name, value in forged.items() if name not in ("format", "bundle")}
    delegation = delegate(
        operator,
        run.public_key().public_bytes_raw(),
        run_id=forged["id"],
        plan_digest=forged["planDigest"],
        seconds=1e6,
    )
    body = json.loads(base64.b64decode(bundle["receipts"]["run"]["payload"]))["predicate"]
    body |= {"row_sha256": digest_of(row), "delegation_sha256": digest_of(delegation)}
    subjects = {
        s["name"]: s["digest"]["sha256"]
        for s in json.loads(base64.b64decode(bundle["receipts"]["run"]["payload"]))["subject"]
    }
    bundle["receipts"]["run"] = sign(statement(RUN, subjects | {"row": digest_of(row)}, body), run)
    bundle |= {"delegation": delegation, "operator": operator.public_key().public_bytes_raw().hex()}
    return forged


def test_a_row_rewritten_by_another_operator_is_refused_even_when_that_operator_is_trusted(
    exported: dict[str, Any],
) -> None:
    forged = _resigned(exported, lambda document: document.update(overheadPct=-5.0))
    trusted = Anchors(
        trusted=TrustedKeys.given([trusted_key(_line(forged))]),
        policies=(default_policy(),),
    )
    failed = _failed(verify_bytes(_bytes(forged), trusted))
    assert failed["row"] == "row_mismatch"
    assert {"challenge", "release", "zeroization"} <= failed.keys()


def test_malformed_and_unsigned_artifacts_raise_typed_errors(known: Anchors, exported: dict[str, Any]) -> None:
    for text in (b"", b"[]", b"{}", b"\xff", b'{"format": "glasshouse-row/3"}', b'{"a": 1, "a": 2}', b"[" * 100_000):
        with pytest.raises(GlasshouseError) as caught:
            verify_bytes(text, known)
        assert caught.value.code == "artifact_malformed"
    for older in ("glasshouse-row/1", "glasshouse-row/2", "glasshouse-row/4"):
        with pytest.raises(GlasshouseError) as caught:
            verify_bytes(_bytes(exported | {"format": older}), known)
        assert caught.value.code == "artifact_version"
        assert older in caught.value.message
    with pytest.raises(GlasshouseError) as caught:
        verify_bytes(_bytes(exported | {"bundle": None}), known)
    assert caught.value.code == "artifact_unsigned"


def test_a_published_row_exports_without_a_bundle(tmp_path: Path, known: Anchors) -> None:
    with Reader(tmp_path / "empty") as reader:
        published = export_run(reader, "pub-lora-05b-15m")
        with pytest.raises(UsageError):
            export_run(reader, "nothing")
    document = dump_artifact(published)
    assert document["overheadPct"] == 0.86
    assert parse_artifact(_bytes(document)).bundle is None


def test_a_row_of_an_earlier_version_is_exported_by_that_version(finished: Finished, tmp_path: Path) -> None:
    operator, view = finished
    home = shutil.copytree(operator.home, tmp_path / "home", ignore=shutil.ignore_patterns("runs", "sockets"))
    with contextlib.closing(sqlite3.connect(database_path(home))) as connection, connection:
        key = "(SELECT key FROM runs WHERE id = ?)"
        without = f"UPDATE results SET body = json_remove(body, '$.rawUpdates') WHERE run = {key}"  # noqa: S608
        connection.execute(without, (view.summary.id,))
    with Reader(home) as reader, pytest.raises(UsageError) as caught:
        export_run(reader, view.summary.id)
    assert caught.value.code == "export_earlier_version"
    assert "rawUpdates" in caught.value.message


def test_verifying_loads_neither_torch_nor_the_network_nor_the_store(
    exported: dict[str, Any], finished: Finished, tmp_path: Path
) -> None:
    file = tmp_path / "row.json"
    file.write_bytes(_bytes(exported))
    script = (
        "import sys\nfrom glasshouse_tui.cli import main\n"
        "def refuse(event, args):\n"
        "    if event in ('socket.connect', 'socket.bind', 'sqlite3.connect', 'subprocess.Popen', 'os.fork'):\n"
        "        raise RuntimeError(event)\n"
        "sys.addaudithook(refuse)\n"
        f"code = main(['--home', {str(finished[0].home)!r}, 'verify', {str(file)!r}])\n"
        "heavy = ('torch', 'transformers', 'peft', 'asyncssh', 'textual', 'sqlite_utils')\n"
        "print('loaded', [name for name in heavy if name in sys.modules])\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "loaded []" in done.stdout


def test_the_shipped_schema_is_the_one_that_the_structs_make() -> None:
    script = data_path("make_artifact_schema.py")
    rendered = subprocess.run([sys.executable, str(script)], capture_output=True, check=True, timeout=120).stdout
    assert data_path("schemas", "artifact.schema.json").read_bytes() == rendered


def test_the_row_says_which_controls_were_seen(exported: dict[str, Any], finished: Finished) -> None:
    assert set(exported["enforcement"]) >= {"no_core", "no_dump", "seccomp", "landlock_fs", "yama"}
    assert exported["enforcement"]["seccomp"] == "enforced"
    assert finished[1].enforcement == exported["enforcement"]
