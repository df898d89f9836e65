"""The key folder: killed during a change, read during a change, damaged, backed up and restored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.attestation.revocation import read_statements
from engine.attestation.rotation import revoke_key, rotate_keys
from engine.attestation.signers import TrustedKeys
from engine.errors import RefusedError, SealingError
from engine.sealing.backup import backup, restore
from engine.sealing.key_generations import read_ring
from engine.sealing.operator_keys import OperatorKeys
from tests.unit.attestation.key_folder import code_of, opened, sealed_to, states

# A backup of version 1, which has no ring.
OLD_BACKUP = (
    '{"created":"2026-11-23T01:10:46.787Z","format":"glasshouse/key-backup","kdf":{"n":65536,"name":"scrypt","p":1,"r":8,'
    '"salt":"d4c7aa23f7bf706da41ea811fd6ab796"},"recipient":"073e9a06e2a1660b482ee81bc8901afa3566a337d6ac08e908f20edf0a21'
    'c679","sealed":"gT2Pk7bUv9Y0Tu4/vNjRqkreYQaXyWUfid0GieyWI5RumhYO6X33RbUlQwNEWeoCX5gMSwRMH1eILTBxW9baTACqPgvuIDdEkpds'
    'YC+MXpRr7jPIKI8b8G/g04oh+E02BJqi+cS8cdBd+iChjapT3SNQMwaClPQW5JG/JFnZEC+dPGtaMKL/4Q==","signing":"325f256ee8f8830c760b'
    '327d6dcc2925b30bfb01ea7ea3347c3132c5ce0d06d7","version":1}\n'
)


def test_a_damaged_ring_is_reported_and_never_ignored(tmp_path: Path) -> None:
    OperatorKeys.ensure(tmp_path)
    rotate_keys(tmp_path)
    honest = json.loads((tmp_path / "ring.json").read_bytes())
    changes: list[tuple[dict[str, object], str]] = [
        ({"version": 2}, "key_invalid"),
        ({"more": 1}, "key_invalid"),
        ({"signing": "zz"}, "key_invalid"),
        ({"signing_made": "then"}, "key_invalid"),
        ({"\ud800": 1}, "key_invalid"),
        ({"past_signing": honest["past_signing"] * 2}, "key_invalid"),
        ({"statements": [{}]}, "revocation_invalid"),
        ({"statements": [{**honest["statements"][0], "payloadType": "text/plain"}]}, "rotation_invalid"),
    ]
    for change, code in changes:
        (tmp_path / "ring.json").write_text(json.dumps({**honest, **change}))
        assert code_of(lambda: TrustedKeys.from_home(tmp_path)) == code, change
    (tmp_path / "ring.json").write_text(json.dumps({**honest, "past_recipients": []}))
    assert len(OperatorKeys.load(tmp_path).past_recipients) == 0
    (tmp_path / "ring.json").write_text(
        json.dumps({**honest, "signing": honest["past_signing"][0]["public"], "past_signing": []})
    )
    assert code_of(lambda: OperatorKeys.load(tmp_path)) == "key_mismatch"


def test_a_lost_former_recipient_key_is_reported(tmp_path: Path) -> None:
    OperatorKeys.ensure(tmp_path)
    rotate_keys(tmp_path)
    (former,) = tmp_path.glob("recipient-*.pem")
    former.write_bytes((tmp_path / "recipient.pem").read_bytes())
    assert code_of(lambda: OperatorKeys.load(tmp_path)) == "key_mismatch"
    former.write_bytes((tmp_path / "signing.pem").read_bytes())  # a signing key is not accepted as a recipient key
    assert code_of(lambda: OperatorKeys.load(tmp_path)) == "key_invalid"
    former.unlink()
    assert code_of(lambda: OperatorKeys.load(tmp_path)) == "key_missing"


KILLER = """
import os, signal, sys
from pathlib import Path
from engine.attestation.rotation import rotate_keys
folder, last = Path(sys.argv[1]), int(sys.argv[2])
changes = 0
def count(event, arguments):
    global changes
    # every change of the file system
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"):
        changes += 1
        if changes == last:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
rotate_keys(folder)
"""
FORKED = """
import os, shutil, sys
from pathlib import Path
from engine.attestation.rotation import rotate_keys  # imported once, so that a kill costs a fork
source, target, script = sys.argv[1:4]
step, done = 0, False
while not done:
    step += 1
    shutil.copytree(source, f"{target}/{step}")
    child = os.fork()
    if child == 0:
        sys.argv = ["", f"{target}/{step}", str(step)]
        sys.stdout = open(os.devnull, "w")
        exec(script)
        os._exit(0)
    done = os.WIFEXITED(os.waitpid(child, 0)[1])
print(step)
"""


def test_killed_at_any_step_the_folder_has_the_old_keys_or_the_new_ones(tmp_path: Path) -> None:
    source, target = tmp_path / "keys", tmp_path / "killed"
    OperatorKeys.ensure(source)
    old = rotate_keys(source).keys
    sealed = sealed_to(old, tmp_path)
    target.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(source), str(target), KILLER],
        capture_output=True,
        text=True,
        check=True,
    )
    steps = int(done.stdout.split()[-1])
    assert steps > 20
    outcomes = []
    for step in range(1, steps + 1):
        folder = target / str(step)
        seen = TrustedKeys.from_home(folder)  # before an interrupted change is finished
        keys = OperatorKeys.load(folder)
        is_new = keys.key_id != old.key_id
        assert seen.keys[keys.key_id].state == "current"
        assert len(seen.keys) == len(read_statements(keys.ring.statements).rotations) + 1 == (3 if is_new else 2)
        assert (seen.keys[old.key_id].state == "current") is not is_new
        assert opened(sealed, keys) == b"weights of one run"
        assert TrustedKeys.from_home(folder) == seen
        assert not list(folder.glob(".[is]*"))
        outcomes.append(is_new)
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


def test_a_reader_sees_a_consistent_state_of_a_changing_folder(tmp_path: Path) -> None:
    first = OperatorKeys.ensure(tmp_path)
    script = (
        "import sys; from pathlib import Path; from engine.attestation.rotation import rotate_keys\n"
        "for _ in range(12): rotate_keys(Path(sys.argv[1]))"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) as writer:
        known = 1
        while writer.poll() is None:
            seen = states(tmp_path)
            assert first.key_id in seen
            assert list(seen.values()).count("current") == 1
            assert len(seen) >= known
            known = len(seen)
    assert writer.returncode == 0
    assert len(states(tmp_path)) == 13


BETWEEN = """
import sys
from pathlib import Path
from engine.attestation.rotation import rotate_keys
from engine.attestation.signers import TrustedKeys
from tests.unit.attestation.key_folder import code_of, opened, sealed_to, states
folder, pending = Path(sys.argv[1]), [True]
def rotate_between(event, arguments):
    if event == "open" and arguments[0] == str(folder / "public.json") and pending:
        pending.clear()
        rotate_keys(folder)
sys.addaudithook(rotate_between)
print(*(key.state for key in TrustedKeys.from_home(folder).keys.values()))
"""


def test_the_first_rotation_may_happen_between_two_reads(tmp_path: Path) -> None:
    OperatorKeys.ensure(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", BETWEEN, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.split() == ["current", "retired"]


def test_a_backup_contains_the_whole_ring(tmp_path: Path) -> None:
    folder, there = tmp_path / "keys", tmp_path / "there"
    first = OperatorKeys.ensure(folder)
    file = sealed_to(first, tmp_path)
    rotate_keys(folder)
    revoke_key(folder, target=first.key_id, reason="superseded")
    backup(folder, tmp_path / "backup", "vault")
    restored = restore(tmp_path / "backup", there, "vault", key_passphrase="daily")
    assert opened(file, restored) == b"weights of one run"
    assert TrustedKeys.from_home(there) == TrustedKeys.from_home(folder)
    assert read_ring(there) == read_ring(folder)
    honest = json.loads((tmp_path / "backup").read_bytes())
    for change in ({"ring": None}, {"version": 1}, {"ring": {**honest["ring"], "statements": []}}):
        (tmp_path / "changed").write_text(json.dumps({**honest, **change}))
        code = code_of(lambda: restore(tmp_path / "changed", tmp_path / "new", "vault"))
        assert code in ("backup_invalid", "key_passphrase_wrong")
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").glob("*.pem"))


def test_a_backup_from_before_rings_restores_and_leaves_no_former_keys_of_others(tmp_path: Path) -> None:
    (tmp_path / "old").write_text(OLD_BACKUP)
    OperatorKeys.ensure(tmp_path / "keys")
    rotate_keys(tmp_path / "keys")
    assert code_of(lambda: restore(tmp_path / "old", tmp_path / "keys", "an old passphrase")) == "key_exists"
    keys = restore(tmp_path / "old", tmp_path / "keys", "an old passphrase", force=True)
    assert keys.signing_fingerprint == "SHA256:34191e5f6f54d668f74bda1473bb54e867087246784789ac1ce02597d6f6577c"
    assert states(tmp_path / "keys") == {keys.key_id: "current"}
    assert not list((tmp_path / "keys").glob("recipient-*.pem"))


def test_an_older_backup_undoes_no_revocation(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    stolen = OperatorKeys.ensure(folder)
    backup(folder, tmp_path / "backup", "vault")
    fresh = revoke_key(folder, reason="compromised").keys
    restored = restore(tmp_path / "backup", folder, "vault", force=True)
    assert restored.key_id == stolen.key_id
    assert states(folder) == {stolen.key_id: "revoked", fresh.key_id: "retired"}


def test_errors_about_keys_contain_no_secrets(tmp_path: Path) -> None:
    keys = OperatorKeys.ensure(tmp_path)
    rotated = rotate_keys(tmp_path, new_passphrase="open sesame").keys
    halves = [*(private.private_bytes_raw() for private in (keys.signing, keys.recipient))]
    halves += [rotated.signing.private_bytes_raw(), rotated.recipient.private_bytes_raw()]
    pems = [line for path in tmp_path.glob("*.pem") for line in path.read_bytes().splitlines()[1:-1]]
    for name in ("ring.json", "public.json", "recipient.pem", "signing.pem"):
        whole = (tmp_path / name).read_bytes()
        for data in (whole[: len(whole) // 2], b"{" + whole[40:], b""):
            (tmp_path / name).write_bytes(data)
            with pytest.raises((SealingError, RefusedError)) as caught:
                OperatorKeys.load(tmp_path, "open sesame")
            chain = [caught.value, caught.value.__cause__, caught.value.__context__]
            shown = " ".join([repr(error) for error in chain] + [str(caught.value.as_dict()), repr(rotated)])
            for secret in [*(half.hex() for half in halves), *map(repr, halves), *(pem.decode() for pem in pems)]:
                assert secret not in shown, name
            assert "open sesame" not in shown
        (tmp_path / name).write_bytes(whole)
    assert OperatorKeys.load(tmp_path, "open sesame").key_id == rotated.key_id
