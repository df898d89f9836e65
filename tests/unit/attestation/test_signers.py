"""Which signers are accepted: trusted keys, their rotations, and their revocations."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from engine.attestation.revocation import (
    REVOCATION,
    ROTATION,
    Kind,
    Statements,
    read_revocation,
    read_revocations,
    read_rotation,
    read_statements,
    revocation_statement,
    rotation_statement,
    statements_to_bytes,
)
from engine.attestation.signers import GRACE, TrustedKey, TrustedKeys, judge_signer, trust_line, trusted_key
from engine.attestation.statements import sign, statement
from engine.errors import GlasshouseError, UsageError
from engine.sealing.pem import fingerprint, key_id

A, B, C, THIEF = (Ed25519PrivateKey.generate() for _ in range(4))
T0 = datetime(2026, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(GlasshouseError) as caught:
        call()
    return caught.value.code


def trust(*keys: Ed25519PrivateKey) -> TrustedKeys:
    return TrustedKeys.given(trusted_key(fingerprint(raw(key))) for key in keys)


def rotation(old: Ed25519PrivateKey, new: Ed25519PrivateKey, days: float = 0) -> dict[str, Any]:
    return rotation_statement(old, new, at=T0 + days * DAY)


def revoked(key: Ed25519PrivateKey, signer: Ed25519PrivateKey, reason: Kind, days: float = 0) -> dict[str, Any]:
    return revocation_statement(raw(key), signer, reason=reason, at=T0 + days * DAY)


def judged(key: Ed25519PrivateKey, days: float, trusted: TrustedKeys, *envelopes: dict[str, Any]) -> str:
    """The state of an accepted signer, or the reason code of the refusal."""
    try:
        return judge_signer(raw(key), T0 + days * DAY, trusted=trusted, revocations=read_statements(envelopes)).state
    except GlasshouseError as error:
        return error.code


def test_only_trusted_signers_are_accepted() -> None:
    assert judged(A, 0, trust(A, B)) == "current"
    assert judged(THIEF, 0, trust(A, B)) == "signer_unknown"
    assert judged(A, 0, TrustedKeys({})) == "signer_unknown"


def test_a_time_without_a_time_zone_is_refused() -> None:
    assert refusal(lambda: judge_signer(raw(A), datetime(2026, 5, 1), trusted=trust(A))) == "predicate_malformed"


def test_rotations_are_followed_from_a_trusted_key() -> None:
    chain = (rotation(B, C, 2), rotation(A, B, 1))
    assert judged(C, 3, trust(A), *chain) == "current"
    assert judged(B, 1.5, trust(A), *chain) == "retired"
    assert judged(A, 0, trust(C), *chain) == "signer_unknown"  # trust follows rotations forwards only
    assert judged(C, 3, trust(A), chain[0]) == "signer_unknown"


def test_a_retired_key_is_not_accepted_for_new_delegations() -> None:
    assert judged(A, 0.9, trust(A), rotation(A, B, 1)) == "retired"
    assert judged(A, 1 + GRACE / DAY, trust(A), rotation(A, B, 1)) == "retired"  # a run was starting
    assert judged(A, 1 + 2 * GRACE / DAY, trust(A), rotation(A, B, 1)) == "signer_unknown"


@pytest.mark.parametrize("signer", [A, B, C])
def test_a_key_is_revoked_by_itself_or_by_a_successor(signer: Ed25519PrivateKey) -> None:
    chain = (rotation(A, B, 1), rotation(B, C, 2))
    assert judged(A, 0, trust(A), *chain, revoked(A, signer, "compromised", 3)) == "signer_revoked"


def test_a_revocation_by_anybody_else_is_refused_and_not_ignored() -> None:
    assert judged(A, 0, trust(A), revoked(A, THIEF, "compromised")) == "revocation_invalid"
    assert judged(B, 3, trust(A), rotation(A, B, 1), revoked(B, A, "compromised")) == "revocation_invalid"
    assert judged(B, 0, trust(A, B), revoked(A, THIEF, "compromised")) == "current"  # it is not about this signer


@pytest.mark.parametrize("days", [-900, 0, 900])
def test_nothing_that_a_compromised_key_signed_is_accepted_whatever_its_date(days: float) -> None:
    assert judged(A, days, trust(A), revoked(A, A, "compromised", 1)) == "signer_revoked"


@pytest.mark.parametrize("reason", ["superseded", "lost"])
def test_earlier_rows_of_a_superseded_or_lost_key_are_accepted(reason: Kind) -> None:
    statement_ = revoked(A, A, reason, 1)
    assert judged(A, 0.999, trust(A), statement_) == "revoked"
    assert judged(A, 1, trust(A), statement_) == "signer_revoked"
    assert judged(A, 2, trust(A), statement_) == "signer_revoked"


def test_of_two_revocations_the_more_severe_then_the_earlier_applies() -> None:
    for order in (1, -1):
        soft, hard = revoked(A, A, "lost", 1), revoked(A, A, "compromised", 5)
        assert judged(A, 0, trust(A), *(soft, hard)[::order]) == "signer_revoked"
        late, early = revoked(A, A, "lost", 5), revoked(A, A, "superseded", 1)
        assert judged(A, 3, trust(A), *(late, early)[::order]) == "signer_revoked"


def test_a_compromised_key_introduces_no_other_key() -> None:
    """A thief with A's key could write both statements; only a key that is trusted itself remains trusted."""
    statements = (rotation(A, THIEF, 1), revoked(A, A, "compromised", 2))
    assert judged(THIEF, 3, trust(A), *statements) == "signer_unknown"
    assert judged(B, 3, trust(A, B), rotation(A, B, 1), revoked(A, B, "compromised", 2)) == "current"


def test_a_superseded_key_introduces_keys_only_until_its_revocation() -> None:
    assert judged(B, 3, trust(A), rotation(A, B, 1), revoked(A, A, "superseded", 1)) == "current"
    assert judged(B, 3, trust(A), rotation(A, B, 2), revoked(A, A, "superseded", 1)) == "signer_unknown"


def test_a_thief_of_a_retired_key_cannot_introduce_a_key() -> None:
    honest, thief = rotation(A, B, 1), rotation(A, THIEF, 2)
    assert judged(THIEF, 3, trust(A), honest, thief) == "signer_unknown"
    assert judged(THIEF, 3, trust(A, B), honest, thief) == "signer_unknown"
    assert judged(B, 3, trust(A, B), honest, thief) != "signer_unknown"  # trusted itself
    earlier = rotation(A, THIEF, 0.5)  # a thief chooses the date
    assert judged(THIEF, 3, trust(A), honest, earlier) == "signer_unknown"


def test_following_circular_rotations_terminates() -> None:
    assert judged(B, 0, trust(A), rotation(A, B), rotation(B, A)) == "retired"


def test_a_key_known_twice_keeps_the_narrower_limits() -> None:
    known = TrustedKey(key_id(raw(A)), raw(A), valid_until=T0)
    both = trust(A) | TrustedKeys.given([known])
    assert both.keys[key_id(raw(A))] == known
    assert judged(A, 1, both) == judged(A, 1, TrustedKeys.given([known]) | trust(A)) == "signer_unknown"


def pem(key: Any) -> bytes:
    data: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return data


def test_a_trusted_key_is_accepted_in_every_documented_form(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(pem(A.public_key()))
    (tmp_path / "key.pub").write_text(trust_line(raw(A)) + "\n")
    (tmp_path / "print").write_text(fingerprint(raw(A)) + "\n")
    texts = [fingerprint(raw(A)), key_id(raw(A)), f" {trust_line(raw(A))}\n"]
    forms: list[str | Path] = [*texts, *tmp_path.iterdir(), *map(str, tmp_path.iterdir())]
    for given in forms:
        assert trusted_key(given).key_id == key_id(raw(A)), given
    assert trusted_key(tmp_path / "key.pem").public == raw(A)


def test_what_is_not_a_public_key_is_refused_as_a_trusted_key(tmp_path: Path) -> None:
    private = A.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    contents = {
        "empty": b"",
        "junk": b"\xff\x00junk",
        "two": f"{key_id(raw(A))}\n{key_id(raw(B))}\n".encode(),
        "large": key_id(raw(A)).encode() + b"\n" * 20_000,
        "private.pem": private,
        "recipient.pem": pem(X25519PrivateKey.generate().public_key()),
        "broken.pem": b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    texts = ["", "SHA256:", "SHA256:" + "g" * 64, "a" * 63, "ed25519:00", "\0", "x" * 5000, "A" * 64]
    forms: list[str | Path] = [*texts, *(tmp_path / name for name in contents), tmp_path]
    for given in forms:
        with pytest.raises(UsageError) as caught:
            trusted_key(given)
        assert caught.value.code == "trust_invalid", given
        assert caught.value.exit_code == 2
        assert private.splitlines()[1].decode() not in str(caught.value)
        assert ("private key" in caught.value.message) is (given == tmp_path / "private.pem")


def test_statements_survive_the_round_trip_through_a_file(tmp_path: Path) -> None:
    made = [rotation(A, B, 1), revoked(A, B, "lost", 2)]
    (tmp_path / "both").write_bytes(statements_to_bytes(made))
    (tmp_path / "one").write_bytes(msgspec.json.encode(made[1]))
    assert read_revocations([tmp_path / "both"]) == read_statements(made)
    assert read_revocations([tmp_path / "one"]) == Statements(revocations=(read_revocation(made[1]),))
    body = read_revocation(made[1])
    assert (body.reason, body.key_id, body.revoked_at) == ("lost", key_id(raw(A)), T0 + 2 * DAY)


@pytest.mark.parametrize("content", [b"", b"\n", b"{}", b"[]", b"junk\n", b"\xff", b"[" * 9000, b"1"])
def test_a_file_without_statements_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    assert refusal(lambda: read_revocations([tmp_path / "file"])) == "revocation_invalid"
    assert refusal(lambda: read_revocations([tmp_path / "none"])) == "revocation_unreadable"


def test_a_file_of_statements_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b" " * 2_000_000)
    assert refusal(lambda: read_revocations([tmp_path / "file"])) == "revocation_unreadable"


def forged(kind: str, good: msgspec.Struct, change: dict[str, Any], *signers: Ed25519PrivateKey) -> dict[str, Any]:
    body = {**msgspec.to_builtins(good), **change}
    subjects = {"key": key_id(raw(A))}
    if kind == ROTATION:
        subjects = {"old-key": key_id(raw(A)), "new-key": key_id(raw(B))}
    return sign(statement(kind, subjects, body), *signers)


def test_a_rotation_needs_both_signatures_and_its_exact_form() -> None:
    good = read_rotation(rotation(A, B))
    assert read_rotation(forged(ROTATION, good, {}, A, B)) == good
    for change, signers in (
        ({}, (A,)),
        ({}, (B,)),
        ({}, (A, THIEF)),
        ({"new_public": raw(THIEF).hex()}, (A, THIEF)),  # the subjects name another
        ({"rotated": "yesterday"}, (A, B)),
        ({"rotated": "2026-05-01T00:00:00"}, (A, B)),
        ({"rotated": "9999-12-31T23:59:59Z"}, (A, B)),
        ({"rotated": "2026-13-01T00:00:00Z"}, (A, B)),
        ({"new_public": raw(A).hex()}, (A,)),
        ({"old_public": 5}, (A, B)),
        ({"more": 1}, (A, B)),
    ):
        envelope = forged(ROTATION, good, change, *signers)
        assert refusal(lambda made=envelope: read_rotation(made)) == "rotation_invalid"  # type: ignore[misc]
    assert refusal(lambda: read_rotation(revoked(A, A, "lost"))) == "rotation_invalid"


def test_a_revocation_needs_its_signature_and_its_exact_form() -> None:
    good = read_revocation(revoked(A, A, "lost"))
    assert read_revocation(forged(REVOCATION, good, {}, A)) == good
    for change, signer in (
        ({}, THIEF),
        ({"public": raw(B).hex()}, A),
        ({"public": "zz"}, A),
        ({"reason": "bored"}, A),
        ({"text": "x" * 201}, A),
        ({"text": "\x1b[2J"}, A),
        ({"revoked": "never"}, A),
        ({"revoked": "2026-05-01"}, A),
        ({"signer": None}, A),
        ({"more": 1}, A),
    ):
        envelope = forged(REVOCATION, good, change, signer)
        assert refusal(lambda made=envelope: read_revocation(made)) == "revocation_invalid"  # type: ignore[misc]
    assert refusal(lambda: read_revocation(rotation(A, B))) == "revocation_invalid"


@pytest.mark.parametrize("text", ["x" * 201, "two\nlines", "\x1b[2J"])
def test_a_revocation_with_a_long_or_unprintable_text_is_refused(text: str) -> None:
    assert refusal(lambda: revocation_statement(raw(A), A, reason="lost", text=text, at=T0)) == "revocation_text"
