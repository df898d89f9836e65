"""The numbered faults between a pod's creation and a login: image, ports, sshd, keys, addresses."""

from __future__ import annotations

import json

import pytest

from engine.errors import GlasshouseError, ProviderError
from tests.functional.providers.renting import Renting, rest_only


async def _fails_and_is_released(renting: Renting, code: str, provisioning: float = 20.0) -> None:
    provider = renting.provider(provisioning=provisioning)
    lease = await renting.lease(provider)
    with pytest.raises(GlasshouseError) as raised:
        await provider.open_session(await provider.wait_ready(lease, renting.phases.append))
    assert raised.value.code == code
    await provider.release(lease)
    assert (await renting.proof(provider, lease)).count == 0


@rest_only
async def test_12_an_image_that_never_starts_is_given_up_and_released(renting: Renting) -> None:
    renting.fake.fault("create", "pull_forever")
    await _fails_and_is_released(renting, "provisioning_timeout", provisioning=0.5)
    assert any(line.startswith("image") for line in renting.phases)


async def test_13_a_port_that_is_not_assigned_is_given_up(renting: Renting) -> None:
    renting.fake.fault("create", "no_port")
    await _fails_and_is_released(renting, "provisioning_timeout", provisioning=1.0)


async def test_13_a_port_that_is_not_public_is_given_up(renting: Renting) -> None:
    renting.fake.fault("create", "private_port")
    await _fails_and_is_released(renting, "port_not_public", provisioning=1.0)


@rest_only
async def test_14_a_server_that_refuses_at_first_is_waited_for(renting: Renting) -> None:
    renting.fake.fault("create", "ssh_after", seconds=0.8)
    provider = renting.provider()
    ready = await provider.wait_ready(await renting.lease(provider), renting.phases.append)
    assert any(line.startswith("ssh") for line in renting.phases)
    before = renting.call_count("list")
    again = await provider.wait_ready(ready)
    assert renting.call_count("list") - before <= 1, "one listing is enough once everything is up"
    assert again.address == ready.address
    session = await provider.open_session(again)
    result = await session.run(["sh", "-c", 'echo "$RUNPOD_POD_ID"'])
    await session.close()
    assert result.stdout.decode().strip() == ready.allocation_id
    await provider.release(ready)


@rest_only
@pytest.mark.parametrize("printed", [False, True])
async def test_15_another_host_key_stops_everything(renting: Renting, printed: bool) -> None:
    renting.fake.fault("create", "other_host_key", printed=printed)
    provider = renting.provider()
    lease = await renting.lease(provider)
    with pytest.raises(ProviderError) as raised:
        await provider.wait_ready(lease)
    assert raised.value.code == "host_key_mismatch"
    await provider.release(lease)


@rest_only
@pytest.mark.parametrize("is_final", [False, True])
async def test_15_a_log_with_another_fingerprint_is_read_again_before_it_counts(
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


@rest_only
async def test_16_a_server_that_rejects_our_key_is_released(renting: Renting) -> None:
    renting.fake.fault("create", "other_client_key")
    await _fails_and_is_released(renting, "auth_rejected")


@rest_only
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


@rest_only
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
