"""The faults of a rented pod's life, by their numbers, in both APIs; no pod is left that the ledger does not know."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from engine.errors import GlasshouseError, ProviderError, RemoteError
from engine.providers.protocol import LedgerEntry
from tests.functional.providers.renting import APART, CHEAP, NEXT, RUN, Renting

either_api = pytest.mark.parametrize("place", ["rest"], indirect=True)
"""What happens after the pod was made, the same over both APIs."""


@pytest.mark.parametrize("refusal", ["unauthorized", "forbidden"])
async def test_01_a_rejected_key_stops_before_anything_is_spent(renting: Renting, refusal: str) -> None:
    renting.fake.fault("any", refusal, times=None)
    asked = renting.asked("create")
    with pytest.raises(ProviderError) as raised:
        await renting.provider().preflight()
    assert raised.value.code == "api_key_rejected"
    said = f"{raised.value.message} {raised.value.hint}"
    assert "RUNPOD_API_KEY" in said
    assert renting.fake.key not in said
    assert renting.asked("create") == asked


async def test_02_a_pause_that_runpod_asks_for_is_kept_and_counted_down(renting: Renting) -> None:
    renting.fake.fault("create", "rate_limited", seconds=1)
    provider = renting.provider()
    before = renting.asked("create")
    lease = await renting.lease(provider)
    creates = renting.fake.calls("create")[before:]
    assert [call.status == 429 for call in creates] == [True, False]
    assert creates[1].at - creates[0].at >= 1.0
    between = [call for call in renting.fake.calls("list") if creates[0].at < call.at < creates[1].at]
    assert between, "its name is looked for before it is asked for again"
    assert any("pause" in line for line in renting.said)
    await provider.release(lease)


@pytest.mark.parametrize("answer", ["html500", "rate_limited", "ignored"])
async def test_03_an_answer_to_a_termination_is_not_believed(renting: Renting, answer: str) -> None:
    provider = renting.provider()
    lease = await renting.lease(provider)
    before = renting.asked("terminate")
    renting.fake.fault("terminate", answer)
    await provider.release(lease)
    assert renting.asked("terminate") - before >= 2
    assert renting.ours() == []
    assert renting.folders() == []


@pytest.mark.parametrize("answer", ["html500", "cut_json"])
async def test_04_an_unreadable_listing_is_unknown_and_never_zero(renting: Renting, answer: str) -> None:
    provider = renting.provider()
    lease = await renting.lease(provider)
    renting.fake.fault("list", answer, times=None)
    assert await provider.observe(lease) == "unknown"
    with pytest.raises(ProviderError):
        await renting.proof(provider, lease)
    with pytest.raises(ProviderError):
        await provider.reconcile([LedgerEntry(name=lease.name, lease=lease)])
    renting.fake.clear()
    assert (await renting.proof(provider, lease)).count == 1
    await provider.release(lease)


@pytest.mark.parametrize("answer", ["hang", "drip"])
async def test_05_a_call_that_hangs_or_drips_ends_at_our_deadline(renting: Renting, answer: str) -> None:
    await renting.provider().preflight()
    if answer == "drip":
        renting.fake.fault("list", answer, times=None, every=0.3)
    else:
        renting.fake.fault("list", answer, times=None)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.02)
            ticks += 1

    ticking = asyncio.create_task(tick())
    began = time.monotonic()
    with pytest.raises(ProviderError) as raised:
        await renting.provider(api=0.8).preflight()
    ticking.cancel()
    assert raised.value.code == "api_timeout"
    assert time.monotonic() - began < 8.0
    assert ticks > 10, "whoever waits stays responsive"


@pytest.mark.parametrize("answer", ["errors_empty", "myself_null"])
async def test_06_an_answer_without_its_content_is_a_typed_error(renting: Renting, answer: str) -> None:
    renting.fake.fault("list", answer)
    with pytest.raises(ProviderError) as raised:
        await renting.proof(renting.provider())
    assert raised.value.code == "api_answer_invalid"


async def test_07_without_capacity_the_next_approved_gpu_is_asked_for(renting: Renting) -> None:
    renting.fake.fault("create", "no_capacity")
    provider = renting.provider()
    lease = await renting.lease(provider, renting.spec(CHEAP, NEXT))
    assert lease.gpu_model is not None
    assert "L4" in lease.gpu_model
    await provider.release(lease)


async def test_07_without_any_capacity_it_stops_at_no_cost(renting: Renting) -> None:
    renting.fake.fault("create", "no_capacity", times=2)
    ever = len(renting.fake.ever())
    with pytest.raises(ProviderError) as raised:
        await renting.lease(renting.provider(), renting.spec(CHEAP, NEXT))
    assert raised.value.code == "no_capacity"
    assert len(renting.fake.ever()) == ever
    assert renting.folders() == []


async def test_08_a_pod_whose_reply_was_lost_is_adopted_by_its_name(renting: Renting) -> None:
    renting.fake.fault("create", "lose_reply")
    provider = renting.provider()
    before = renting.asked("create")
    lease = await renting.lease(provider)
    assert renting.ours() == [lease.allocation_id]
    assert renting.asked("create") - before == 1
    ready = await provider.wait_ready(lease)
    session = await provider.open_session(ready)
    await session.close()
    await provider.release(ready)


async def test_09_a_pod_that_comes_late_is_found(renting: Renting) -> None:
    renting.fake.fault("create", "late", seconds=0.6)
    provider = renting.provider()
    before = renting.asked("create")
    lease = await renting.lease(provider)
    assert renting.ours() == [lease.allocation_id]
    assert renting.asked("create") - before == 1
    await provider.release(lease)


async def test_09_a_creation_without_an_answer_is_never_repeated_and_looked_at_again(renting: Renting) -> None:
    renting.fake.fault("create", "html500")
    before = renting.asked("create")
    spec = renting.spec()
    provider = renting.provider(search=0.5)
    for _ in range(2):  # a restart asks for nothing either
        with pytest.raises(ProviderError) as raised:
            await provider.acquire(spec, RUN)
        assert raised.value.code == "create_unanswered"
    assert renting.asked("create") - before == 1
    ledger = [LedgerEntry(name=spec.name)]
    seen = await provider.reconcile(ledger)
    assert (seen.ours, seen.gone) == ((), ())
    proof = await renting.proof(provider)
    assert proof.count == 0
    assert spec.name in proof.statement
    assert renting.folders() == [spec.name]
    assert (await renting.provider(parked=0.1).reconcile(ledger)).gone == (spec.name,)
    assert renting.folders() == []


async def test_10_two_pods_of_one_name_are_both_ended_and_said(renting: Renting) -> None:
    renting.fake.fault("create", "twin")
    with pytest.raises(ProviderError) as raised:
        await renting.lease(renting.provider())
    assert raised.value.code == "create_duplicated"
    twins = [pod for pod in renting.fake.ever() if pod.name == renting.known[-1]]
    assert len(twins) == 2
    assert all(pod.ended_by == "account" and pod.id in raised.value.message for pod in twins)
    assert renting.folders() == []


async def test_11_a_price_above_the_quote_ends_the_pod_and_shows_both(renting: Renting) -> None:
    renting.fake.fault("create", "price", price=9.99)
    with pytest.raises(ProviderError) as raised:
        await renting.lease(renting.provider())
    assert raised.value.code == "price_above_quote"
    assert "$9.99" in raised.value.message
    assert "$0.12" in raised.value.message
    assert renting.ours() == []
    assert renting.folders() == []


async def test_11_a_ceiling_below_every_price_asks_for_nothing(renting: Renting) -> None:
    before = renting.asked("create")
    with pytest.raises(ProviderError) as raised:
        await renting.lease(renting.provider(), renting.spec(CHEAP, NEXT, max_price=0.05))
    assert raised.value.code == "price_above_ceiling"
    assert renting.asked("create") == before


async def _fails_and_is_released(renting: Renting, code: str, provisioning: float = 20.0) -> None:
    provider = renting.provider(provisioning=provisioning)
    lease = await renting.lease(provider)
    with pytest.raises(GlasshouseError) as raised:
        await provider.open_session(await provider.wait_ready(lease, renting.said.append))
    assert raised.value.code == code
    await provider.release(lease)
    assert (await renting.proof(provider, lease)).count == 0


@either_api
async def test_12_an_image_that_never_starts_is_given_up_and_released(renting: Renting) -> None:
    renting.fake.fault("create", "pull_forever")
    await _fails_and_is_released(renting, "provisioning_timeout", provisioning=0.5)
    assert any(line.startswith("image") for line in renting.said)


async def test_13_a_port_that_is_not_assigned_is_given_up(renting: Renting) -> None:
    renting.fake.fault("create", "no_port")
    await _fails_and_is_released(renting, "provisioning_timeout", provisioning=1.0)


async def test_13_a_port_that_is_not_public_is_given_up(renting: Renting) -> None:
    renting.fake.fault("create", "private_port")
    await _fails_and_is_released(renting, "port_not_public", provisioning=1.0)


@either_api
async def test_14_a_server_that_refuses_at_first_is_waited_for(renting: Renting) -> None:
    renting.fake.fault("create", "ssh_after", seconds=0.8)
    provider = renting.provider()
    ready = await provider.wait_ready(await renting.lease(provider), renting.said.append)
    assert any(line.startswith("ssh") for line in renting.said)
    before = renting.asked("list")
    again = await provider.wait_ready(ready)
    assert renting.asked("list") - before <= 1, "with all up, one look is enough"
    assert again.address == ready.address
    session = await provider.open_session(again)
    said = await session.run(["sh", "-c", 'echo "$RUNPOD_POD_ID"'])
    await session.close()
    assert said.stdout.decode().strip() == ready.allocation_id
    await provider.release(ready)


@either_api
@pytest.mark.parametrize("printed", [False, True])
async def test_15_another_host_key_stops_everything(renting: Renting, printed: bool) -> None:
    renting.fake.fault("create", "other_host_key", printed=printed)
    provider = renting.provider()
    lease = await renting.lease(provider)
    with pytest.raises(ProviderError) as raised:
        await provider.wait_ready(lease)
    assert raised.value.code == "host_key_mismatch"
    await provider.release(lease)


@either_api
@pytest.mark.parametrize("is_final", [False, True])
async def test_15_a_log_that_prints_another_fingerprint_is_read_again_and_then_believed(
    renting: Renting, is_final: bool
) -> None:
    line = json.dumps({"ts": "2026-01-01T00:00:00Z", "source": "container", "line": f"256 SHA256:{'A' * 43} (ED25519)"})
    text = f"data: {line}\n\n"
    times = None if is_final else 1
    renting.fake.fault("logs", "status", code=200, body=text, kind="text/event-stream", times=times)
    if is_final:
        await _fails_and_is_released(renting, "host_key_mismatch")
        return
    provider = renting.provider()
    await provider.release(await provider.wait_ready(await renting.lease(provider)))


@either_api
async def test_16_a_server_that_rejects_our_key_is_released(renting: Renting) -> None:
    renting.fake.fault("create", "other_client_key")
    await _fails_and_is_released(renting, "auth_rejected")


@either_api
async def test_25_a_pod_that_vanishes_is_gone_after_two_looks_and_not_rented_again(renting: Renting) -> None:
    provider = renting.provider()
    lease = await provider.wait_ready(await renting.lease(provider))
    renting.fake.vanish(lease.allocation_id)
    before, creates = renting.asked("list"), renting.asked("create")
    assert await provider.observe(lease) == "gone"
    assert renting.asked("list") - before == 2
    with pytest.raises(ProviderError) as raised:
        await provider.wait_ready(lease)
    assert raised.value.code == "allocation_gone"
    assert (await provider.reconcile([LedgerEntry(name=lease.name, lease=lease)])).gone == (lease.name,)
    assert renting.asked("create") == creates
    await provider.release(lease)


@either_api
async def test_25_a_pod_that_stopped_exists_and_bills(renting: Renting) -> None:
    provider = renting.provider()
    lease = await provider.wait_ready(await renting.lease(provider))
    renting.fake.halt(lease.allocation_id)
    assert await provider.observe(lease) == "stopped"
    with pytest.raises(ProviderError) as raised:
        await provider.wait_ready(lease)
    assert raised.value.code == "allocation_stopped"
    assert (await renting.proof(provider, lease)).count == 1
    await provider.release(lease)


@either_api
async def test_26_a_restarted_container_has_the_same_host_key_and_its_switch(renting: Renting) -> None:
    provider = renting.provider()
    lease = await provider.wait_ready(await renting.lease(provider))
    renting.fake.restart(lease.allocation_id)
    again = await provider.wait_ready(lease)
    assert again.address == lease.address
    session = await provider.open_session(again)
    switch = await session.run(["pgrep", "-f", "deadman.py"])
    await session.close()
    assert switch.exit_status == 0
    await provider.release(again)


@either_api
async def test_27_a_new_address_is_resolved_under_the_same_key(renting: Renting) -> None:
    provider = renting.provider()
    lease = await provider.wait_ready(await renting.lease(provider))
    moved = renting.fake.move(lease.allocation_id)
    again = await provider.wait_ready(lease)
    assert again.address is not None
    assert lease.address is not None
    assert again.address.port == moved.port != lease.address.port
    assert again.address.host_key == lease.address.host_key
    await (await provider.open_session(again)).close()
    await provider.release(again)


async def test_28_a_pod_that_will_not_end_is_said_loudly(renting: Renting) -> None:
    provider = renting.provider(terminate=1.0)
    lease = await renting.lease(provider)
    renting.fake.fault("terminate", "html500", times=None)
    with pytest.raises(ProviderError) as raised:
        await provider.release(lease)
    assert raised.value.code == "leaked"
    assert raised.value.exit_code != 0
    assert lease.allocation_id in raised.value.message
    assert "$0.12" in raised.value.message
    assert "console.runpod.io" in raised.value.hint
    assert renting.folders() == [lease.name]
    renting.fake.clear()
    await provider.release(lease)
    assert renting.folders() == []


@either_api
async def test_29_a_pod_still_listed_after_its_end_is_waited_for(renting: Renting) -> None:
    provider = renting.provider()
    lease = await renting.lease(provider)
    renting.fake.fault("terminate", "linger", seconds=0.8, times=None)
    await provider.release(lease)
    ended = next(pod.ended for pod in renting.fake.ever() if pod.id == lease.allocation_id)
    assert ended is not None
    first, second = [call.at for call in renting.fake.calls("list")][-2:]
    assert first >= ended + 0.8
    assert second - first >= APART * 0.9


@either_api
async def test_30_no_step_of_the_clock_shortens_or_lengthens_a_limit(
    renting: Renting, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = time.time, iter(range(10**9))

    def stepping() -> float:
        step = next(steps)
        return real() + (step if step % 2 else -step) * 86_400

    monkeypatch.setattr(time, "time", stepping)
    renting.fake.fault("create", "late", seconds=0.5)
    renting.fake.fault("create", "ssh_after", seconds=0.5)
    provider = renting.provider()
    lease = await provider.wait_ready(await renting.lease(provider))
    began = time.monotonic()
    await provider.release(lease)
    assert APART <= time.monotonic() - began < 10
    assert next(steps) > 0


async def _cancelled(renting: Renting, phase: str, api: float = 10.0) -> None:
    """Cancel an acquisition when it says `phase`; it returns when what it made is gone."""
    reached = asyncio.Event()
    provider = renting.provider(api=api)

    def say(text: str) -> None:
        if phase in text:
            reached.set()

    acquiring = asyncio.create_task(provider.acquire(renting.spec(), RUN, say))
    await asyncio.wait_for(reached.wait(), 10)
    await asyncio.sleep(0)
    acquiring.cancel()
    await asyncio.sleep(0)
    acquiring.cancel()  # an impatient operator
    with pytest.raises(asyncio.CancelledError):
        await acquiring
    assert renting.ours() == []
    assert renting.folders() == []


@either_api
async def test_32_an_acquisition_cancelled_before_it_asks_makes_nothing(renting: Renting) -> None:
    ever = len(renting.fake.ever())
    await _cancelled(renting, "asking for prices")
    assert len(renting.fake.ever()) == ever


@either_api
@pytest.mark.parametrize("is_answered", [True, False])
async def test_32_an_acquisition_cancelled_while_it_asks_ends_what_it_made(renting: Renting, is_answered: bool) -> None:
    ever = len(renting.fake.ever())
    if not is_answered:
        renting.fake.fault("create", "hang", done=True)
    await _cancelled(renting, "asking for RTX A2000", api=2.0)
    assert len(renting.fake.ever()) == ever + 1


@either_api
async def test_32_an_acquisition_cancelled_while_it_looks_ends_what_came_late(renting: Renting) -> None:
    ever = len(renting.fake.ever())
    renting.fake.fault("create", "late", seconds=0.8)
    await _cancelled(renting, "looking for")
    assert len(renting.fake.ever()) == ever + 1


@either_api
async def test_32_a_cancelled_release_completes(renting: Renting) -> None:
    provider = renting.provider()
    lease = await renting.lease(provider)
    releasing = asyncio.create_task(provider.release(lease))
    for _ in range(3):
        await asyncio.sleep(0.01)
        releasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await releasing
    assert renting.ours() == []
    assert renting.folders() == []


async def test_33_pods_that_are_not_ours_are_shown_and_never_touched(renting: Renting) -> None:
    others = [
        renting.fake.foreign("somebody-elses"),
        renting.fake.foreign(f"glasshouse-other-{RUN}-00000000"),
    ]
    provider = renting.provider()
    lease = await renting.lease(provider)
    seen = await provider.reconcile([LedgerEntry(name=lease.name, lease=lease)])
    assert {found.allocation_id for found in seen.foreign} == {pod.id for pod in others}
    assert [found.allocation_id for found in seen.ours] == [lease.allocation_id]
    assert all(found.gpu_model and found.price_per_hour and found.lease is None for found in seen.foreign)
    assert renting.api == "sdk" or all(found.since for found in seen.foreign)
    await provider.release(lease)
    proof = await renting.proof(provider, lease)
    assert (proof.count, proof.others, proof.listings) == (0, 2, 2)
    assert {pod.id for pod in renting.fake.pods()} == {pod.id for pod in others}


async def test_35_an_api_that_is_gone_says_to_switch(renting: Renting) -> None:
    renting.fake.fault("any", "gone410", times=None)
    with pytest.raises(ProviderError) as raised:
        await renting.provider().preflight()
    assert raised.value.code == "api_gone"
    assert "api" in raised.value.hint


@either_api
async def test_36_netrc_and_proxies_change_nothing(
    renting: Renting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password else\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    await renting.provider(home=tmp_path / "home").preflight()


@either_api
async def test_a_restart_takes_up_what_an_earlier_attempt_made(renting: Renting) -> None:
    spec = renting.spec()
    lease = await renting.lease(renting.provider(), spec)
    before = renting.asked("create")
    provider = renting.provider()
    assert await provider.acquire(spec, RUN) == lease
    assert renting.asked("create") == before
    rebuilt = await provider.reconcile([LedgerEntry(name=spec.name)])
    assert [found.lease for found in rebuilt.ours] == [lease]
    await provider.release(lease)


KILLED_WHILE_IT_ASKS = """
import asyncio, pathlib, sys, msgspec
from engine.providers.protocol import Spec
from engine.providers.runpod.provider import RunPodProvider
from engine.providers.settings import Settings
home, settings, spec, run = sys.argv[1:]
provider = RunPodProvider(pathlib.Path(home), msgspec.json.decode(settings, type=Settings))
asyncio.run(provider.acquire(msgspec.json.decode(spec, type=Spec), run))
"""


async def test_22_what_a_killed_process_asked_for_is_taken_up_by_the_next(renting: Renting) -> None:
    renting.fake.fault("create", "hang", done=True)
    spec, provider, before = renting.spec(), renting.provider(), renting.asked("create")
    told = [msgspec.json.encode(one).decode() for one in (renting.settings(), spec)]
    words = ("-c", KILLED_WHILE_IT_ASKS, str(renting.home), *told, RUN)
    killed = await asyncio.create_subprocess_exec(sys.executable, *words)
    until = time.monotonic() + 30
    while not renting.ours():
        assert time.monotonic() < until
        assert killed.returncode is None
        await asyncio.sleep(0.02)
    killed.kill()
    await killed.wait()
    (pod_id,) = renting.ours()
    lease = await provider.wait_ready(await provider.acquire(spec, RUN))
    assert lease.allocation_id == pod_id
    assert renting.asked("create") - before <= 1
    await provider.release(lease)


@either_api
async def test_a_pod_whose_keys_are_lost_can_still_be_ended(renting: Renting) -> None:
    provider = renting.provider()
    lease = await renting.lease(provider)
    for file in (renting.home / "allocations" / lease.name).iterdir():
        file.unlink()
    (found,) = (await provider.reconcile([LedgerEntry(name=lease.name)])).ours
    assert found.lease is not None
    with pytest.raises(ProviderError) as raised:
        await provider.wait_ready(found.lease)
    assert raised.value.code == "allocation_unknown"
    await provider.release(found.lease)


@either_api
async def test_a_pod_ends_itself_when_its_cost_ceiling_is_reached(renting: Renting) -> None:
    provider = renting.provider()
    lease = await renting.lease(provider, renting.spec(max_cost=0.12 * 0.5 / 3600))
    assert lease.deadline is not None
    life = datetime.fromisoformat(lease.deadline) - datetime.fromisoformat(lease.acquired_at)
    assert life.total_seconds() == pytest.approx(0.5, abs=0.01)
    until = time.monotonic() + 15
    while renting.ours():
        assert time.monotonic() < until, "it did not end itself"
        await asyncio.sleep(0.05)
    assert next(pod.ended_by for pod in renting.fake.ever() if pod.id == lease.allocation_id) == "pod"
    assert await provider.observe(lease) == "gone"
    await provider.release(lease)


@either_api
async def test_a_pod_whose_key_may_only_stop_it_stops_itself(renting: Renting) -> None:
    renting.fake.configure(pod_key="stop")
    provider = renting.provider()
    lease = await renting.lease(provider, renting.spec(max_seconds=0.5))
    until = time.monotonic() + 15
    while renting.fake.pod(lease.allocation_id).status != "exited":
        assert time.monotonic() < until, "it did not stop itself"
        await asyncio.sleep(0.05)
    assert await provider.observe(lease) == "stopped"
    await provider.release(lease)


@either_api
async def test_an_unwritable_home_asks_for_nothing(renting: Renting, tmp_path: Path) -> None:
    home = tmp_path / "home"
    provider = renting.provider(home=home)
    await provider.preflight()
    spec = renting.spec()
    (home / "allocations" / spec.name / "client_key" / "in the way").mkdir(parents=True)
    before = renting.asked("create")
    with pytest.raises(ProviderError) as raised:
        await provider.acquire(spec, RUN)
    assert raised.value.code == "acquire_failed"
    assert renting.asked("create") == before


@either_api
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


@either_api
async def test_a_session_before_the_pod_is_ready_is_refused(renting: Renting) -> None:
    provider = renting.provider()
    lease = await renting.lease(provider)
    with pytest.raises((ProviderError, RemoteError)):
        await provider.open_session(lease)
    await provider.release(lease)
