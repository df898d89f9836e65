"""`doctor --provider static`, `allocations` and the overview: every host is tried, and a bad one blocks only itself."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.allocations.overview import overview
from engine.errors import GlasshouseError, RemoteError
from engine.plan import preset
from engine.providers.protocol import Spec
from engine.providers.settings import Settings
from engine.providers.static.provider import StaticProvider
from engine.remote.environment import prepare
from engine.remote.lockfile import shipped_lock
from engine.runner.start import start_run
from engine.store.writer import Writer
from glasshouse_tui.commands.allocations import trouble_text
from glasshouse_tui.screens.fleet_allocations import _query_lines
from tests.functional.providers.openssh import USER, Sshd, openssh

RUN = "0123456789ab"
PARTS = ("login", "commands", "home", "sftp", "python", "lock")


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    (tmp_path / "host").mkdir()
    with openssh(tmp_path / "host") as server:
        yield server


def _table(sshd: Sshd, name: str, **more: str) -> str:
    fields = {
        "address": '"127.0.0.1"',
        "port": str(sshd.port),
        "user": f'"{USER}"',
        "key": f'"{sshd.client_key}"',
        "host_key": f'"{sshd.line}"',
        "root": f'"{sshd.folder}/root"',
        **more,
    }
    return f'[[host]]\nname = "{name}"\n' + "".join(f"{key} = {value}\n" for key, value in fields.items())


def _home(tmp_path: Path, *tables: str) -> Path:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text("\n".join(tables))
    return home


def _glasshouse(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("glasshouse")), "--home", str(home), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _doctor(home: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    done = _glasshouse(home, "doctor", "--provider", "static", "--json")
    return done.returncode, {one["name"]: one for one in json.loads(done.stdout)["checks"]}


def _files(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if path.name != "sshd.log"}


def test_every_part_of_a_good_host_is_seen_and_nothing_is_left_there(sshd: Sshd, tmp_path: Path) -> None:
    home = _home(tmp_path, _table(sshd, "box"))
    before = _files(sshd.folder)
    status, found = _doctor(home)
    assert status == 0
    assert list(found) == [f"host box: {part}" for part in PARTS]
    assert {one["status"] for one in found.values()} == {"ok"}
    assert _files(sshd.folder) == before


BAD: list[tuple[dict[str, Any], dict[str, str], str, str, Sequence[str]]] = [
    ({}, {"user": '"nobody-here"'}, "login", "auth_rejected", ["login"]),
    ({"options": 'command="echo no"'}, {}, "commands", "login_refuses_commands", ["login", "commands"]),
    ({"config": ["Subsystem other /bin/true"]}, {}, "sftp", "sftp_unavailable", PARTS),
    ({}, {"python": '"/absent"'}, "python", "environment_no_lock", PARTS),
    ({}, {"root": '"/proc/nothing/here"'}, "lock", "host_lock_failed", PARTS),
]


@pytest.mark.parametrize(("given", "more", "part", "code", "seen"), BAD)
def test_what_is_wrong_with_a_host_is_one_finding_and_other_hosts_are_tried(
    sshd: Sshd, tmp_path: Path, given: dict[str, Any], more: dict[str, str], part: str, code: str, seen: Sequence[str]
) -> None:
    (tmp_path / "bad").mkdir()
    with openssh(tmp_path / "bad", **given) as bad:
        home = _home(tmp_path, _table(bad, "bad", **more), _table(sshd, "box"), _table(sshd, "odd", colour='"red"'))
        status, found = _doctor(home)
    assert status == 1
    assert [name for name in found if name.startswith("host bad")] == [f"host bad: {name}" for name in seen]
    assert found[f"host bad: {part}"]["detail"].startswith(f"{code}: ")
    assert found[f"host bad: {part}"]["hint"]
    assert {found[f"host box: {name}"]["status"] for name in PARTS} == {"ok"}
    assert "unknown field `colour`" in found["host odd"]["detail"]


def test_a_bad_host_is_shown_and_blocks_neither_listing_nor_runs_elsewhere(sshd: Sshd, tmp_path: Path) -> None:
    home = _home(
        tmp_path, _table(sshd, "box"), _table(sshd, "odd", colour='"red"'), _table(sshd, "keyless", key='"/absent"')
    )
    with Writer(home):
        pass
    troubles = {trouble.host: trouble for trouble in overview(home, query=False).troubles}
    assert {name: one.code for name, one in troubles.items()} == {"odd": "config_invalid", "keyless": "key_missing"}
    assert "host odd cannot be used" in trouble_text(troubles["odd"])
    shown = str(_query_lines(overview(home, query=False)))
    assert "host odd cannot be used" in shown
    done = _glasshouse(home, "allocations", "--offline")
    assert done.returncode == 0
    assert "host keyless cannot be used (key_missing)" in done.stderr
    checks = _glasshouse(home, "doctor", "--json").stdout
    found = {one["name"]: one for one in json.loads(checks)["checks"]}
    assert (found["host box"]["status"], found["host odd"]["status"]) == ("ok", "missing")
    plan = preset("demo")
    for host, code in (("odd", "config_invalid"), ("keyless", "key_missing"), ("none", "host_unknown")):
        request = msgspec.structs.replace(plan.provider, name="static", allocation=host)
        with pytest.raises(GlasshouseError) as caught:
            start_run(home, msgspec.structs.replace(plan, provider=request))
        assert caught.value.code == code


def test_a_disk_without_execution_is_named_before_an_installation(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    (tmp_path / "host").mkdir()
    mount = f"mount -t tmpfs -o noexec,mode=755 none {root}"
    with openssh(tmp_path / "host", mounts=[mount]) as sshd:
        status, found = _doctor(_home(tmp_path, _table(sshd, "box", root=f'"{root}/runs"')))
        assert (status, found["host box: lock"]["detail"].partition(":")[0]) == (1, "environment_noexec")
        provider = StaticProvider(Settings(host=(sshd.settings(root=f"{root}/runs"),)))

        async def install() -> None:
            lease = await provider.wait_ready(await provider.acquire(Spec(name="x"), RUN))
            async with await provider.open_session(lease) as session:
                await prepare(session, lease, lock=shipped_lock())

        with pytest.raises(RemoteError) as caught:
            asyncio.run(install())
    assert caught.value.code == "environment_noexec"
    assert "root" in caught.value.hint


def test_a_live_test_of_static_hosts_is_refused(tmp_path: Path) -> None:
    assert _glasshouse(tmp_path, "doctor", "--provider", "static", "--live", "--max-cost", "1").returncode == 2
