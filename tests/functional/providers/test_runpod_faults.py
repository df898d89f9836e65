"""The numbered faults in a rented pod's life, over both APIs; no pod is left that is not in the ledger."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import msgspec
import pytest

from engine.errors import ProviderError
from engine.providers.protocol import LedgerEntry
from tests.functional.providers.renting import APART, CHEAP, NEXT, RUN, Renting, rest_only


@pytest.mark.parametrize("refusal", ["unauthorized", "forbidden"])
async def test_01_a_rejected_key_stops_before_anything_is_spent(renting: Renting, refusal: str) -> None:
    renting.fake.fault("any", refusal, times=None)
    before = renting.call_count("create")
    with pytest.raises(ProviderError) as raised:
        await renting.provider().preflight()
    assert raised.value.code == "api_key_rejected"
    text = f"{raised.value.message} {raised.value.hint}"
    assert "RUNPOD_API_KEY" in text
    assert renting.fake.key not in text
    assert renting.call_count("create") == before


async def test_02_a_pause_that_runpod_requests_is_respected_and_counted_down(renting: Renting) -> None:
    renting.fake.fault("create", "rate_limited", seconds=1)
    provider = renting.provider()
    before = renting.call_count("create")
    lease = await renting.lease(provider)
    creates = renting.fake.calls("create")[before:]
    assert [call.status == 429 for call in creates] == [True, False]
    assert creates[1].at - creates[0].at >= 1.0
    between = [call for call in renting.fake.calls("list") if creates[0].at < call.at < creates[1].at]
    assert between, "the name was not searched for before the second request"
    assert any("pause" in line for line in renting.phases)
    await provider.release(lease)


@rest_only
async def test_02_a_pause_before_the_prices_is_respected_too(renting: Renting) -> None:
    renting.fake.fault("gpus", "rate_limited", seconds=1)
    provider = renting.provider()
    lease = await renting.lease(provider)
    assert any("pause" in line for line in renting.phases)
    await provider.release(lease)


@pytest.mark.parametrize("answer", ["html500", "rate_limited", "ignored"])
async def test_03_an_answer_to_a_termination_is_not_trusted(renting: Renting, answer: str) -> None:
    provider = renting.provider()
    lease = await renting.lease(provider)
    before = renting.call_count("terminate")
    renting.fake.fault("terminate", answer)
    await provider.release(lease)
    assert renting.call_count("terminate") - before >= 2
    assert renting.ours() == []
    assert renting.folders() == []


@pytest.mark.parametrize("answer", ["html500", "cut_json"])
async def test_04_an_unreadable_listing_is_unknown_and_never_zero(renting: Renting, answer: str) -> None:
    provider = renting.provider()
    lease = await renting.lease(provider)
    renting.fake.fault("list", answer, times=None)
    assert await renting.provider(poll=1e-6).observe(lease) == "unknown"
    with pytest.raises(ProviderError):
        await renting.proof(provider, lease)
    with pytest.raises(ProviderError):
        await provider.reconcile([LedgerEntry(name=lease.name, lease=lease)])
    renting.fake.clear()
    assert (await renting.proof(provider, lease)).count == 1
    await provider.release(lease)


@pytest.mark.parametrize("answer", ["hang", "drip"])
async def test_05_a_call_that_hangs_or_drips_fails_at_our_deadline(renting: Renting, answer: str) -> None:
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
        await renting.provider(api=3.0).reconcile([])
    ticking.cancel()
    assert raised.value.code == "api_timeout"
    assert time.monotonic() - began < 60.0
    assert ticks > 10, "the event loop was blocked"


@pytest.mark.parametrize("answer", ["errors_empty", "myself_null"])
async def test_06_an_answer_without_its_content_is_a_typed_error(renting: Renting, answer: str) -> None:
    renting.fake.fault("list", answer)
    with pytest.raises(ProviderError) as raised:
        await renting.proof(renting.provider())
    assert raised.value.code == "api_answer_invalid"


async def test_07_without_capacity_the_next_acceptable_gpu_is_requested(renting: Renting) -> None:
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
    before = renting.call_count("create")
    lease = await renting.lease(provider)
    assert renting.ours() == [lease.allocation_id]
    assert renting.call_count("create") - before == 1
    ready = await provider.wait_ready(lease)
    session = await provider.open_session(ready)
    await session.close()
    await provider.release(ready)


async def test_09_a_pod_that_is_created_late_is_adopted(renting: Renting) -> None:
    renting.fake.fault("create", "late", seconds=0.6)
    provider = renting.provider()
    before = renting.call_count("create")
    lease = await renting.lease(provider)
    assert renting.ours() == [lease.allocation_id]
    assert renting.call_count("create") - before == 1
    await provider.release(lease)


async def test_09_a_creation_without_an_answer_is_never_repeated_but_checked_again(renting: Renting) -> None:
    renting.fake.fault("create", "html500")
    before = renting.call_count("create")
    spec = renting.spec()
    provider = renting.provider(search=0.5)
    for _ in range(2):  # a restart does not repeat the request either
        with pytest.raises(ProviderError) as raised:
            await provider.acquire(spec, RUN)
        assert raised.value.code == "create_unanswered"
    assert renting.call_count("create") - before == 1
    ledger = [LedgerEntry(name=spec.name)]
    result = await provider.reconcile(ledger)
    assert (result.ours, result.gone) == ((), ())
    proof = await renting.proof(provider)
    assert proof.count == 0
    assert proof.unanswered == (spec.name,)
    assert renting.folders() == [spec.name]
    provider = renting.provider(parked=0.1)
    assert (await provider.reconcile(ledger)).gone == (spec.name,)
    assert (await renting.proof(provider)).unanswered == ()
    assert renting.folders() == []


async def test_10_two_pods_of_one_name_are_both_terminated_and_reported(renting: Renting) -> None:
    renting.fake.fault("create", "twin")
    with pytest.raises(ProviderError) as raised:
        await renting.lease(renting.provider())
    assert raised.value.code == "create_duplicated"
    twins = [pod for pod in renting.fake.ever() if pod.name == renting.known[-1]]
    assert len(twins) == 2
    assert all(pod.ended_by == "account" and pod.id in raised.value.message for pod in twins)
    assert renting.folders() == []


async def test_11_a_pod_above_its_quote_is_terminated_and_both_prices_are_shown(renting: Renting) -> None:
    renting.fake.fault("create", "price", price=9.99)
    with pytest.raises(ProviderError) as raised:
        await renting.lease(renting.provider())
    assert raised.value.code == "price_above_quote"
    assert "$9.99" in raised.value.message
    assert "$0.12" in raised.value.message
    assert renting.ours() == []
    assert renting.folders() == []


async def test_11_with_a_ceiling_below_every_price_nothing_is_requested(renting: Renting) -> None:
    before = renting.call_count("create")
    with pytest.raises(ProviderError) as raised:
        await renting.lease(renting.provider(), renting.spec(CHEAP, NEXT, max_price=0.05))
    assert raised.value.code == "price_above_ceiling"
    assert renting.call_count("create") == before


@rest_only
async def test_11_a_price_that_rises_later_is_noticed_too(renting: Renting) -> None:
    provider = renting.provider()
    lease = await renting.lease(provider)
    with pytest.raises(ProviderError) as raised:
        await provider.wait_ready(msgspec.structs.replace(lease, price_per_hour=0.05))
    assert raised.value.code == "price_above_quote"
    await provider.release(lease)


@rest_only
async def test_25_a_pod_that_vanishes_is_gone_after_two_listings_and_not_rented_again(renting: Renting) -> None:
    provider = renting.provider()
    lease = await provider.wait_ready(await renting.lease(provider))
    renting.fake.vanish(lease.allocation_id)
    creates = renting.call_count("create")
    assert await renting.provider(poll=1e-6).observe(lease) == "gone"
    ended = next(pod.ended for pod in renting.fake.ever() if pod.id == lease.allocation_id)
    assert ended is not None
    assert len([call for call in renting.fake.calls("list") if call.at > ended]) == 2
    with pytest.raises(ProviderError) as raised:
        await provider.wait_ready(lease)
    assert raised.value.code == "allocation_gone"
    assert (await provider.reconcile([LedgerEntry(name=lease.name, lease=lease)])).gone == (lease.name,)
    assert renting.call_count("create") == creates
    await provider.release(lease)


@rest_only
async def test_25_a_pod_that_stopped_exists_and_bills(renting: Renting) -> None:
    provider = renting.provider()
    lease = await provider.wait_ready(await renting.lease(provider))
    renting.fake.halt(lease.allocation_id)
    assert await renting.provider(poll=1e-6).observe(lease) == "stopped"
    with pytest.raises(ProviderError) as raised:
        await provider.wait_ready(lease)
    assert raised.value.code == "allocation_stopped"
    assert (await renting.proof(provider, lease)).count == 1
    await provider.release(lease)


async def test_28_a_pod_that_cannot_be_terminated_is_reported_as_leaked(renting: Renting) -> None:
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


@rest_only
async def test_29_a_pod_still_listed_after_its_termination_is_waited_for(renting: Renting) -> None:
    provider = renting.provider()
    lease = await renting.lease(provider)
    renting.fake.fault("terminate", "linger", seconds=0.8, times=None)
    await provider.release(lease)
    ended = next(pod.ended for pod in renting.fake.ever() if pod.id == lease.allocation_id)
    assert ended is not None
    first, second = [call.at for call in renting.fake.calls("list")][-2:]
    assert first >= ended + 0.8
    assert second - first >= APART * 0.9


@rest_only
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
    assert APART <= time.monotonic() - began < 60
    assert next(steps) > 0


async def _cancelled(renting: Renting, phase: str, api: float = 10.0) -> None:
    """Cancel an acquisition when it reports `phase`; it returns once the pod that it created is gone."""
    reached = asyncio.Event()
    provider = renting.provider(api=api)

    def report(text: str) -> None:
        if phase in text:
            reached.set()

    acquiring = asyncio.create_task(provider.acquire(renting.spec(), RUN, report))
    await asyncio.wait_for(reached.wait(), 60)
    await asyncio.sleep(0)
    acquiring.cancel()
    await asyncio.sleep(0)
    acquiring.cancel()  # an impatient operator
    with pytest.raises(asyncio.CancelledError):
        await acquiring
    assert renting.ours() == []
    assert renting.folders() == []


@rest_only
async def test_32_an_acquisition_cancelled_before_its_request_creates_nothing(renting: Renting) -> None:
    ever = len(renting.fake.ever())
    await _cancelled(renting, "requesting prices")
    assert len(renting.fake.ever()) == ever


@rest_only
@pytest.mark.parametrize("is_answered", [True, False])
async def test_32_an_acquisition_cancelled_during_its_request_terminates_the_pod(
    renting: Renting, is_answered: bool
) -> None:
    ever = len(renting.fake.ever())
    if not is_answered:
        renting.fake.fault("create", "hang", done=True)
    await _cancelled(renting, "requesting RTX A2000", api=2.0)
    assert len(renting.fake.ever()) == ever + 1


@rest_only
async def test_32_an_acquisition_cancelled_during_its_search_terminates_a_late_pod(renting: Renting) -> None:
    ever = len(renting.fake.ever())
    renting.fake.fault("create", "late", seconds=0.8)
    await _cancelled(renting, "searching for")
    assert len(renting.fake.ever()) == ever + 1


@rest_only
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


async def test_33_foreign_pods_are_shown_and_never_touched(renting: Renting) -> None:
    others = [
        renting.fake.foreign("somebody-elses"),
        renting.fake.foreign(f"glasshouse-other-{RUN}-00000000"),
    ]
    provider = renting.provider()
    lease = await renting.lease(provider)
    result = await provider.reconcile([LedgerEntry(name=lease.name, lease=lease)])
    assert {one.allocation_id for one in result.foreign} == {pod.id for pod in others}
    assert [one.allocation_id for one in result.ours] == [lease.allocation_id]
    assert all(one.gpu_model and one.price_per_hour and one.lease is None for one in result.foreign)
    assert renting.api == "sdk" or all(one.since for one in result.foreign)
    await provider.release(lease)
    proof = await renting.proof(provider, lease)
    assert (proof.count, proof.others, proof.listings) == (0, 2, 2)
    assert {pod.id for pod in renting.fake.pods()} == {pod.id for pod in others}


async def test_35_an_api_that_is_gone_gives_the_hint_to_switch(renting: Renting) -> None:
    renting.fake.fault("any", "gone410", times=None)
    with pytest.raises(ProviderError) as raised:
        await renting.provider().reconcile([])
    assert raised.value.code == "api_gone"
    assert "api" in raised.value.hint


@rest_only
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


async def test_37_a_pod_that_was_only_not_listed_is_found_and_terminated_later(renting: Renting) -> None:
    provider = renting.provider()
    lease = await renting.lease(provider)
    renting.fake.fault("terminate", "unlisted")
    assert await provider.release(lease) is False, "RunPod never confirmed it"
    assert (await renting.proof(provider, lease)).count == 0
    assert renting.ours() == [lease.allocation_id]
    renting.fake.appear(lease.allocation_id)
    (found,) = [one for one in (await provider.reconcile([])).foreign if one.name == lease.name]
    assert found.allocation_id == lease.allocation_id
    assert renting.api == "sdk" or (found.age_sec is not None and found.age_sec >= 0)
    assert await provider.release(lease) is True


ACQUIRE_PROGRAM = """
import asyncio, pathlib, sys, msgspec
from engine.providers.protocol import Spec
from engine.providers.runpod.provider import RunPodProvider
from engine.providers.settings import Settings
home, settings, spec, run = sys.argv[1:]
provider = RunPodProvider(pathlib.Path(home), msgspec.json.decode(settings, type=Settings))
asyncio.run(provider.acquire(msgspec.json.decode(spec, type=Spec), run))
"""


async def test_22_a_pod_requested_by_a_killed_process_is_adopted_by_the_next(renting: Renting) -> None:
    renting.fake.fault("create", "hang", done=True)
    spec, provider, before = renting.spec(), renting.provider(), renting.call_count("create")
    arguments = [msgspec.json.encode(one).decode() for one in (renting.settings(), spec)]
    words = ("-c", ACQUIRE_PROGRAM, str(renting.home), *arguments, RUN)
    killed = await asyncio.create_subprocess_exec(sys.executable, *words)
    until = time.monotonic() + 120
    while not renting.ours():
        assert time.monotonic() < until
        assert killed.returncode is None
        await asyncio.sleep(0.02)
    killed.kill()
    await killed.wait()
    (pod_id,) = renting.ours()
    lease = await provider.wait_ready(await provider.acquire(spec, RUN))
    assert lease.allocation_id == pod_id
    assert renting.call_count("create") - before <= 1
    await provider.release(lease)
