"""Starting the supervisor on an allocation, detached and from measured bytes, and checking whether it is alive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from engine.errors import RemoteError, WireError
from engine.remote.failures import is_link_failure
from engine.wire import parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.remote.session import SshSession

LAUNCH_SECONDS: Final = 60.0
_HINTS: Final = {
    "bundle_digest_mismatch": "Do not trust this allocation: something changed the staged files.",
    "launched_other_bundle": "Resume the run with the version of glasshouse that started it.",
    "supervisor_ended": "See supervisor.log in its run folder for the reason; a run is never started twice.",
}


class Launched(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A supervisor: its process id, its start time in clock ticks since boot, and the bundle's SHA-256."""

    pid: int
    start: int
    bundle: str


def launcher_source() -> str:
    """The program that runs on the allocation; see its docstring."""
    return Path(__file__).with_name("programs").joinpath("launcher.py").read_text(encoding="utf-8")


def launch_command(python: str, bundle_path: str, sha256: str, run_dir: str, site_paths: Sequence[str]) -> list[str]:
    """The command that launches the supervisor of `run_dir` from a bundle whose SHA-256 must be `sha256`.

    `site_paths` are the folders of third-party Python on the allocation; nothing else is importable there.
    """
    return [python, "-I", "-S", "-B", "-c", launcher_source(), bundle_path, sha256, run_dir, *site_paths]


async def launch(
    session: SshSession,
    *,
    python: str,
    bundle_path: str,
    sha256: str,
    run_dir: str,
    site_paths: Sequence[str],
) -> Launched:
    """Launch the supervisor, or return the one launched earlier; idempotent, so it can be repeated after a lost link.

    Raises `RemoteError`: `bundle_digest_mismatch`, `launched_other_bundle`, `supervisor_ended`,
    `launch_failed` or the link's codes.
    """
    command = launch_command(python, bundle_path, sha256, run_dir, site_paths)
    result = await session.run(command, timeout=LAUNCH_SECONDS)
    try:
        answer = parse(result.stdout)
        if result.exit_status == 0:
            launched = msgspec.convert(answer, Launched, strict=True)
            if launched.bundle == sha256:
                return launched
            answer = {"error": "launched_other_bundle"}
        code = str(answer["error"])
    except (WireError, msgspec.ValidationError, KeyError, TypeError):
        code = "launch_failed"
    raise RemoteError(
        f"The supervisor was not started ({code}, exit status {result.exit_status}).",
        _HINTS.get(code, "Check the allocation's Python and disk."),
        code=code if code in _HINTS else "launch_failed",
    )


async def alive(session: SshSession, pid: int, start: int) -> bool | None:
    """Whether the process `pid` that started at `start` ticks still runs; None if that cannot be determined."""
    try:
        result = await session.run(["cat", f"/proc/{pid}/stat"])
    except RemoteError as error:
        if is_link_failure(error) or error.code == "remote_timeout":
            return None
        raise
    if result.exit_status == 1:
        return False
    if result.exit_status != 0:
        return None
    state, started = parse_stat(result.stdout)
    return state not in {"Z", "X"} and started == start


def parse_stat(line: bytes) -> tuple[str, int]:
    """State letter and start time, in clock ticks since boot, of a `/proc/PID/stat` line (proc(5))."""
    fields = line.rpartition(b")")[2].split()
    try:
        return fields[0].decode("ascii"), int(fields[19])
    except (IndexError, ValueError) as error:
        raise RemoteError("The allocation's /proc cannot be read.", code="remote_failed") from error
