"""Operator keys at rest, their backup, and the key of a run."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from engine.errors import GlasshouseError, RefusedError, SealingError
from engine.sealing.backup import backup, restore
from engine.sealing.memory import random_keys
from engine.sealing.operator_keys import OperatorKeys, status
from engine.sealing.pem import fingerprint
from engine.sealing.run_key import RunKey, destroy_run_key


def code_of(caught: pytest.ExceptionInfo[GlasshouseError]) -> str:
    return caught.value.code


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_keys_are_created_once_and_loaded_again(tmp_path: Path) -> None:
    made = OperatorKeys.ensure(tmp_path / "keys")
    again = OperatorKeys.ensure(tmp_path / "keys")
    loaded = OperatorKeys.load(tmp_path / "keys")
    assert made.signing_public == again.signing_public == loaded.signing_public
    assert made.recipient_public == loaded.recipient_public
    assert made.signing_public != made.recipient_public
    assert not loaded.encrypted


def test_key_files_are_private_and_standard(tmp_path: Path) -> None:
    keys = OperatorKeys.ensure(tmp_path / "keys")
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "keys").iterdir()} == {0o600}
    loaded = load_pem_private_key((tmp_path / "keys" / "signing.pem").read_bytes(), None)
    assert loaded.public_key() == keys.signing.public_key()


def test_a_passphrase_protects_both_keys(tmp_path: Path) -> None:
    OperatorKeys.ensure(tmp_path, "correct horse")
    assert OperatorKeys.load(tmp_path, "correct horse").encrypted
    for name in ("signing.pem", "recipient.pem"):
        assert b"ENCRYPTED" in (tmp_path / name).read_bytes()
    with pytest.raises(SealingError) as caught:
        OperatorKeys.load(tmp_path, "wrong")
    assert code_of(caught) == "key_passphrase_wrong"
    with pytest.raises(SealingError) as caught:
        OperatorKeys.load(tmp_path)
    assert code_of(caught) == "key_passphrase_needed"


@pytest.mark.parametrize("passphrase", ["", "x" * 1024, "\ud800"])
def test_no_keys_are_created_with_an_invalid_passphrase(passphrase: str, tmp_path: Path) -> None:
    with pytest.raises(SealingError) as caught:
        OperatorKeys.ensure(tmp_path, passphrase)
    assert code_of(caught) == "passphrase_invalid"
    assert not status(tmp_path).present


def test_status_needs_no_passphrase(tmp_path: Path) -> None:
    assert not status(tmp_path / "none").present
    keys = OperatorKeys.ensure(tmp_path / "keys", "secret words")
    shown = status(tmp_path / "keys")
    assert shown.present
    assert shown.encrypted
    assert shown.signing_fingerprint == keys.signing_fingerprint == fingerprint(keys.signing_public)
    assert shown.recipient_fingerprint == keys.recipient_fingerprint
    assert keys.signing_fingerprint == f"SHA256:{keys.key_id}"


def test_private_keys_stay_out_of_the_representation() -> None:
    assert "PrivateKey" not in repr(OperatorKeys.generate())


def test_loading_creates_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(SealingError) as caught:
            OperatorKeys.load(folder)
        assert code_of(caught) == "key_missing"
    assert not (tmp_path / "none").exists()


def test_a_lost_recipient_key_is_reported_and_not_replaced(tmp_path: Path) -> None:
    OperatorKeys.ensure(tmp_path)
    (tmp_path / "recipient.pem").unlink()
    with pytest.raises(SealingError) as caught:
        OperatorKeys.ensure(tmp_path)
    assert code_of(caught) == "key_missing"


def test_keys_that_others_may_read_are_refused(tmp_path: Path) -> None:
    OperatorKeys.ensure(tmp_path)
    (tmp_path / "recipient.pem").chmod(0o640)
    with pytest.raises(SealingError) as caught:
        OperatorKeys.load(tmp_path)
    assert code_of(caught) == "key_permissions"


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("signing.pem", b"junk", "key_invalid"),
        ("signing.pem", b"", "key_invalid"),
        ("signing.pem", b"x" * 20_000, "key_invalid"),
        ("public.json", b"{}", "key_invalid"),
        ("public.json", b"junk", "key_invalid"),
    ],
)
def test_damaged_files_are_reported(name: str, content: bytes, code: str, tmp_path: Path) -> None:
    OperatorKeys.ensure(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SealingError) as caught:
        OperatorKeys.load(tmp_path)
    assert code_of(caught) == code


def test_keys_of_two_operators_do_not_mix(tmp_path: Path) -> None:
    OperatorKeys.ensure(tmp_path / "one")
    OperatorKeys.ensure(tmp_path / "two")
    (tmp_path / "one" / "recipient.pem").write_bytes((tmp_path / "two" / "recipient.pem").read_bytes())
    with pytest.raises(SealingError) as caught:
        OperatorKeys.load(tmp_path / "one")
    assert code_of(caught) == "key_mismatch"


@pytest.mark.parametrize(("place", "other"), [("signing.pem", "recipient.pem"), ("recipient.pem", "signing.pem")])
def test_the_wrong_kind_of_key_is_refused(place: str, other: str, tmp_path: Path) -> None:
    OperatorKeys.ensure(tmp_path)
    (tmp_path / place).write_bytes((tmp_path / other).read_bytes())
    with pytest.raises(SealingError) as caught:
        OperatorKeys.load(tmp_path)
    assert code_of(caught) == "key_invalid"


def test_an_interrupted_change_is_finished_by_the_next_reader(tmp_path: Path) -> None:
    OperatorKeys.ensure(tmp_path / "old")
    new = OperatorKeys.ensure(tmp_path / "new")
    incoming = tmp_path / "old" / ".incoming"
    incoming.mkdir()
    for name in ("signing.pem", "public.json"):
        (tmp_path / "new" / name).rename(incoming / name)
    (tmp_path / "new" / "recipient.pem").rename(tmp_path / "old" / "recipient.pem")
    (tmp_path / "old" / ".staging-dead").mkdir()
    assert OperatorKeys.load(tmp_path / "old").signing_public == new.signing_public
    assert not list((tmp_path / "old").glob(".[is]*"))


def test_processes_that_start_together_agree_on_the_keys(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from engine.sealing.operator_keys import OperatorKeys; "
        "print(OperatorKeys.ensure(Path(sys.argv[1])).key_id)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) for _ in range(4)
    ]
    printed = {process.communicate(timeout=300)[0] for process in started}
    assert len(printed) == 1
    assert all(process.returncode == 0 for process in started)


def test_a_home_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"in the way")
    with pytest.raises(SealingError) as caught:
        OperatorKeys.ensure(tmp_path / "keys")
    assert code_of(caught) == "key_folder_unusable"


def test_a_backup_restores_both_keys_elsewhere(tmp_path: Path) -> None:
    made = OperatorKeys.ensure(tmp_path / "keys")
    backup(tmp_path / "keys", tmp_path / "backup.json", "long passphrase")
    restored = restore(tmp_path / "backup.json", tmp_path / "new" / "keys", "long passphrase")
    assert (restored.signing_public, restored.recipient_public) == (
        made.signing_public,
        made.recipient_public,
    )
    assert restored.created == made.created
    assert not restored.encrypted


def test_a_backup_of_encrypted_keys_needs_their_passphrase(tmp_path: Path) -> None:
    made = OperatorKeys.ensure(tmp_path / "keys", "daily")
    backup(tmp_path / "keys", tmp_path / "backup.json", "vault", key_passphrase="daily")
    restored = restore(tmp_path / "backup.json", tmp_path / "new", "vault", key_passphrase="fresh")
    assert OperatorKeys.load(tmp_path / "new", "fresh").key_id == made.key_id
    assert restored.encrypted


def test_a_backup_is_one_private_file_without_the_keys_in_the_clear(tmp_path: Path) -> None:
    made = OperatorKeys.ensure(tmp_path / "keys")
    backup(tmp_path / "keys", tmp_path / "backup.json", "long passphrase")
    data = (tmp_path / "backup.json").read_bytes()
    assert stat.S_IMODE((tmp_path / "backup.json").stat().st_mode) == 0o600
    for secret in (made.signing.private_bytes_raw(), made.recipient.private_bytes_raw()):
        assert secret not in data
        assert secret.hex().encode() not in data


def test_a_backup_never_replaces_a_file(tmp_path: Path) -> None:
    OperatorKeys.ensure(tmp_path / "keys")
    (tmp_path / "backup.json").write_bytes(b"precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("backup.json", "dangling"):
        with pytest.raises(SealingError) as caught:
            backup(tmp_path / "keys", tmp_path / name, "long passphrase")
        assert code_of(caught) == "backup_exists"
    assert (tmp_path / "backup.json").read_bytes() == b"precious"


def test_a_backup_to_a_missing_folder_is_reported(tmp_path: Path) -> None:
    OperatorKeys.ensure(tmp_path / "keys")
    with pytest.raises(SealingError) as caught:
        backup(tmp_path / "keys", tmp_path / "no" / "folder" / "backup.json", "long passphrase")
    assert code_of(caught) == "backup_unwritable"


def test_restore_does_not_replace_other_keys_unless_forced(tmp_path: Path) -> None:
    made = OperatorKeys.ensure(tmp_path / "keys")
    OperatorKeys.ensure(tmp_path / "other", "theirs")
    before = snapshot(tmp_path / "other")
    backup(tmp_path / "keys", tmp_path / "backup.json", "long passphrase")
    with pytest.raises(SealingError) as caught:
        restore(tmp_path / "backup.json", tmp_path / "other", "long passphrase")
    assert code_of(caught) == "key_exists"
    assert snapshot(tmp_path / "other") == before
    assert restore(tmp_path / "backup.json", tmp_path / "keys", "long passphrase").key_id == made.key_id
    forced = restore(tmp_path / "backup.json", tmp_path / "other", "long passphrase", force=True)
    assert forced.key_id == OperatorKeys.load(tmp_path / "other").key_id == made.key_id


def test_a_wrong_passphrase_restores_nothing(tmp_path: Path) -> None:
    OperatorKeys.ensure(tmp_path / "keys")
    backup(tmp_path / "keys", tmp_path / "backup.json", "long passphrase")
    with pytest.raises(SealingError) as caught:
        restore(tmp_path / "backup.json", tmp_path / "new", "another")
    assert code_of(caught) == "key_passphrase_wrong"
    assert not status(tmp_path / "new").present


def test_a_changed_backup_restores_nothing(tmp_path: Path) -> None:
    OperatorKeys.ensure(tmp_path / "keys")
    backup(tmp_path / "keys", tmp_path / "backup.json", "long passphrase")
    honest = json.loads((tmp_path / "backup.json").read_bytes())
    changes = [
        ({"signing": honest["recipient"]}, "key_passphrase_wrong"),
        ({"created": "2020-01-01T00:00:00.000Z"}, "key_passphrase_wrong"),
        ({"version": 2}, "backup_invalid"),
        ({"extra": 1}, "backup_invalid"),
        ({"sealed": honest["sealed"][:-4]}, "backup_invalid"),
        ({"sealed": "é"}, "backup_invalid"),
        ({"kdf": {**honest["kdf"], "n": 2**30}}, "backup_invalid"),
        ({"kdf": {**honest["kdf"], "salt": "zz"}}, "backup_invalid"),
    ]
    for change, code in changes:
        (tmp_path / "changed.json").write_text(json.dumps({**honest, **change}))
        with pytest.raises(SealingError) as caught:
            restore(tmp_path / "changed.json", tmp_path / "new", "long passphrase")
        assert code_of(caught) == code, change


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 9000, b"\xff" * 100, b" " * 20_000])
def test_what_is_not_a_backup_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(SealingError) as caught:
        restore(tmp_path / "file", tmp_path / "new", "long passphrase")
    assert code_of(caught) == "backup_invalid"


def test_a_run_key_survives_a_restart_of_the_runner(tmp_path: Path) -> None:
    made = RunKey.create(tmp_path, "run-1")
    again = RunKey.load(tmp_path, "run-1")
    keys = random_keys(3)
    assert again.public == made.public
    assert again.open_keys(made.seal_keys(keys)) == keys
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    assert "PrivateKey" not in repr(made)


def test_a_run_key_is_never_created_twice(tmp_path: Path) -> None:
    RunKey.create(tmp_path, "run-1")
    with pytest.raises(SealingError) as caught:
        RunKey.create(tmp_path, "run-1")
    assert code_of(caught) == "run_key_exists"


def test_content_keys_of_another_run_do_not_open(tmp_path: Path) -> None:
    sealed = RunKey.create(tmp_path, "run-1").seal_keys(random_keys(1))
    for wrong in (sealed, b"", b"x" * 80):
        with pytest.raises(RefusedError) as caught:
            RunKey.load(tmp_path, "run-2").open_keys(wrong)
        assert code_of(caught) == "run_keys_wrong_binding"


def test_a_destroyed_run_key_is_gone(tmp_path: Path) -> None:
    RunKey.create(tmp_path, "run-1")
    destroy_run_key(tmp_path)
    destroy_run_key(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SealingError) as caught:
        RunKey.load(tmp_path, "run-1")
    assert code_of(caught) == "key_missing"
