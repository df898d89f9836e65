"""Hosts behind jump hosts: a chain of real sshds, each pinned, none passed over."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncssh
import msgspec
import pytest

from engine.errors import GlasshouseError, RemoteError
from engine.providers.protocol import Lease, Spec
from engine.providers.settings import HostSettings, Server, Settings, host_settings, load_settings
from engine.providers.static.provider import StaticProvider
from engine.remote.endpoint import LinkLimits
from engine.remote.reconnect import Reconnecting
from tests.functional.providers.openssh import USER, Sshd, openssh

LIMITS = LinkLimits(connect=30, login=30, command=60, retry_first=0.02, retry_most=0.1, give_up=60)
SPEC = Spec(name="glasshouse-test-run-1")
RUN = "0123456789ab"


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[tuple[Sshd, Sshd, Sshd]]:
    """Two jump hosts and the host behind them, each with keys of its own."""
    with ExitStack() as stack:
        servers = []
        for name in ("first", "second", "target"):
            (tmp_path / name).mkdir()
            servers.append(stack.enter_context(openssh(tmp_path / name)))
        yield servers[0], servers[1], servers[2]


def _server(sshd: Sshd, **more: object) -> Server:
    fields: dict[str, object] = {"address": "127.0.0.1", "user": USER, "port": sshd.port, "host_key": sshd.line}
    return Server(**{**fields, "key": str(sshd.client_key), **more})  # type: ignore[arg-type]


def _host(target: Sshd, *jumps: Server, **more: Any) -> HostSettings:
    return target.settings(proxy_jump=jumps, **more)


def _provider(host: HostSettings) -> StaticProvider:
    return StaticProvider(Settings(host=(host,)), LIMITS)


async def _ready(provider: StaticProvider) -> Lease:
    return await provider.wait_ready(await provider.acquire(SPEC, RUN))


def _logins(sshd: Sshd) -> int:
    return sshd.log.count("Accepted publickey")


@pytest.mark.parametrize("form", ["line", "fingerprint"])
async def test_a_run_goes_through_every_jump(chain: tuple[Sshd, Sshd, Sshd], form: str) -> None:
    pins = [one.line if form == "line" else one.host_key.get_fingerprint() for one in chain]
    first, second, target = chain
    jumps = (_server(first, host_key=pins[0]), _server(second, host_key=pins[1]))
    provider = _provider(_host(target, *jumps, host_key=pins[2]))
    assert await provider.claim(SPEC, RUN) is None
    lease = await _ready(provider)
    assert lease.address is not None
    assert [one.host_key for one in lease.address.jumps] == [first.line, second.line]
    assert msgspec.json.decode(msgspec.json.encode(lease), type=Lease) == lease
    before = [_logins(one) for one in chain]
    async with await provider.open_session(lease) as session:
        peer = (await session.run(["sh", "-c", "echo $SSH_CONNECTION"])).stdout.split()
        assert int(peer[3]) == target.port
        assert await session.exists("/")
    after = [_logins(one) for one in chain]
    assert [now - then for then, now in zip(before, after, strict=True)] == [1, 1, 1]
    await provider.release(lease)


@pytest.mark.parametrize("form", ["line", "fingerprint"])
@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_wrong_pin_anywhere_stops_there_and_nothing_goes_around_it(
    chain: tuple[Sshd, Sshd, Sshd], place: int, form: str
) -> None:
    wrong = asyncssh.generate_private_key("ssh-ed25519")
    bad = wrong.get_fingerprint() if form == "fingerprint" else wrong.export_public_key().decode().strip()
    pins = [bad if number == place else one.line for number, one in enumerate(chain)]
    first, second, target = chain
    jumps = (_server(first, host_key=pins[0]), _server(second, host_key=pins[1]))
    provider = _provider(_host(target, *jumps, host_key=pins[2]))
    with pytest.raises(RemoteError) as caught:
        await provider.claim(SPEC, RUN)
    assert caught.value.code == "host_key_mismatch"
    named = ("jump 1", "jump 2", "(through ")[place]
    assert named in caught.value.message
    assert chain[place].host_key.get_fingerprint() in caught.value.message
    assert wrong.get_fingerprint() in caught.value.message
    assert all("Accepted" not in one.log for one in chain[place:])
    assert all("Connection from" not in one.log for one in chain[place + 1 :]), "it was reached without the jump"


async def test_a_lost_jump_is_noticed_and_the_chain_is_built_again(chain: tuple[Sshd, Sshd, Sshd]) -> None:
    first, second, target = chain
    provider = _provider(_host(target, _server(first), _server(second)))
    lease = await _ready(provider)

    async def opener() -> object:
        return await provider.open_session(await provider.wait_ready(lease))

    async with Reconnecting(opener, LIMITS) as link:  # type: ignore[arg-type]
        assert (await link.call(lambda session: session.run(["echo", "1"]))).stdout == b"1\n"
        before = [_logins(one) for one in chain]
        await asyncio.to_thread(first.cut)
        assert (await link.call(lambda session: session.run(["echo", "2"]))).stdout == b"2\n"
        assert all(_logins(one) > then for one, then in zip(chain, before, strict=True))


async def test_errors_name_the_jump(chain: tuple[Sshd, Sshd, Sshd], tmp_path: Path) -> None:
    first, second, target = chain
    cases = (
        (_server(first, user="nobody-here"), _server(second), "auth_rejected", "jump 1 "),
        (_server(first), _server(second, key=str(first.client_key)), "auth_rejected", "jump 2 "),
        (_server(first), _server(second, port=1), "connect_failed", "jump 2 127.0.0.1:1: the jump host before it"),
    )
    for one, two, code, named in cases:
        with pytest.raises(GlasshouseError) as caught:
            await _provider(_host(target, one, two)).claim(SPEC, RUN)
        assert caught.value.code == code
        assert named in caught.value.message
    for jump in (_server(first, key=str(tmp_path / "absent")), _server(first, key=None, agent=True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("SSH_AUTH_SOCK", raising=False)
            with pytest.raises(GlasshouseError, match=r"(?i)jump 1 of host box") as caught:
                await _provider(_host(target, jump)).preflight()
        assert caught.value.code in {"key_missing", "agent_missing"}


async def test_a_jump_that_forwards_nothing_is_named(tmp_path: Path) -> None:
    for name in ("jump", "target"):
        (tmp_path / name).mkdir()
    with openssh(tmp_path / "jump", config=["AllowTcpForwarding no"]) as jump, openssh(tmp_path / "target") as target:
        with pytest.raises(GlasshouseError) as caught:
            await _provider(_host(target, _server(jump))).claim(SPEC, RUN)
        assert caught.value.code == "jump_refused"
        assert "AllowTcpForwarding" in caught.value.hint
        assert "Connection from" not in target.log


def test_jumps_are_read_from_the_configuration(tmp_path: Path, chain: tuple[Sshd, Sshd, Sshd]) -> None:
    first, _, target = chain
    common = f'address = "127.0.0.1"\nuser = "{USER}"\n'
    (tmp_path / "config.toml").write_text(
        f'[[host]]\nname = "node"\n{common}port = {target.port}\nkey = "{target.client_key}"\n'
        f'host_key = "{target.line}"\nroot = "{target.folder}/root"\n\n'
        f'[[host.proxy_jump]]\n{common}port = {first.port}\nkey = "{first.client_key}"\nhost_key = "{first.line}"\n'
    )
    host = host_settings(load_settings(tmp_path), "node")
    assert asyncio.run(_provider(host).quote(SPEC)).price_per_hour == 0.0
    assert _logins(first) == 1
