"""One listing for simultaneous requests, and never an old, foreign or empty one instead of an error."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from engine.errors import ProviderError
from engine.providers.runpod.api.credentials import ApiKey
from engine.providers.runpod.api.listing import FILE, SharedListing
from engine.providers.runpod.api.rate_limit import Pace, PacedApi
from engine.providers.runpod.api.rest import RestApi
from engine.providers.settings import RunPodLimits
from engine.system.clock import boot_seconds
from tests.unit.providers.runpod.conftest import KEY, PATIENCE, SHORT
from tests.unit.providers.runpod.dialect import Rest, State
from tests.unit.providers.runpod.server import Answer, Server


def listing(server: Server, home: Path, key: ApiKey = KEY) -> SharedListing:
    return SharedListing(RestApi(server.url, key, RunPodLimits(api=SHORT)), home)


async def test_eight_runners_cost_one_call(server: Server, tmp_path: Path) -> None:
    server.script("list", Rest().pods(State()))
    now = boot_seconds()
    results = await asyncio.gather(*(listing(server, tmp_path).at_least(now) for _ in range(8)))
    assert {one.pods[0].id for one in results} == {"pod1"}
    assert all(one.began >= now for one in results)
    assert server.ops() == ["list"]


async def test_a_listing_that_began_before_is_not_trusted(server: Server, tmp_path: Path) -> None:
    shared = listing(server, tmp_path)
    server.script("list", Rest().pods(State()), Rest().pods())
    first = await shared.at_least(boot_seconds() - 5)
    assert (await shared.at_least(first.began)).pods == first.pods
    assert (await shared.at_least(boot_seconds())).pods == ()
    assert server.ops() == ["list", "list"]


async def test_a_failed_call_is_an_error_for_all_waiters_and_never_an_empty_listing(
    server: Server, tmp_path: Path
) -> None:
    server.script("list", Answer(manner="hang"))
    now = boot_seconds()
    results = await asyncio.gather(*(listing(server, tmp_path).at_least(now) for _ in range(8)), return_exceptions=True)
    assert {getattr(one, "code", None) for one in results} == {"api_timeout"}
    assert server.ops() == ["list"]
    with pytest.raises(ProviderError):
        await listing(server, tmp_path).at_least(now)
    assert server.ops() == ["list", "list"]
    server.script("list", Rest().pods())
    assert (await listing(server, tmp_path).at_least(now)).pods == ()


async def test_a_rate_limit_is_raised_for_all_waiters(server: Server, tmp_path: Path) -> None:
    server.script("list", Answer({}, status=429, headers={"Retry-After": "7"}))
    now = boot_seconds()
    results = await asyncio.gather(*(listing(server, tmp_path).at_least(now) for _ in range(3)), return_exceptions=True)
    assert [getattr(one, "retry_after", None) for one in results] == [7.0] * 3


async def test_the_listing_of_another_account_proves_nothing(server: Server, tmp_path: Path) -> None:
    server.script("list", Rest().pods(), Rest().pods(State()))
    now = boot_seconds()
    assert (await listing(server, tmp_path).at_least(now)).pods == ()
    other = listing(server, tmp_path, ApiKey(value="other", source="here"))
    assert len((await other.at_least(now)).pods) == 1


async def test_the_cache_has_no_secrets_and_only_its_owner_can_read_it(server: Server, tmp_path: Path) -> None:
    server.script("list", Rest().pods(State(secret="canary")))
    await listing(server, tmp_path).at_least(boot_seconds())
    path = tmp_path / "allocations" / FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    text = path.read_text()
    assert "pod1" in text
    assert "canary" not in text
    assert KEY.value not in text


async def test_a_cancelled_listing_does_not_block_the_next(server: Server, tmp_path: Path) -> None:
    server.script("list", Answer(manner="hang"), Rest().pods(State()))
    first = asyncio.create_task(listing(server, tmp_path).at_least(boot_seconds()))
    async with asyncio.timeout(PATIENCE):
        while not server.received:  # noqa: ASYNC110  # the server is in another thread
            await asyncio.sleep(0.01)
    first.cancel()
    assert len((await listing(server, tmp_path).at_least(boot_seconds())).pods) == 1


async def test_the_wait_for_a_turn_is_not_part_of_a_listing(server: Server, tmp_path: Path) -> None:
    server.script("list", Rest().pods(State()))
    pace = Pace(tmp_path, 4, period=0.5)
    async with pace.turn(urgent=True, calls=4):
        before = boot_seconds()
    shared = SharedListing(PacedApi(RestApi(server.url, KEY, RunPodLimits()), pace), tmp_path)
    listed = await shared.at_least(before)
    assert listed.began - before > 0.4
    assert listed.began <= listed.ended <= boot_seconds()


async def test_a_damaged_file_counts_as_missing(server: Server, tmp_path: Path) -> None:
    server.script("list", Rest().pods(State()))
    shared = listing(server, tmp_path)
    (tmp_path / "allocations" / FILE).write_bytes(b"\xff{")
    assert len((await shared.at_least(boot_seconds())).pods) == 1
