"""SSH servers and logins as they are in the world, each a real sshd: what is wrong is named, with what to do."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from engine.errors import GlasshouseError, RemoteError
from engine.providers.protocol import Spec
from engine.providers.settings import HostSettings, Settings
from engine.providers.static import ssh_config
from engine.providers.static.provider import StaticProvider
from engine.remote import connections
from engine.remote.endpoint import LinkLimits
from engine.remote.login import check_python
from tests.functional.providers.openssh import openssh

LIMITS = LinkLimits(connect=30, login=30, command=60)
SPEC = Spec(name="glasshouse-test-run-1")
RUN = "0123456789ab"
EXTERNAL = "/usr/lib/openssh/sftp-server"


def _provider(*hosts: HostSettings) -> StaticProvider:
    return StaticProvider(Settings(host=hosts), LIMITS)


async def _refusal(host: HostSettings) -> GlasshouseError:
    """The error of a run that claims the host."""
    with pytest.raises(GlasshouseError) as caught:
        await _provider(host).claim(SPEC, RUN)
    assert caught.value.hint, "nothing says what to do"
    assert caught.value.message.isprintable()
    return caught.value


def _program(folder: Path, text: str, name: str = "shell") -> str:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def _home(folder: Path, **files: str) -> Path:
    home = folder / "home"
    home.mkdir()
    for name, text in files.items():
        (home / f".{name}").write_text(text)
    return home


async def test_what_a_start_file_prints_is_named_as_the_hosts_text(tmp_path: Path) -> None:
    home = _home(tmp_path, bashrc="printf 'Welcome\\033]0;x\\007 to\\n the cluster\\n'\n")
    with openssh(tmp_path, login_shell="/bin/bash", home=home) as sshd:
        error = await _refusal(sshd.settings())
    assert error.code == "login_output"
    assert 'The host\'s text: "Welcome ]0;x to the cluster".' in error.message
    assert "bashrc" in error.hint


async def test_a_start_file_that_prints_without_end_is_cut_off(tmp_path: Path) -> None:
    with openssh(tmp_path, login_shell="/bin/bash", home=_home(tmp_path, bashrc="yes noise\n")) as sshd:
        error = await _refusal(sshd.settings())
    assert (error.code, "more than 64 KiB" in error.message) == ("login_output", True)


async def test_sftp_behind_a_start_file_that_prints_is_named_too(tmp_path: Path) -> None:
    home = _home(tmp_path, bashrc="echo hello\n")
    config = [f"Subsystem sftp {EXTERNAL}"]
    with openssh(tmp_path, login_shell="/bin/bash", home=home, config=config) as sshd:
        provider = _provider(sshd.settings())
        async with await provider.open_session(await provider.wait_ready(await provider.acquire(SPEC, RUN))) as session:
            with pytest.raises(RemoteError, match="not SFTP") as caught:
                await session.sftp()
    assert caught.value.code == "login_output"


@pytest.mark.parametrize(
    ("given", "code", "said", "hinted"),
    [
        ({"options": 'command="echo only backups"'}, "login_refuses_commands", "only backups", "authorized_keys"),
        ({"config": ["ForceCommand internal-sftp"]}, "login_refuses_commands", "SFTP only", "ForceCommand"),
        ({"login_shell": "/usr/sbin/nologin"}, "login_refuses_commands", "may not run commands", "chsh"),
        ({"login_shell": "/bin/false"}, "login_refuses_commands", "may not run commands", "chsh"),
        ({"login_shell": "/bin/rbash"}, "login_restricted", "restricted", "chsh"),
        ({"config": ["MaxSessions 0"]}, "sessions_refused", "no session", "MaxSessions"),
    ],
)
async def test_a_login_that_runs_no_commands_is_named(
    tmp_path: Path, given: dict[str, Any], code: str, said: str, hinted: str
) -> None:
    if shutil.which(given.get("login_shell", "sh")) is None:
        pytest.skip(f"{given['login_shell']} is missing: run on Debian or Ubuntu")
    with openssh(tmp_path, **given) as sshd:
        error = await _refusal(sshd.settings())
    assert (error.code, said in error.message, hinted in error.hint) == (code, True, True), error.as_dict()


@pytest.mark.parametrize("line", ["Subsystem other /bin/true", "Subsystem sftp /nonexistent"])
async def test_a_server_without_sftp_is_named(tmp_path: Path, line: str) -> None:
    with openssh(tmp_path, config=[line]) as sshd:
        provider = _provider(sshd.settings())
        lease = await provider.wait_ready(await provider.acquire(SPEC, RUN))
        async with await provider.open_session(lease) as session:
            with pytest.raises(RemoteError) as caught:
                await session.exists("/")
            assert (await session.run(["true"])).exit_status == 0
    assert caught.value.code == "sftp_unavailable"
    assert "Subsystem" in caught.value.hint


async def test_one_session_a_connection_is_enough(tmp_path: Path) -> None:
    """SFTP and several commands at once, where sshd opens one channel on each connection."""
    with openssh(tmp_path, config=["MaxSessions 1"]) as sshd:
        provider = _provider(sshd.settings())
        lease = await provider.wait_ready(await provider.acquire(SPEC, RUN))
        async with await provider.open_session(lease) as session:
            assert await session.exists("/")
            results = await asyncio.gather(*(session.run(["sh", "-c", "sleep 0.2; echo done"]) for _ in range(3)))
            assert [one.stdout for one in results] == [b"done\n"] * 3
            for _ in range(12):
                assert (await session.run(["true"])).exit_status == 0
            assert len(session._connections.all()) <= connections.MOST
        assert await provider.claim(SPEC, RUN) is None
        await provider.release(lease)


@pytest.mark.parametrize(
    ("config", "kind", "offered", "accepted"),
    [
        (["KexAlgorithms diffie-hellman-group1-sha1"], "key exchange", "diffie-hellman-group1-sha1", "curve25519"),
        (["Ciphers aes128-cbc"], "encryption", "aes128-cbc", "aes256-ctr"),
        (["HostKeyAlgorithms ssh-rsa"], "host key", "ssh-rsa", "rsa-sha2-512"),
    ],
)
@pytest.mark.parametrize("form", ["line", "fingerprint"])
async def test_an_old_server_is_told_what_it_lacks(
    tmp_path: Path, config: Sequence[str], kind: str, offered: str, accepted: str, form: str
) -> None:
    key = asyncssh.generate_private_key("ssh-rsa" if kind == "host key" else "ssh-ed25519")
    with openssh(tmp_path, config=config, host=key) as sshd:
        pin = sshd.line if form == "line" else key.get_fingerprint()
        error = await _refusal(sshd.settings(host_key=pin))
        log = sshd.log
    assert error.code == "algorithms_outdated"
    before, _, after = error.message.partition("accepted are")
    assert kind in before
    assert offered in before
    assert accepted in after
    assert "Accepted publickey" not in log


async def test_a_python_that_is_absent_or_too_old_is_named_before_the_lock(tmp_path: Path) -> None:
    old = _program(tmp_path, "#!/bin/sh\nprintf 'cpython 3.8'\n", "python3.8")
    broken = _program(tmp_path, "#!/bin/sh\necho no libc >&2\nexit 1\n", "broken")
    with openssh(tmp_path) as sshd:
        for python, said in ((old, "is cpython 3.8"), ("/absent", "no Python called /absent"), (broken, "no libc")):
            error = await _refusal(sshd.settings(python=python))
            assert error.code == "environment_no_lock"
            assert said in error.message
            assert "CPython 3.11, 3.12 or 3.13 is needed" in error.message
            assert "python" in error.hint
        provider = _provider(sshd.settings())
        async with await provider.open_session(await provider.wait_ready(await provider.acquire(SPEC, RUN))) as session:
            assert (await check_python(session, "python3", "image")).startswith("3.")
    assert not (tmp_path / "root").exists(), "something was left there"


async def test_a_key_with_a_passphrase_is_named_before_a_run_with_the_agent_as_the_way(tmp_path: Path) -> None:
    key = tmp_path / "locked"
    key.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key(passphrase="x"))
    with openssh(tmp_path) as sshd:
        provider = _provider(sshd.settings(key=str(key)))
        for attempt in (provider.preflight(), provider.claim(SPEC, RUN)):
            with pytest.raises(GlasshouseError) as caught:
                await attempt
            assert caught.value.code == "key_unusable"
            assert f"{key} has a passphrase" in caught.value.message
            assert "agent = true" in caught.value.hint


async def test_a_wrong_user_and_a_wrong_key_say_what_was_offered(tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    key = asyncssh.generate_private_key("ssh-ed25519")
    stranger.write_bytes(key.export_private_key())
    with openssh(tmp_path) as sshd:
        error = await _refusal(sshd.settings(user="nobody-here"))
        assert (error.code, "user nobody-here" in error.message) == ("auth_rejected", True)
        error = await _refusal(sshd.settings(key=str(stranger)))
    assert error.code == "auth_rejected"
    assert key.get_fingerprint() in error.message
    assert str(stranger) in error.hint


@pytest.mark.parametrize("form", ["line", "fingerprint"])
async def test_a_wrong_host_key_says_which_was_expected_and_which_was_shown(tmp_path: Path, form: str) -> None:
    expected = asyncssh.generate_private_key("ssh-ed25519")
    pin = expected.get_fingerprint() if form == "fingerprint" else expected.export_public_key().decode().strip()
    with openssh(tmp_path) as sshd:
        error = await _refusal(sshd.settings(host_key=pin))
    assert error.code == "host_key_mismatch"
    assert f"presents the host key {sshd.host_key.get_fingerprint()}" in error.message
    assert expected.get_fingerprint() in error.message
    assert "host box" in error.hint
    assert "config.toml" in error.hint


async def test_names_and_addresses_that_nothing_answers_at_are_told_apart(tmp_path: Path) -> None:
    with openssh(tmp_path) as sshd, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        unused = silent.getsockname()[1]
        refused = await _refusal(sshd.settings(port=unused))
        assert "refused: nothing listens" in refused.message
        sixth = await _refusal(sshd.settings(address="::1", port=unused))
        assert f"[::1]:{unused}" in sixth.message
        unknown = await _refusal(sshd.settings(address="no-such-host.invalid"))
        assert "the name no-such-host.invalid cannot be resolved" in unknown.message
        silent.listen()
        limits = LinkLimits(connect=0.5, login=0.5, command=60)
        with pytest.raises(RemoteError, match=r"no answer in time|no answer came in time") as caught:
            await StaticProvider(Settings(host=(sshd.settings(port=unused),)), limits).claim(SPEC, RUN)
    assert {one.code for one in (refused, sixth, unknown, caught.value)} == {"connect_failed"}


async def test_an_alias_of_the_ssh_configuration_says_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("ssh") is None:
        pytest.skip("ssh is missing: install the package openssh-client")
    (tmp_path / ".ssh").mkdir()
    config = tmp_path / ".ssh" / "config"
    config.write_text(
        "Host bigbox other\n  HostName 10.1.2.3\n  Port 2222\n  User ann\n  IdentityFile ~/.ssh/big\n"
        "  ProxyJump login.lan\nHost *\n  User me\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    with openssh(tmp_path) as sshd:
        host = sshd.settings(address="bigbox")
        error = await _refusal(host)
        assert not ssh_config.alias_hint(sshd.settings())
    assert error.code == "connect_failed"
    for part in ('address = "10.1.2.3"', "port = 2222", 'user = "ann"', ".ssh/big", "proxy_jump", "is not read"):
        assert part in error.hint
    ran = tmp_path / "ran"
    config.write_text(f'Match exec "touch {ran}"\n  User x\n' + config.read_text())
    assert "ssh -G bigbox" in ssh_config.alias_hint(host)
    assert not ran.exists(), "a command of the configuration was run"


HOMES: dict[str, tuple[Callable[[Path], str], str, str]] = {
    "full": (lambda home: f"mount -t tmpfs -o size=4k,nr_inodes=2 none {home}", "no space left", "another disk"),
    "read-only": (lambda home: f"mount -t tmpfs -o ro none {home}", "read-only", "mounted for writing"),
}


@pytest.mark.parametrize("kind", HOMES)
async def test_a_home_that_cannot_be_written_to_is_named(tmp_path: Path, kind: str) -> None:
    mount, said, hinted = HOMES[kind]
    home = _home(tmp_path)
    fill = f"head -c 4096 /dev/zero > {home}/ballast" if kind == "full" else "true"
    with openssh(tmp_path, home=home, mounts=[mount(home), fill]) as sshd:
        error = await _refusal(sshd.settings(root="glasshouse"))
    assert (error.code, said in error.message, hinted in error.hint) == ("host_lock_failed", True, True), (
        error.as_dict()
    )
    assert f"{home}/glasshouse" in error.message


async def test_a_home_that_does_not_exist_is_named_and_never_taken_for_the_root_folder(tmp_path: Path) -> None:
    with openssh(tmp_path, home=tmp_path / "absent") as sshd:
        error = await _refusal(sshd.settings(root="glasshouse"))
        assert error.code == "remote_home_unknown"
        assert "absolute path" in error.hint
        provider = _provider(sshd.settings())  # an absolute root needs no home
        assert await provider.claim(SPEC, RUN) is None
        await provider.let_go(SPEC, RUN)


async def test_a_login_without_the_variable_home_still_has_its_home(tmp_path: Path) -> None:
    home = _home(tmp_path)
    shell = _program(tmp_path, '#!/bin/sh\nunset HOME\nexec /bin/sh "$@"\n')
    with openssh(tmp_path, login_shell=shell, home=home) as sshd:
        provider = _provider(sshd.settings(root="glasshouse"))
        lease = await provider.wait_ready(await provider.acquire(SPEC, RUN))
        assert lease.root == f"{home}/glasshouse"
        assert await provider.claim(SPEC, RUN) is None
        await provider.release(lease)


async def test_an_agent_with_too_many_keys_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("ssh-agent") is None:
        pytest.skip("ssh-agent is missing: install the package openssh-client")
    path = str(tmp_path / "agent")
    process = await asyncio.to_thread(subprocess.Popen, ["ssh-agent", "-D", "-a", path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    await asyncio.to_thread(process.stdout.readline)
    monkeypatch.setenv("SSH_AUTH_SOCK", path)
    try:
        async with asyncssh.connect_agent(path) as agent:
            await agent.add_keys([asyncssh.generate_private_key("ssh-ed25519") for _ in range(4)])
        with openssh(tmp_path, config=["MaxAuthTries 2"]) as sshd:
            error = await _refusal(sshd.settings(key=None, agent=True))
    finally:
        process.terminate()
        process.wait()
    assert (error.code, "4 keys" in error.message, "too many" in error.message) == ("auth_rejected", True, True)
