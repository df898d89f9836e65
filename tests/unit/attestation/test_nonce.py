"""Nonces: single use, one run, two minutes, across restarts and independent of the wall clock."""

from __future__ import annotations

import fcntl
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.attestation.nonce import MAX_NONCES, NONCE_BYTES, NonceLedger
from engine.errors import RefusedError
from engine.system.clock import boot_id, boot_seconds

if TYPE_CHECKING:
    from tests.unit.attestation.conftest import World


def refusal(ledger: NonceLedger, nonce: bytes, run_id: str = "run-1") -> str:
    with pytest.raises(RefusedError) as caught:
        ledger.redeem(nonce, run_id)
    return caught.value.code


def test_a_nonce_is_redeemed_once(world: World) -> None:
    nonce = world.ledger.issue("run-1")
    world.ledger.redeem(nonce, "run-1")
    assert len(nonce) == NONCE_BYTES
    assert refusal(world.ledger, nonce) == "nonce_replayed"


def test_use_is_remembered_by_a_restarted_runner(world: World) -> None:
    used, open_one = world.ledger.issue("run-1"), world.ledger.issue("run-1")
    world.ledger.redeem(used, "run-1")
    restarted = world.new_ledger()
    assert refusal(restarted, used) == "nonce_replayed"
    restarted.redeem(open_one, "run-1")


def test_a_nonce_that_was_not_issued_is_unknown(world: World) -> None:
    assert refusal(world.ledger, bytes(32)) == "nonce_unknown"
    world.ledger.issue("run-1")
    assert refusal(world.ledger, bytes(32)) == "nonce_unknown"
    assert refusal(world.ledger, b"") == "nonce_unknown"


def test_a_nonce_belongs_to_one_run(world: World) -> None:
    nonce = world.ledger.issue("run-1")
    assert refusal(world.ledger, nonce, "run-2") == "nonce_other_run"
    world.ledger.redeem(nonce, "run-1")


def test_a_nonce_is_valid_for_120_seconds(world: World) -> None:
    first, second = world.ledger.issue("run-1"), world.ledger.issue("run-1")
    world.clock.seconds += 120
    world.ledger.redeem(first, "run-1")
    world.clock.seconds += 0.1
    assert refusal(world.ledger, second) == "nonce_expired"


def test_an_expired_nonce_does_not_become_valid_again_when_a_clock_goes_back(world: World) -> None:
    nonce = world.ledger.issue("run-1")
    world.clock.seconds += 200
    assert refusal(world.ledger, nonce) == "nonce_expired"
    world.clock.seconds -= 200
    assert refusal(world.ledger, nonce) == "nonce_replayed"


def test_a_nonce_from_before_a_reboot_is_expired(world: World) -> None:
    nonce = world.ledger.issue("run-1")
    world.clock.boot = "boot-2"
    assert refusal(world.ledger, nonce) == "nonce_expired"


def test_a_nonce_from_the_future_of_the_clock_is_expired(world: World) -> None:
    nonce = world.ledger.issue("run-1")
    world.clock.seconds -= 1
    assert refusal(world.ledger, nonce) == "nonce_expired"


def test_expiry_does_not_depend_on_the_wall_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = NonceLedger(tmp_path / "nonces.json")
    nonce = ledger.issue("run-1")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    ledger.redeem(nonce, "run-1")
    assert boot_seconds() > 0
    assert len(boot_id()) == 36


def test_the_outstanding_nonce_is_found_after_a_restart(world: World) -> None:
    assert world.ledger.outstanding("run-1") is None
    first, second = world.ledger.issue("run-1"), world.ledger.issue("run-1")
    world.ledger.issue("run-2")
    assert world.new_ledger().outstanding("run-1") == second
    world.ledger.redeem(second, "run-1")
    assert world.ledger.outstanding("run-1") == first
    world.clock.seconds += 121
    assert world.ledger.outstanding("run-1") is None


def test_the_state_is_private(world: World) -> None:
    world.ledger.issue("run-1")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in world.ledger_path.parent.iterdir()}
    assert modes == {0o600}


def test_the_state_stays_small_and_forgets_the_oldest(world: World) -> None:
    first = world.ledger.issue("run-1")
    for _ in range(MAX_NONCES):
        last = world.ledger.issue("run-1")
    assert world.ledger_path.stat().st_size < 64 * 1024
    assert refusal(world.ledger, first) == "nonce_unknown"
    world.ledger.redeem(last, "run-1")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.binary(max_size=100) | st.sampled_from([b"{}", b'{"nonces":[{}]}', b'{"nonces":[],"version":1,"x":1}']))
def test_a_damaged_state_refuses_and_never_accepts(world: World, data: bytes) -> None:
    nonce = world.ledger.issue("run-1") if not world.ledger_path.exists() else bytes(32)
    world.ledger_path.write_bytes(data)
    assert refusal(world.ledger, nonce) in ("nonce_state_damaged", "nonce_unknown")
    world.ledger_path.unlink()


def test_redeeming_waits_for_the_lock_on_the_record(tmp_path: Path) -> None:
    ledger = NonceLedger(tmp_path / "nonces.json")
    nonce = ledger.issue("run-1")
    redeeming = threading.Thread(target=ledger.redeem, args=(nonce, "run-1"))
    with (tmp_path / "nonces.json.lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        redeeming.start()
        redeeming.join(0.3)
        assert redeeming.is_alive()
    redeeming.join(30)
    assert refusal(ledger, nonce) == "nonce_replayed"


def test_two_processes_cannot_both_redeem(tmp_path: Path) -> None:
    path = tmp_path / "nonces.json"
    nonce = NonceLedger(path).issue("run-1")
    script = (
        "import sys; from pathlib import Path; from engine.attestation.nonce import NonceLedger\n"
        "from engine.errors import RefusedError\n"
        "try:\n    NonceLedger(Path(sys.argv[1])).redeem(bytes.fromhex(sys.argv[2]), 'run-1'); print('accepted')\n"
        "except RefusedError as error:\n    print(error.code)\n"
    )
    command = [sys.executable, "-c", script, str(path), nonce.hex()]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = sorted(process.communicate(timeout=300)[0].strip() for process in started)
    assert printed == ["accepted", "nonce_replayed", "nonce_replayed"]


def test_a_nonce_whose_use_cannot_be_recorded_is_not_accepted(tmp_path: Path) -> None:
    ledger = NonceLedger(tmp_path / "run" / "nonces.json")
    with pytest.raises(RefusedError) as caught:
        ledger.issue("run-1")
    assert caught.value.code == "nonce_state_unwritable"
    (tmp_path / "run").mkdir()
    nonce = ledger.issue("run-1")
    (tmp_path / "run" / "nonces.json.lock").unlink()
    (tmp_path / "run" / "nonces.json.lock").symlink_to(tmp_path / "elsewhere")
    assert refusal(ledger, nonce) == "nonce_state_unwritable"
