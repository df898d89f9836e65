"""A run's allocation and its private folder, over a real store and a real local provider."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from engine.errors import RefusedError, StoreError, WireError
from engine.plan import Plan, preset
from engine.providers.local.provider import LocalProvider
from engine.providers.settings import Settings
from engine.remote.tail import Tailed
from engine.runner.allocation import Allocation
from engine.runner.environment_local import EnvironmentReference
from engine.runner.folder import RunFolder, left_behind
from engine.runner.ingest import Ingest
from engine.runner.journal import Journal
from engine.sealing.run_key import RunKey
from engine.store.reader import Reader
from engine.store.writer import Writer
from engine.wire import LAUNCH_ACCEPTED, ChainWriter

RUN = "0123456789ab"


@pytest.fixture
def plan() -> Plan:
    return preset("demo")


@pytest.fixture
def writer(tmp_path: Path, plan: Plan) -> Writer:
    """A store with one run."""
    store = Writer(tmp_path)
    store.create_run(RUN, plan)
    return store


async def test_an_unwritable_store_does_not_prevent_the_release(tmp_path: Path, plan: Plan, writer: Writer) -> None:
    reader, provider = Reader(tmp_path), LocalProvider(tmp_path)
    allocation = Allocation(tmp_path, writer, reader, provider, plan, Settings(), RUN, Journal(writer, reader, RUN))
    lease = await allocation.ensure()
    assert await provider.observe(lease) == "alive"
    writer._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError):
        await allocation.end()
    assert await provider.observe(lease) == "gone"
    writer._connection.execute("PRAGMA query_only = OFF")
    await allocation.end()
    assert reader.run(RUN).summary.cleanup == "gone"
    assert reader.evidence(RUN)["allocation_gone"]["count"] == 0


async def test_nothing_is_acquired_without_a_writable_ledger(tmp_path: Path, plan: Plan, writer: Writer) -> None:
    reader, provider = Reader(tmp_path), LocalProvider(tmp_path)
    allocation = Allocation(tmp_path, writer, reader, provider, plan, Settings(), RUN, Journal(writer, reader, RUN))
    writer._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError):
        await allocation.ensure()
    assert not (tmp_path / "local").exists()


def test_a_destroyed_folder_leaves_no_key_behind(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, RUN)
    folder.create()
    RunKey.create(folder.path, RUN)
    link = tmp_path / "kept.pem"
    link.hardlink_to(folder.path / "run_signing.pem")
    assert left_behind(tmp_path) == [RUN]
    folder.destroy()
    assert left_behind(tmp_path) == []
    assert set(link.read_bytes()) == {0}


@pytest.mark.parametrize("key", [None, "no base64", base64.b64encode(b"short").decode()])
def test_a_launch_without_a_valid_attester_key_is_refused(tmp_path: Path, writer: Writer, key: str | None) -> None:
    ingest = Ingest(writer, Reader(tmp_path), RUN)
    launch = ChainWriter(RUN).append(LAUNCH_ACCEPTED, {"attesterKey": key, "gpu": None})
    with pytest.raises(WireError) as caught:
        ingest.take([Tailed(launch, 10)])
    assert caught.value.code == "event_invalid"


def test_released_keys_without_a_wipe_receipt_end_as_unverified(tmp_path: Path, writer: Writer) -> None:
    ingest = Ingest(writer, Reader(tmp_path), RUN)
    ingest.settle()
    assert Reader(tmp_path).run(RUN).summary.runtime_state == "pending"
    ingest.advance("key", "released")
    ingest.settle()
    assert Reader(tmp_path).run(RUN).summary.runtime_state == "unverified"


def test_an_environment_that_vanishes_while_it_is_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as caught:
        EnvironmentReference(tmp_path, (str(tmp_path / "absent"),)).result()
    assert caught.value.code == "environment_unreadable"


async def test_a_kept_allocation_taken_up_by_another_run_is_not_recorded_as_gone(
    tmp_path: Path, plan: Plan, writer: Writer
) -> None:
    reader, provider = Reader(tmp_path), LocalProvider(tmp_path)
    allocation = Allocation(tmp_path, writer, reader, provider, plan, Settings(), RUN, Journal(writer, reader, RUN))
    await allocation.ensure()
    await allocation.end(keep_minutes=10)
    entry = allocation.entry()
    assert entry is not None
    writer.create_run("ba9876543210", plan)
    writer.take_up(entry.id, "ba9876543210")
    assert await allocation.end(keep_minutes=10) is None
    assert reader.run(RUN).summary.cleanup == "kept"
    assert "allocation_gone" not in reader.evidence(RUN)
    other = Allocation(
        tmp_path, writer, reader, provider, plan, Settings(), "ba9876543210", Journal(writer, reader, "ba9876543210")
    )
    await other.end()
    proof = await allocation.end(keep_minutes=10)
    assert proof is not None
    assert (proof.count, proof.scope) == (0, (entry.name,))
