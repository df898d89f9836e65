from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engine.errors import RemoteError
from engine.remote.launch import Launched, alive, launch, launch_command
from engine.system.processes import ProcessStat, is_alive, live_process
from engine.wire import sha256_hex
from engine.worker.isolation.binding import BIND_NOW

if TYPE_CHECKING:
    from engine.remote.session import SshSession
    from tests.unit.remote.conftest import Allocation

REPORT = """
    import json, os, sys
    from pathlib import Path
    folder = Path(sys.argv[3])
    descriptors = {int(n): os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                   if os.path.exists(f"/proc/self/fd/{n}")}
    report = {"argv": sys.argv, "path": sys.path, "flags": [sys.flags.isolated, sys.flags.no_site],
            "session": os.getsid(0), "pid": os.getpid(), "env": dict(os.environ), "descriptors": descriptors,
            "cwd": os.getcwd(), "umask": os.umask(0o077)}
    print("hello from the supervisor", flush=True)
    (folder / "report.part").write_text(json.dumps(report))
    (folder / "report.part").rename(folder / "report.json")
"""
WAIT = """
    import time
    (folder / "events.jsonl").write_bytes(b"")
    until = time.monotonic() + 60
    while not (folder / "go").exists() and time.monotonic() < until:
        time.sleep(0.01)
    import late
    (folder / "late").write_text(late.WHO)
    time.sleep(30)
"""


def _bundle(path: Path, main: str, who: str = "measured") -> str:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("__main__.py", main)
        archive.writestr("late.py", f"WHO = {who!r}\n")
    path.write_bytes(made.getvalue())
    return sha256_hex(made.getvalue())


def _program(*parts: str) -> str:
    return "\n".join(textwrap.dedent(part) for part in parts)


def _wait_for(path: Path) -> Path:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.01)
    return path


def _end(record: dict[str, Any] | Launched) -> None:
    pid, start = (record.pid, record.start) if isinstance(record, Launched) else (record["pid"], record["start"])
    os.kill(pid, signal.SIGKILL)
    while is_alive(pid, start):
        time.sleep(0.005)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def started() -> Iterator[list[dict[str, Any]]]:
    """Supervisors to kill after the test."""
    made: list[dict[str, Any]] = []
    yield made
    for record in made:
        if is_alive(record["pid"], record["start"]):
            _end(record)


def _launch_here(bundle: Path, digest: str, run_dir: Path, *sites: str) -> tuple[int, dict[str, Any]]:
    command = launch_command(sys.executable, str(bundle), digest, str(run_dir), sites)
    held = os.open("/etc/hostname", os.O_RDONLY)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=60,
            check=False,
            pass_fds=[held],
            env={**os.environ, "SECRET_TOKEN": "x", "LD_PRELOAD": "", "TZ": "UTC"},
        )
    finally:
        os.close(held)
    return done.returncode, json.loads(done.stdout)


def test_changed_bytes_are_refused_and_nothing_starts(run_dir: Path) -> None:
    bundle = run_dir / "bundle.pyz"
    digest = _bundle(bundle, _program(REPORT))
    bundle.write_bytes(bundle.read_bytes() + b"\0")
    status, record = _launch_here(bundle, digest, run_dir)
    assert (status, record["error"]) == (3, "bundle_digest_mismatch")
    assert [path.name for path in run_dir.iterdir()] == ["bundle.pyz"]


def test_the_hashed_bytes_run_even_if_the_file_is_replaced(run_dir: Path, started: list[dict[str, Any]]) -> None:
    bundle = run_dir / "bundle.pyz"
    digest = _bundle(bundle, _program(REPORT, WAIT))
    status, record = _launch_here(bundle, digest, run_dir)
    started.append(record)
    assert status == 0
    _wait_for(run_dir / "report.json")
    _bundle(bundle, "raise SystemExit(1)", who="exchanged")
    (run_dir / "go").touch()
    late = _wait_for(run_dir / "late")
    while not late.read_text():
        time.sleep(0.01)
    assert late.read_text() == "measured"


def test_the_supervisor_is_isolated_detached_and_in_its_run_folder(
    run_dir: Path, started: list[dict[str, Any]]
) -> None:
    bundle = run_dir / "bundle.pyz"
    digest = _bundle(bundle, _program(REPORT, WAIT))
    status, record = _launch_here(bundle, digest, run_dir, "/a/site", "/b site")
    started.append(record)
    report = json.loads(_wait_for(run_dir / "report.json").read_text())
    number = int(report["argv"][0].rsplit("/", 1)[1])
    assert status == 0
    assert record == {"pid": report["pid"], "start": record["start"], "bundle": digest}
    assert is_alive(record["pid"], record["start"])
    sites = ["--site", "/a/site", "--site", "/b site"]
    assert report["argv"] == [f"/proc/self/fd/{number}", "supervisor", "--dir", str(run_dir), *sites]
    assert report["flags"] == [1, 1]
    assert not any("site-packages" in path for path in report["path"])
    assert report["session"] == report["pid"] != os.getsid(0)
    assert report["cwd"] == str(run_dir)
    assert report["umask"] == 0o077
    assert "SECRET_TOKEN" not in report["env"]
    assert "LD_PRELOAD" not in report["env"]
    assert report["env"]["TZ"] == "UTC"
    assert BIND_NOW.items() <= report["env"].items()
    log = str(run_dir / "supervisor.log")
    bundle_memory = "/memfd:glasshouse-bundle (deleted)"
    assert report["descriptors"] == {"0": "/dev/null", "1": log, "2": log, str(number): bundle_memory}
    assert Path(log).read_text() == "hello from the supervisor\n"
    assert Path(log).stat().st_mode & 0o777 == 0o600


def test_the_memory_it_runs_from_cannot_be_changed(run_dir: Path, started: list[dict[str, Any]]) -> None:
    attempt = """
        number = int(sys.argv[0].rsplit("/", 1)[1])
        outcomes = []
        for act in (lambda: os.pwrite(number, b"x", 0), lambda: os.ftruncate(number, 0),
                    lambda: os.pwrite(os.open(sys.argv[0], os.O_RDWR), b"x", 0)):
            try:
                act()
                outcomes.append("changed")
            except OSError as error:
                outcomes.append("refused")
        (folder / "outcomes.part").write_text(json.dumps(outcomes))
        (folder / "outcomes.part").rename(folder / "outcomes.json")
    """
    bundle = run_dir / "bundle.pyz"
    digest = _bundle(bundle, _program(REPORT, attempt))
    started.append(_launch_here(bundle, digest, run_dir)[1])
    assert json.loads(_wait_for(run_dir / "outcomes.json").read_text()) == ["refused"] * 3


def test_a_second_launch_returns_the_first_and_one_after_its_end_is_refused(
    run_dir: Path, started: list[dict[str, Any]]
) -> None:
    bundle = run_dir / "bundle.pyz"
    digest = _bundle(bundle, _program(REPORT, WAIT))
    _, first = _launch_here(bundle, digest, run_dir)
    started.append(first)
    _wait_for(run_dir / "events.jsonl")
    assert _launch_here(bundle, digest, run_dir) == (0, first)
    _end(first)
    status, record = _launch_here(bundle, digest, run_dir)
    assert (status, record["error"]) == (4, "supervisor_ended")


def test_a_launch_that_died_before_its_supervisor_did_anything_is_repeated(
    run_dir: Path, started: list[dict[str, Any]]
) -> None:
    bundle = run_dir / "bundle.pyz"
    digest = _bundle(bundle, _program(REPORT, WAIT))
    (run_dir / "launched.json").write_text(json.dumps({"pid": 2**22, "start": 1, "bundle": digest}))
    status, record = _launch_here(bundle, digest, run_dir)
    started.append(record)
    assert status == 0
    assert is_alive(record["pid"], record["start"])


@pytest.mark.parametrize("kind", ["link", "absent", "folder"])
def test_a_bundle_that_is_not_a_regular_file_is_refused(run_dir: Path, tmp_path: Path, kind: str) -> None:
    digest = _bundle(tmp_path / "real", "")
    bundle = run_dir / "bundle.pyz"
    if kind == "link":
        bundle.symlink_to(tmp_path / "real")
    elif kind == "folder":
        bundle.mkdir()
    status, record = _launch_here(bundle, digest, run_dir)
    assert (status, record["error"]) in {(5, "launch_failed"), (5, "bundle_unreadable")}
    assert not (run_dir / "launched.json").exists()


async def test_a_supervisor_of_another_bundle_is_detected(
    allocation: Allocation, session: SshSession, folder: Path, started: list[dict[str, Any]]
) -> None:
    for code in (None, "launched_other_bundle"):
        digest = _bundle(folder / "bundle.pyz", _program(REPORT, WAIT), who=str(code))
        command = launch(
            session,
            python=allocation.lease.python,
            bundle_path=str(folder / "bundle.pyz"),
            sha256=digest,
            run_dir=str(folder),
            site_paths=(),
        )
        if code is None:
            first = await command
            started.append({"pid": first.pid, "start": first.start})
        else:
            with pytest.raises(RemoteError) as caught:
                await command
            assert caught.value.code == code


async def test_launched_over_ssh_it_outlives_the_killed_server(
    allocation: Allocation, session: SshSession, folder: Path
) -> None:
    digest = _bundle(folder / "bundle.pyz", _program(REPORT, WAIT))

    async def start(over: SshSession) -> Launched:
        return await launch(
            over,
            python=allocation.lease.python,
            bundle_path=str(folder / "bundle.pyz"),
            sha256=digest,
            run_dir=str(folder),
            site_paths=allocation.lease.site_paths,
        )

    launched = await start(session)
    _wait_for(folder / "events.jsonl")
    assert await alive(session, launched.pid, launched.start) is True
    assert await alive(session, launched.pid, launched.start + 1) is False
    assert await alive(session, 2**22, 1) is False
    allocation.kill_server()
    assert await alive(session, launched.pid, launched.start) is None
    async with await allocation.session() as again:
        assert await alive(again, launched.pid, launched.start) is True
        assert await start(again) == launched
        _end(launched)
        assert await alive(again, launched.pid, launched.start) is False
        with pytest.raises(RemoteError) as caught:
            await start(again)
        assert caught.value.code == "supervisor_ended"


@pytest.fixture
def sleeper() -> Iterator[ProcessStat]:
    """A child of this process that is not waited for before the end of the test."""
    with subprocess.Popen(["sleep", "60"]) as child:
        process = live_process(child.pid)
        assert process is not None
        yield process
        child.kill()


async def test_a_zombie_is_not_alive(session: SshSession, sleeper: ProcessStat) -> None:
    assert await alive(session, sleeper.pid, sleeper.start) is True
    _end({"pid": sleeper.pid, "start": sleeper.start})
    assert await alive(session, sleeper.pid, sleeper.start) is False


async def test_refusals_have_their_codes_over_ssh(allocation: Allocation, session: SshSession, folder: Path) -> None:
    _bundle(folder / "bundle.pyz", "")
    for python, code in (
        (allocation.lease.python, "bundle_digest_mismatch"),
        ("/no/such/python", "launch_failed"),
        (shutil.which("true") or "/bin/true", "launch_failed"),
    ):
        with pytest.raises(RemoteError) as caught:
            await launch(
                session,
                python=python,
                bundle_path=str(folder / "bundle.pyz"),
                sha256="0" * 64,
                run_dir=str(folder),
                site_paths=(),
            )
        assert caught.value.code == code
