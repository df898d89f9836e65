"""The life of a rented pod apart from its faults: adoption, self-termination, and its files on this machine."""

from __future__ import annotations

import asyncio
import base64
import time
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from engine.errors import ProviderError
from engine.providers.protocol import Lease, LedgerEntry, Scope
from engine.providers.runpod.folder import NOTICED, AllocationFolder
from engine.system.clock import BootTime
from tests.fake_runpod.client import FakeRunPod
from tests.functional.providers.renting import RUN, Renting, rest_only


def same(one: Lease, other: Lease) -> bool:
    """Whether two leases say the same but for the time that is left."""
    return msgspec.structs.replace(one, left=None) == msgspec.structs.replace(other, left=None)


@rest_only
async def test_a_restart_adopts_the_pod_of_an_earlier_attempt(renting: Renting) -> None:
    spec = renting.spec()
    lease = await renting.lease(renting.provider(), spec)
    before = renting.call_count("create")
    provider = renting.provider()
    assert same(await provider.acquire(spec, RUN), lease)
    assert renting.call_count("create") == before
    rebuilt = await provider.reconcile([LedgerEntry(name=spec.name)])
    (found,) = rebuilt.ours
    assert found.lease is not None
    assert same(found.lease, lease)
    await provider.release(lease)


@rest_only
async def test_a_pod_whose_keys_are_lost_can_still_be_terminated(renting: Renting) -> None:
    provider = renting.provider()
    lease = await renting.lease(provider)
    for file in (renting.home / "allocations" / lease.name).iterdir():
        file.unlink()
    (rebuilt,) = (await provider.reconcile([LedgerEntry(name=lease.name)])).ours
    assert rebuilt.lease is not None
    with pytest.raises(ProviderError) as raised:
        await provider.wait_ready(rebuilt.lease)
    assert raised.value.code == "allocation_unknown"
    await provider.release(rebuilt.lease)


@rest_only
async def test_a_pod_terminates_itself_when_its_cost_ceiling_is_reached(renting: Renting) -> None:
    provider = renting.provider()
    lease = await renting.lease(provider, renting.spec(max_cost=0.12 * 0.5 / 3600))
    assert lease.deadline is not None
    lifetime = datetime.fromisoformat(lease.deadline) - datetime.fromisoformat(lease.acquired_at)
    assert lifetime.total_seconds() == pytest.approx(0.5, abs=0.01)
    until = time.monotonic() + 60
    while renting.ours():
        assert time.monotonic() < until, "it did not terminate itself"
        await asyncio.sleep(0.05)
    assert next(pod.ended_by for pod in renting.fake.ever() if pod.id == lease.allocation_id) == "pod"
    assert await provider.observe(lease) == "gone"
    await provider.release(lease)


@rest_only
async def test_a_pod_whose_key_may_only_stop_it_stops_itself(renting: Renting) -> None:
    renting.fake.configure(pod_key="stop")
    provider = renting.provider()
    lease = await renting.lease(provider, renting.spec(max_seconds=0.5))
    until = time.monotonic() + 60
    while renting.fake.pod(lease.allocation_id).status != "exited":
        assert time.monotonic() < until, "it did not stop itself"
        await asyncio.sleep(0.05)
    assert await renting.provider(poll=1e-6).observe(lease) == "stopped"
    await provider.release(lease)


@rest_only
async def test_with_an_unwritable_home_nothing_is_requested(renting: Renting, tmp_path: Path) -> None:
    home = tmp_path / "home"
    provider = renting.provider(home=home)
    await provider.preflight()
    spec = renting.spec()
    (home / "allocations" / spec.name / "client_key" / "in the way").mkdir(parents=True)
    before = renting.call_count("create")
    with pytest.raises(ProviderError) as raised:
        await provider.acquire(spec, RUN)
    assert raised.value.code == "acquire_failed"
    assert renting.call_count("create") == before


@rest_only
async def test_no_private_half_of_a_host_key_is_kept(renting: Renting) -> None:
    provider = renting.provider()
    lease = await renting.lease(provider)
    folder = renting.home / "allocations" / lease.name
    assert sorted(file.name for file in folder.iterdir()) == [
        "asked.json",
        "client_key",
        "client_key.pub",
        "host_key.pub",
    ]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in folder.iterdir())
    handed = base64.b64decode(renting.fake.pod(lease.allocation_id).env["GLASSHOUSE_HOST_KEY"])
    secrets = (handed.splitlines()[3], renting.fake.key.encode())
    kept = [file.read_bytes() for file in renting.home.rglob("*") if file.is_file()]
    assert not any(secret in text for secret in secrets for text in kept)
    await provider.release(lease)


@rest_only
async def test_listings_of_another_account_prove_nothing_gone(
    renting: Renting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await renting.lease(renting.provider())
    other = FakeRunPod.start(tmp_path / "other")
    try:
        with monkeypatch.context() as patch:
            for name, value in other.environment().items():
                patch.setenv(name, value)
            provider = renting.provider()
            assert (await provider.reconcile([LedgerEntry(name=lease.name, lease=lease)])).gone == ()
            assert await provider.observe(lease) == "unknown"
            for attempt in (provider.release(lease), provider.prove_empty(Scope(names=(lease.name,), leases=(lease,)))):
                with pytest.raises(ProviderError) as raised:
                    await attempt
                assert raised.value.code == "account_differs"
            assert other.calls("terminate") == []
    finally:
        other.stop()
    assert renting.ours() == [lease.allocation_id]
    assert renting.folders() == [lease.name]
    provider = renting.provider()
    assert (await provider.wait_ready(lease)).address is not None
    await provider.release(lease)
    assert (await renting.proof(provider, lease)).count == 0


@rest_only
async def test_a_session_before_the_pod_is_ready_is_refused(renting: Renting) -> None:
    provider = renting.provider()
    lease = await renting.lease(provider)
    with pytest.raises(ProviderError) as raised:
        await provider.open_session(lease)
    assert raised.value.code == "allocation_not_ready"
    await provider.release(lease)


@rest_only
async def test_a_new_key_of_the_same_account_can_end_a_pod_and_prove_it(renting: Renting) -> None:
    lease = await renting.lease(renting.provider())
    folder = AllocationFolder(renting.home, lease.name)
    record = folder.record()
    assert record is not None
    folder.write_record(msgspec.structs.replace(record, account="a key that no longer exists"))
    provider = renting.provider()
    await provider.release(lease)
    assert (await renting.proof(provider, lease)).count == 0
    assert renting.ours() == []


@rest_only
async def test_reconcile_destroys_no_key_and_an_unreadable_record_hides_no_other(renting: Renting) -> None:
    provider = renting.provider()
    vanished, torn = await renting.lease(provider), renting.spec()
    renting.fake.vanish(vanished.allocation_id)
    folder = AllocationFolder(renting.home, torn.name)
    folder.create()
    (folder.path / "asked.json").write_bytes(b"{")
    ledger = [LedgerEntry(name=vanished.name, lease=vanished), LedgerEntry(name=torn.name)]
    assert (await provider.reconcile(ledger)).gone == (vanished.name,)
    assert renting.folders() == [vanished.name, torn.name]
    assert (await renting.proof(provider, vanished)).unanswered == (torn.name,)
    noticed = BootTime.now()
    (folder.path / NOTICED).write_text(str(BootTime(noticed.boot, noticed.at - 24 * 3600)))
    assert (await renting.proof(provider, vanished)).unanswered == ()
    assert renting.folders() == []
