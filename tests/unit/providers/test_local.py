from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import asyncssh
import msgspec
import pytest

import engine
from engine.errors import ProviderError, RemoteError, UsageError
from engine.providers import provider_for
from engine.providers.local.files import Ready, read_ready
from engine.providers.local.provider import LocalProvider
from engine.providers.protocol import Lease, LedgerEntry, Provider, Scope, Spec, allocation_name
from engine.providers.settings import load_settings
from engine.remote.session import SshSession
from engine.system.processes import is_alive, live_process
from tests.needs import LOCAL_EXTRA

PACKAGES = Path(engine.__file__).parent.parent


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[LocalProvider]:
    """A provider whose allocations are released after the test."""
    made = LocalProvider(tmp_path)
    yield made
    for allocation in (await made.reconcile(())).foreign:
        if allocation.lease is not None:
            await made.release(allocation.lease)


async def _acquire(provider: LocalProvider) -> Lease:
    return await provider.acquire(Spec(name=allocation_name("test", "run")), "run")


async def _ready(provider: LocalProvider) -> Lease:
    return await provider.wait_ready(await _acquire(provider))


def _folder(lease: Lease) -> Path:
    return Path(lease.root).parent


def _server(lease: Lease) -> Ready:
    ready = read_ready(_folder(lease))
    assert ready is not None
    return ready


def _kill(lease: Lease) -> None:
    server = _server(lease)
    os.kill(server.pid, signal.SIGKILL)
    _wait(lambda: not is_alive(server.pid, server.start))


def _wait(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


def _detached(lease: Lease, *command: str) -> int:
    """Start a command of the allocation that outlives its connection; returns its pid."""
    script = f"setsid {' '.join(command)} </dev/null >/dev/null 2>&1 & echo $!"

    async def start() -> bytes:
        async with await SshSession.connect(lease.endpoint()) as session:
            return (await session.run(["sh", "-c", script])).stdout

    return int(asyncio.run(start()))


def _proc(name: str) -> bytes:
    return Path("/proc", name).read_bytes()


def _modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in [folder, *folder.iterdir()]}


def test_it_is_a_provider(tmp_path: Path) -> None:
    made = provider_for("local", tmp_path, load_settings(tmp_path))
    assert isinstance(made, Provider)
    assert made.name == "local"
    with pytest.raises(UsageError) as caught:
        provider_for("clouds", tmp_path, load_settings(tmp_path))
    assert caught.value.code == "provider_unknown"


async def test_this_machine_is_quoted_at_no_cost(provider: LocalProvider) -> None:
    await provider.preflight()
    quote = await provider.quote(Spec(name="x"))
    assert quote.price_per_hour == 0.0
    assert quote.gpu_model


def test_without_the_extra_preflight_names_what_to_install(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    site = Path(msgspec.__file__).parent.parent
    for path in site.iterdir():
        if path.name.split(".")[0].split("-")[0] not in {"torch", "transformers", "peft"}:
            (bare / path.name).symlink_to(path)
    code = (
        f"import sys; sys.path += [{str(PACKAGES)!r}, {str(bare)!r}]\n"
        "from pathlib import Path\n"
        "from engine.errors import GlasshouseError\n"
        "from engine.providers import preflight\nfrom engine.providers.settings import Settings\n"
        "try:\n    preflight('local', Path('/nowhere'), Settings())\n"
        "except GlasshouseError as error:\n    print(error.code, error.exit_code, error.message, error.hint)\n"
        "print([name for name in ('torch', 'transformers', 'peft', 'textual') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    output, loaded = done.stdout.splitlines()
    assert output.startswith("extra_missing 2 ")
    assert "torch, transformers, peft" in output
    assert "pip install 'glasshouse[local]'" in output
    assert loaded == "[]"


def test_preflight_imports_no_torch(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason=LOCAL_EXTRA)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "import engine.providers\nfrom engine.providers.settings import Settings\n"
        "assert 'asyncssh' not in sys.modules\n"
        f"engine.providers.preflight('local', Path({str(tmp_path)!r}), Settings())\n"
        "print([name for name in ('torch', 'transformers', 'peft', 'textual') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGES)
    assert done.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []


async def test_everything_of_an_allocation_is_private(provider: LocalProvider, tmp_path: Path) -> None:
    lease = await _ready(provider)
    modes = _modes(_folder(lease))
    assert modes.pop(lease.name) == modes.pop("root") == 0o700
    assert set(modes.values()) == {0o600}
    assert _modes(tmp_path / "local")["local"] == 0o700


async def test_a_lease_holds_no_secret_and_survives_its_storage(provider: LocalProvider) -> None:
    lease = await _ready(provider)
    stored = msgspec.json.encode(lease)
    assert b"PRIVATE" not in stored
    again = msgspec.json.decode(stored, type=Lease)
    assert again == lease
    async with await provider.open_session(again) as session:
        assert (await session.run(["pwd"])).stdout.decode().strip() == lease.root


async def test_a_lease_is_not_reachable_before_it_is_ready(provider: LocalProvider) -> None:
    lease = await _acquire(provider)
    assert await provider.observe(lease) == "stopped"
    with pytest.raises(ProviderError) as caught:
        await provider.open_session(lease)
    assert caught.value.code == "allocation_not_ready"


async def test_a_restarted_runner_adopts_the_allocation_of_the_same_name(
    provider: LocalProvider, tmp_path: Path
) -> None:
    spec = Spec(name=allocation_name("test", "run"))
    first = await provider.acquire(spec, "run")
    assert await LocalProvider(tmp_path).acquire(spec, "run") == first
    ready = await provider.wait_ready(first)
    assert await LocalProvider(tmp_path).wait_ready(first) == ready


async def test_an_interrupted_acquisition_is_completed(provider: LocalProvider, tmp_path: Path) -> None:
    spec = Spec(name=allocation_name("test", "run"))
    (tmp_path / "local" / spec.name).mkdir(parents=True)
    (tmp_path / "local" / spec.name / "host_key").write_bytes(b"half")
    lease = await provider.wait_ready(await provider.acquire(spec, "run"))
    async with await provider.open_session(lease) as session:
        assert (await session.run(["true"])).exit_status == 0


async def test_a_killed_server_comes_back_on_its_port_with_its_key(provider: LocalProvider) -> None:
    lease = await _ready(provider)
    before = _server(lease)
    assert await provider.observe(lease) == "alive"
    await asyncio.to_thread(_kill, lease)
    assert await provider.observe(lease) == "stopped"
    phases: list[str] = []
    assert await provider.wait_ready(lease, phases.append) == lease
    assert phases == ["ssh server"]
    assert await provider.observe(lease) == "alive"
    assert _server(lease).pid != before.pid


async def test_a_taken_port_gives_another_address_and_the_same_key(provider: LocalProvider) -> None:
    lease = await _ready(provider)
    assert lease.address is not None
    await asyncio.to_thread(_kill, lease)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for _ in range(100):  # another process may have it for its own connection, for a moment
            with contextlib.suppress(OSError):
                other.bind(("127.0.0.1", lease.address.port))
                other.listen()
                break
            await asyncio.sleep(0.05)
        moved = await provider.wait_ready(lease)
    assert moved.address is not None
    assert moved.address.port != lease.address.port
    assert moved.address.host_key == lease.address.host_key
    async with await provider.open_session(moved) as session:
        assert (await session.run(["true"])).exit_status == 0


async def test_a_detached_process_outlives_the_killed_server_and_ends_with_the_allocation(
    provider: LocalProvider,
) -> None:
    lease = await _ready(provider)
    pid = await asyncio.to_thread(_detached, lease, "sleep", "600")
    await asyncio.to_thread(_kill, lease)
    process = live_process(pid)
    assert process is not None
    await provider.wait_ready(lease)
    await provider.release(lease)
    assert not is_alive(process.pid, process.start)


async def test_release_proves_empty(provider: LocalProvider) -> None:
    lease = await _ready(provider)
    kept = await _ready(provider)
    server = _server(lease)
    scope = Scope(names=(lease.name,), leases=(lease,))
    assert (await provider.prove_empty(scope)).count == 1
    await provider.release(lease)
    await provider.release(lease)
    proof = await provider.prove_empty(scope)
    assert (proof.count, proof.others, proof.scope) == (0, 1, (lease.name,))
    assert await provider.observe(lease) == "gone"
    assert not is_alive(server.pid, server.start)
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(("127.0.0.1", server.port))
    with pytest.raises(ProviderError) as gone:
        await provider.wait_ready(lease)
    assert gone.value.code == "allocation_gone"
    async with await provider.open_session(kept) as session:
        assert (await session.run(["true"])).exit_status == 0


async def test_a_server_that_was_left_behind_is_counted(provider: LocalProvider) -> None:
    lease = await _ready(provider)
    server = _server(lease)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        await asyncio.to_thread(shutil.rmtree, _folder(lease))
        proof = await provider.prove_empty(Scope(names=(lease.name,)))
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert proof.count == 1
    await asyncio.to_thread(_wait, lambda: not is_alive(server.pid, server.start))
    assert (await provider.prove_empty(Scope(names=(lease.name,)))).count == 0


async def test_a_cancelled_release_still_completes(provider: LocalProvider) -> None:
    lease = await _ready(provider)
    server = _server(lease)
    releasing = asyncio.create_task(provider.release(lease))
    await asyncio.sleep(0)
    releasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await releasing
    await asyncio.to_thread(_wait, lambda: not is_alive(server.pid, server.start))
    await asyncio.to_thread(_wait, lambda: not _folder(lease).exists())


async def test_ledger_and_folders_are_compared(provider: LocalProvider) -> None:
    known, foreign = await _ready(provider), await _acquire(provider)
    result = await provider.reconcile([LedgerEntry(name=known.name), LedgerEntry(name="glasshouse-lost-run-1")])
    assert [(item.name, item.observation) for item in result.ours] == [(known.name, "alive")]
    assert [(item.name, item.observation) for item in result.foreign] == [(foreign.name, "stopped")]
    assert result.foreign[0].lease == foreign
    assert result.gone == ("glasshouse-lost-run-1",)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc"])
async def test_a_name_that_is_a_path_is_refused(provider: LocalProvider, name: str) -> None:
    with pytest.raises(ProviderError) as caught:
        await provider.acquire(Spec(name=name), "run")
    assert caught.value.code == "allocation_unknown"


async def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"")
    with pytest.raises(ProviderError) as caught:
        await _acquire(LocalProvider(tmp_path / "home"))
    assert caught.value.code == "acquire_failed"


async def test_only_plain_files_under_the_root_are_served(provider: LocalProvider, tmp_path: Path) -> None:
    lease = await _ready(provider)
    (tmp_path / "outside").write_bytes(b"secret")
    (Path(lease.root) / "link").symlink_to(tmp_path / "outside")
    (Path(lease.root) / "way").symlink_to(tmp_path)
    async with await provider.open_session(lease) as session:
        for path in (
            "/etc/passwd",
            "../client_key",
            f"{lease.root}/../host_key",
            f"{lease.root}/link",
            f"{lease.root}/way/outside",
        ):
            with pytest.raises(RemoteError) as caught:
                await session.read_at(path, 0, 10)
            assert caught.value.code == "remote_denied"
        sftp = await session.sftp()
        for attempt in (
            sftp.symlink("/etc/passwd", f"{lease.root}/made"),
            sftp.link(f"{lease.root}/link", f"{lease.root}/made"),
            sftp.readlink(f"{lease.root}/link"),
            sftp.chmod(f"{lease.root}/link", 0o777),
            sftp.remove(str(tmp_path / "outside")),
        ):
            with pytest.raises(asyncssh.SFTPPermissionDenied):
                await attempt
        assert (await sftp.stat(f"{lease.root}/link")).size != len(b"secret")


async def test_nothing_is_forwarded_and_no_shell_is_given(provider: LocalProvider) -> None:
    lease = await _ready(provider)
    assert lease.address is not None
    endpoint = lease.endpoint()
    async with asyncssh.connect(
        endpoint.host,
        endpoint.port,
        username=endpoint.user,
        client_keys=[str(endpoint.client_key)],
        known_hosts=([asyncssh.import_public_key(endpoint.host_key)], [], []),
        config=None,
        agent_path=None,
    ) as connection:
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_connection("127.0.0.1", lease.address.port)
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.start_server(lambda *_: lambda *_: None, "127.0.0.1", 0)
        shell = await connection.run(timeout=60)
        assert (shell.exit_status, shell.stdout) == (1, "")
    with pytest.raises(asyncssh.PermissionDenied):
        await asyncssh.connect(
            endpoint.host,
            endpoint.port,
            username=endpoint.user,
            password="x",
            client_keys=None,
            known_hosts=None,
            config=None,
            agent_path=None,
        )
    with pytest.raises(RemoteError):
        await SshSession.connect(replace(endpoint, user=""))


async def test_commands_see_no_token_of_the_operator(provider: LocalProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "RUNPOD_API_KEY", "GLASSHOUSE_PASSPHRASE", "SSH_AUTH_SOCK"):
        monkeypatch.setenv(name, "topsecret")
    lease = await _ready(provider)
    async with await provider.open_session(lease) as session:
        output = (await session.run(["env"])).stdout
    assert b"PATH=" in output
    assert b"PYTHONPATH=" not in output
    assert b"topsecret" not in output
    assert b"topsecret" not in _proc(f"{_server(lease).pid}/environ")


async def test_every_command_has_its_own_session(provider: LocalProvider) -> None:
    lease = await _ready(provider)
    server = live_process(_server(lease).pid)
    assert server is not None
    async with await provider.open_session(lease) as session:
        sessions = {
            (await session.run(["cut", "-d", " ", "-f", "6", "/proc/self/stat"])).stdout.strip() for _ in range(2)
        }
    assert str(server.session).encode() not in sessions
    assert len(sessions) == 2


async def test_the_server_listens_on_loopback_only(provider: LocalProvider) -> None:
    lease = await _ready(provider)
    assert lease.address is not None
    port = f":{lease.address.port:04X}"
    for table, loopback in (("tcp", "0100007F"), ("tcp6", None)):
        rows = _proc(f"net/{table}").decode().splitlines()[1:]
        local = [row.split()[1] for row in rows if row.split()[3] == "0A" and row.split()[1].endswith(port)]
        assert local == ([f"{loopback}{port}"] if loopback else [])
