"""The key folder through rotation, revocation, backup and kills."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from engine.attestation.receipts import check_delegation, delegate
from engine.attestation.revocation import read_statements
from engine.attestation.rotation import revoke_key, rotate_keys
from engine.attestation.signers import TrustedKeys, judge_signer, trusted_key
from engine.sealing.operator_keys import OperatorKeys
from engine.sealing.pem import key_id
from tests.unit.attestation.key_folder import code_of, content, opened, sealed_to, states

PLAN = "01" * 32


def test_a_home_without_keys_trusts_nobody(tmp_path: Path) -> None:
    assert TrustedKeys.from_home(tmp_path / "none").keys == {}
    assert TrustedKeys.from_home(tmp_path).keys == {}
    assert code_of(lambda: rotate_keys(tmp_path / "none")) == code_of(lambda: rotate_keys(tmp_path)) == "key_missing"


def test_rotation_makes_new_keys_and_the_old_ones_stay_known(tmp_path: Path) -> None:
    old = OperatorKeys.ensure(tmp_path)
    changed = rotate_keys(tmp_path)
    new = OperatorKeys.load(tmp_path)
    assert new.signing_public == changed.keys.signing_public != old.signing_public
    assert new.recipient_public != old.recipient_public
    assert states(tmp_path) == {old.key_id: "retired", new.key_id: "current"}
    known = TrustedKeys.from_home(tmp_path).keys[old.key_id]
    assert known.valid_from is not None
    assert known.valid_until is not None
    assert known.valid_from <= known.valid_until
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_one_key_rotates_without_the_other(tmp_path: Path) -> None:
    first = OperatorKeys.ensure(tmp_path)
    second = rotate_keys(tmp_path, recipient=False).keys
    assert (second.recipient_public, second.past_recipients) == (first.recipient_public, ())
    assert second.signing_public != first.signing_public
    third = rotate_keys(tmp_path, signing=False)
    assert third.keys.signing_public == second.signing_public
    assert third.keys.recipient_public != first.recipient_public
    assert (third.publish, third.rotated) == ((), False)


def test_a_stranger_follows_the_statement_from_the_old_key(tmp_path: Path) -> None:
    old = OperatorKeys.ensure(tmp_path)
    changed = rotate_keys(tmp_path)
    trusted = TrustedKeys.given([trusted_key(old.signing_fingerprint)])
    now = datetime.now(UTC)
    assert code_of(lambda: judge_signer(changed.keys.signing_public, now, trusted=trusted)) == "signer_unknown"
    published = read_statements(changed.publish)
    assert judge_signer(changed.keys.signing_public, now, trusted=trusted, revocations=published).state == "current"


def test_adapters_of_every_former_recipient_key_still_open(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    keys = OperatorKeys.ensure(folder)
    files = []
    for _ in range(3):
        files.append(sealed_to(keys, tmp_path))
        keys = rotate_keys(folder).keys
    files.append(sealed_to(keys, tmp_path))
    loaded = OperatorKeys.load(folder)
    assert len({file.name for file in files}) == 4
    assert [opened(file, loaded) for file in files] == [b"weights of one run"] * 4
    stranger = sealed_to(OperatorKeys.generate(), tmp_path)
    assert code_of(lambda: opened(stranger, loaded)) == "adapter_wrong_key"
    files[0].write_bytes(files[0].read_bytes()[:-1])
    assert code_of(lambda: opened(files[0], loaded)) == "adapter_truncated"


def test_the_private_half_of_a_former_signing_key_is_gone(tmp_path: Path) -> None:
    old = OperatorKeys.ensure(tmp_path)
    pem = (tmp_path / "signing.pem").read_bytes()
    with (tmp_path / "signing.pem").open("rb") as old_file:  # stays the old file when its name is reused
        rotate_keys(tmp_path)
        assert old_file.read() == bytes(len(pem))
    secret = old.signing.private_bytes_raw()
    for data in content(tmp_path).values():
        assert secret not in data
        assert pem.splitlines()[1] not in data


def test_keys_keep_their_passphrase_or_get_a_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    old = OperatorKeys.ensure(folder, "first")
    file, before = sealed_to(old, tmp_path), content(folder)
    assert code_of(lambda: rotate_keys(folder)) == "key_passphrase_needed"
    assert code_of(lambda: rotate_keys(folder, "wrong")) == "key_passphrase_wrong"
    assert code_of(lambda: rotate_keys(folder, "first", new_passphrase="")) == "passphrase_invalid"
    assert content(folder) == before
    assert rotate_keys(folder, "first").keys.encrypted
    assert opened(file, OperatorKeys.load(folder, "first")) == b"weights of one run"
    rotate_keys(folder, "first", new_passphrase="second")
    assert code_of(lambda: OperatorKeys.load(folder, "first")) == "key_passphrase_wrong"
    assert opened(file, OperatorKeys.load(folder, "second")) == b"weights of one run"
    assert all(b"ENCRYPTED" in data for name, data in content(folder).items() if name.endswith(".pem"))
    assert set(states(folder).values()) == {"current", "retired"}  # known without a passphrase


def test_a_delegation_from_before_a_rotation_is_still_accepted(tmp_path: Path) -> None:
    keys = OperatorKeys.ensure(tmp_path)
    run_public = OperatorKeys.generate().signing_public
    delegation = delegate(keys.signing, run_public, run_id="run-1", plan_digest=PLAN, seconds=3600)
    issued = datetime.now(UTC)
    rotate_keys(tmp_path)
    rotate_keys(tmp_path)
    signer = judge_signer(keys.signing_public, issued, trusted=TrustedKeys.from_home(tmp_path))
    assert signer.state == "retired"
    assert signer.public is not None
    assert check_delegation(delegation, signer.public, run_id="run-1", plan_digest=PLAN) == run_public


def test_revoking_the_current_key_creates_a_new_one(tmp_path: Path) -> None:
    old = OperatorKeys.ensure(tmp_path)
    changed = revoke_key(tmp_path, reason="compromised", text="laptop stolen")
    assert changed.rotated
    assert states(tmp_path) == {old.key_id: "revoked", changed.keys.key_id: "current"}
    known = TrustedKeys.from_home(tmp_path)
    assert known.keys[old.key_id].revocation_text == "laptop stolen"
    ancient = datetime(2000, 1, 1, tzinfo=UTC)
    assert code_of(lambda: judge_signer(old.signing_public, ancient, trusted=known)) == "signer_revoked"
    published = read_statements(changed.publish)
    (revocation,) = published.revocations
    assert published.rotations == ()  # a compromised key must not introduce its successor
    assert (revocation.public, revocation.signer) == (old.signing_public.hex(),) * 2


@pytest.mark.parametrize("reason", ["superseded", "lost"])
def test_a_superseded_or_lost_key_still_introduces_its_successor(tmp_path: Path, reason: str) -> None:
    old = OperatorKeys.ensure(tmp_path)
    changed = revoke_key(tmp_path, reason=reason)  # type: ignore[arg-type]
    trusted = TrustedKeys.given([trusted_key(old.key_id)])
    published = read_statements(changed.publish)
    soon = datetime.now(UTC) + timedelta(minutes=5)
    assert judge_signer(changed.keys.signing_public, soon, trusted=trusted, revocations=published).state == "current"
    assert (
        code_of(lambda: judge_signer(old.signing_public, soon, trusted=trusted, revocations=published))
        == "signer_revoked"
    )


def test_a_former_key_is_revoked_by_the_current_one_with_the_rotations_that_link_them(tmp_path: Path) -> None:
    first = OperatorKeys.ensure(tmp_path)
    rotate_keys(tmp_path)
    present = rotate_keys(tmp_path).keys
    changed = revoke_key(tmp_path, target=first.key_id, reason="compromised")
    assert not changed.rotated
    assert changed.keys.signing_public == present.signing_public
    published = read_statements(changed.publish)
    assert (len(published.rotations), published.revocations[0].signer) == (2, present.signing_public.hex())
    trusted = TrustedKeys.given([trusted_key(first.key_id)])
    now = datetime.now(UTC)
    for known, more in ((trusted, published), (TrustedKeys.from_home(tmp_path), read_statements([]))):
        assert code_of(lambda k=known, m=more: judge_signer(first.signing_public, now, trusted=k, revocations=m)) == (  # type: ignore[misc]
            "signer_revoked"
        )


def test_only_signing_keys_of_this_home_can_be_revoked_and_only_once_per_severity(tmp_path: Path) -> None:
    keys = OperatorKeys.ensure(tmp_path)
    before = content(tmp_path)
    for target in (key_id(keys.recipient_public), "ff" * 32):
        assert code_of(lambda name=target: revoke_key(tmp_path, target=name, reason="lost")) == "key_unknown"  # type: ignore[misc]
    assert code_of(lambda: revoke_key(tmp_path, reason="lost", text="a\nb")) == "revocation_text"
    assert content(tmp_path) == before
    revoke_key(tmp_path, reason="lost")
    assert code_of(lambda: revoke_key(tmp_path, target=keys.key_id, reason="superseded")) == "key_revoked"
    revoke_key(tmp_path, target=keys.key_id, reason="compromised")
    assert TrustedKeys.from_home(tmp_path).keys[keys.key_id].revocation == "compromised"
    assert code_of(lambda: revoke_key(tmp_path, target=keys.key_id, reason="compromised")) == "key_revoked"
