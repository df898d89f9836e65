"""Static hosts over a real OpenSSH server: trust, logins, the run's folder, and what is not ours to delete."""

from __future__ import annotations

import asyncio
import io
import os
import select
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import msgspec
import pytest

from engine.errors import GlasshouseError, ProviderError, RemoteError, UsageError
from engine.providers import provider_for
from engine.providers.protocol import Exclusive, Lease, LedgerEntry, Provider, Scope, Spec
from engine.providers.settings import HostSettings, Settings, load_settings
from engine.providers.static import hosts
from engine.providers.static.provider import StaticProvider
from engine.remote.bundle import bundle_digest
from engine.remote.endpoint import LinkLimits
from engine.remote.host_lock import Held, acquire_lock
from engine.remote.launch import launch
from engine.remote.transfer import upload
from tests.functional.providers.openssh import Sshd, openssh

LIMITS = LinkLimits(connect=30, login=30, command=60)
RUN = "0123456789ab"
SPEC = Spec(name="glasshouse-test-run-1")
PYTHON = sys.executable


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with openssh(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def _provider(*hosts: HostSettings) -> StaticProvider:
    return StaticProvider(Settings(host=hosts), LIMITS)


async def _ready(provider: StaticProvider, run_id: str = RUN) -> Lease:
    return await provider.wait_ready(await provider.acquire(SPEC, run_id))


def _bundle() -> bytes:
    """A supervisor that does nothing, with a child in its session."""
    made = io.BytesIO()
    code = "import os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.fork()\nsignal.pause()\n"
    with zipfile.ZipFile(made, "w") as bundle:
        bundle.writestr("__main__.py", code)
    return made.getvalue()


def _names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_it_is_a_provider_created_from_the_configuration(tmp_path: Path, sshd: Sshd) -> None:
    host = sshd.settings()
    (tmp_path / "config.toml").write_text(
        f'[[host]]\nname = "box"\naddress = "{host.address}"\nuser = "{host.user}"\nport = {host.port}\n'
        f'key = "{host.key}"\nhost_key = "{host.host_key}"\n'
    )
    made = provider_for("static", tmp_path, load_settings(tmp_path))
    assert isinstance(made, Provider)
    asyncio.run(made.preflight())
    assert asyncio.run(made.quote(SPEC)).price_per_hour == 0.0


async def test_a_host_is_used_and_only_the_runs_folder_is_removed(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "GRACE_SECONDS", 0.2)
    provider = _provider(sshd.settings())
    lease = await _ready(provider)
    assert (lease.allocation_id, lease.gpu_model, lease.price_per_hour) == ("static:box", "A Test GPU", 0.0)
    assert msgspec.json.decode(msgspec.json.encode(lease), type=Lease) == lease
    async with await provider.open_session(lease) as session:
        await session.mkdir(lease.root)
        await session.mkdir(f"{lease.root}/{RUN}")
        await session.mkdir(f"{lease.root}/another")
        bundle = _bundle()
        await upload(session, bundle, f"{lease.root}/{RUN}/bundle.pyz")
        assert isinstance(await acquire_lock(session, lease.root, RUN, PYTHON), Held)
        launched = await launch(
            session,
            python=PYTHON,
            bundle_path=f"{lease.root}/{RUN}/bundle.pyz",
            sha256=bundle_digest(bundle),
            run_dir=f"{lease.root}/{RUN}",
            site_paths=(),
        )
    descriptor = os.pidfd_open(launched.pid)
    assert await provider.observe(lease) == "alive"
    await provider.release(lease)
    assert select.select([descriptor], [], [], 0)[0], "the supervisor is still alive"
    os.close(descriptor)
    assert _names(lease.root) == [".lock", "another"]
    async with await provider.open_session(lease) as session:
        assert isinstance(await acquire_lock(session, lease.root, "next", PYTHON), Held), "the lock was not freed"
    await provider.release(msgspec.structs.replace(lease, run_id="next"))
    await provider.release(lease)  # idempotent
    proof = await provider.prove_empty(Scope(names=(SPEC.name,), leases=(lease,)))
    assert proof.count is None
    assert proof.statement.startswith("not ours to delete")


async def test_two_homes_claim_one_host_in_turn(sshd: Sshd, tmp_path: Path) -> None:
    mine, theirs = (_provider(sshd.settings(root=str(tmp_path / "root"))) for _ in range(2))
    assert isinstance(mine, Exclusive)
    await theirs.let_go(SPEC, "second")  # it never had a claim
    assert await mine.claim(SPEC, "first") is None
    assert await mine.claim(SPEC, "first") is None
    reason = await theirs.claim(SPEC, "second")
    assert reason is not None
    assert reason.startswith("run first has this host since 20")
    await theirs.let_go(SPEC, "second")
    assert await theirs.claim(SPEC, "second") == reason
    await mine.let_go(SPEC, "first")
    assert await theirs.claim(SPEC, "second") is None
    lease = await theirs.wait_ready(await theirs.acquire(SPEC, "second"))
    await theirs.release(lease)
    assert await mine.claim(SPEC, "first") is None
    await mine.let_go(SPEC, "first")


async def test_a_fingerprint_is_resolved_once_and_then_the_key_is_pinned(sshd: Sshd, tmp_path: Path) -> None:
    provider = _provider(sshd.settings(host_key=sshd.host_key.get_fingerprint()))
    lease = await _ready(provider)
    assert lease.address is not None
    assert lease.address.host_key == sshd.line
    assert lease.machine == {"hostKey": sshd.host_key.get_fingerprint()}
    with openssh(tmp_path) as other:  # another server has the address now; the pinned key stays
        moved = _provider(other.settings(host_key=sshd.host_key.get_fingerprint()))
        with pytest.raises(RemoteError) as caught:
            await moved.open_session(await moved.wait_ready(lease))
    assert caught.value.code == "host_key_mismatch"


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"])
async def test_a_fingerprint_may_be_of_any_key_that_the_host_has(sshd: Sshd, kind: str) -> None:
    keys = {name: asyncssh.generate_private_key(name) for name in ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")}
    async with asyncssh.listen("127.0.0.1", 0, server_host_keys=list(keys.values())) as server:
        host = sshd.settings(port=server.get_port(), host_key=keys[kind].get_fingerprint())
        line = await hosts.trusted_line(host, None, LIMITS)
    assert asyncssh.import_public_key(line).public_data == keys[kind].public_data


@pytest.mark.parametrize("form", ["line", "fingerprint"])
async def test_another_host_key_than_the_configured_one_is_refused_before_a_login(
    sshd: Sshd, tmp_path: Path, form: str
) -> None:
    wrong = asyncssh.generate_private_key("ssh-ed25519")
    key = wrong.get_fingerprint() if form == "fingerprint" else wrong.export_public_key().decode().strip()
    with openssh(tmp_path) as server:
        provider = _provider(server.settings(host_key=key, gpu=None))
        with pytest.raises(RemoteError) as caught:
            await _ready(provider)
        assert caught.value.code == "host_key_mismatch"
        assert await provider.observe(await provider.acquire(SPEC, RUN)) == "unknown"
    assert "Accepted" not in server.log
    assert "publickey" not in server.log


async def test_the_host_of_a_run_is_the_named_one_or_the_only_one(sshd: Sshd) -> None:
    one, two = sshd.settings("one"), sshd.settings("two")
    assert (await _provider(one).acquire(SPEC, RUN)).allocation_id == "static:one"
    named = await _provider(one, two).acquire(msgspec.structs.replace(SPEC, host="two"), RUN)
    assert named.allocation_id == "static:two"
    for provider, spec, listed in (
        (_provider(one, two), SPEC, "one, two"),
        (_provider(one, two), msgspec.structs.replace(SPEC, host="three"), "one, two"),
        (_provider(), SPEC, "[[host]]"),
    ):
        with pytest.raises(UsageError) as caught:
            await provider.acquire(spec, RUN)
        assert caught.value.code == "host_unknown"
        assert listed in caught.value.hint
    with pytest.raises(UsageError):
        await _provider().preflight()


async def test_a_relative_root_becomes_absolute_and_the_gpu_is_queried(sshd: Sshd) -> None:
    provider = _provider(sshd.settings(root="glasshouse", gpu=None))
    lease = await _ready(provider)
    assert lease.root == f"{Path.home()}/glasshouse"
    assert lease.gpu_model
    assert (await provider.quote(SPEC)).gpu_model == lease.gpu_model
    if shutil.which("nvidia-smi") is None:
        assert lease.gpu_model.startswith("CPU (")


async def test_a_host_whose_configured_key_has_changed_is_refused(sshd: Sshd) -> None:
    lease = await _ready(_provider(sshd.settings()))
    other = asyncssh.generate_private_key("ssh-ed25519").get_fingerprint()
    with pytest.raises(ProviderError) as caught:
        await _provider(sshd.settings(host_key=other)).wait_ready(lease)
    assert caught.value.code == "allocation_changed"


async def test_an_unreachable_host_is_unknown_and_its_release_raises(sshd: Sshd, tmp_path: Path) -> None:
    with openssh(tmp_path) as server:
        provider = _provider(server.settings())
        lease = await _ready(provider)
    assert await provider.observe(lease) == "unknown"
    with pytest.raises(ProviderError) as caught:
        await provider.release(lease)
    assert caught.value.code == "release_failed"
    assert f"{lease.root}/{RUN}" in caught.value.hint
    result = await provider.reconcile([LedgerEntry(name="a", lease=lease), LedgerEntry(name="b")])
    assert [(one.observation, one.lease) for one in result.ours] == [("unknown", lease)]
    assert result.gone == ("b",)
    assert result.foreign == ()
    never_ready = await provider.acquire(SPEC, RUN)
    await provider.release(never_ready)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real agent without keys."""
    if shutil.which("ssh-agent") is None:
        pytest.skip("ssh-agent is missing: install the package openssh-client")
    path = str(tmp_path / "agent")
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # it listens now
    monkeypatch.setenv("SSH_AUTH_SOCK", path)
    yield path
    process.terminate()
    process.wait()


async def test_an_agent_logs_in_and_is_not_forwarded(sshd: Sshd, agent: str) -> None:
    provider = _provider(sshd.settings(key=None, agent=True))
    await provider.preflight()
    lease = await provider.wait_ready(await provider.acquire(SPEC, RUN))
    with pytest.raises(RemoteError) as caught:
        await provider.open_session(lease)
    assert caught.value.code == "agent_unusable", "a key from elsewhere was offered"
    adding = await asyncio.create_subprocess_exec("ssh-add", "-q", str(sshd.client_key))
    assert await adding.wait() == 0
    async with await provider.open_session(lease) as session:
        result = await session.run(["printenv", "SSH_AUTH_SOCK"])
        assert (result.exit_status, result.stdout) == (1, b"")
        assert (await session.run(["true"])).exit_status == 0


async def test_a_missing_agent_is_reported_before_a_run(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    provider = _provider(sshd.settings(key=None, agent=True))
    for attempt, code in ((provider.preflight(), "agent_missing"), (_open(provider), "agent_unusable")):
        with pytest.raises(GlasshouseError) as caught:
            await attempt
        assert caught.value.code == code
    with pytest.raises(GlasshouseError) as caught:
        await _provider(sshd.settings(key=str(tmp_path / "absent"))).preflight()
    assert caught.value.code == "key_missing"


async def _open(provider: StaticProvider) -> None:
    await provider.open_session(await _ready(provider))
