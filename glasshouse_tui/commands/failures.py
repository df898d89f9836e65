"""From an exception to a report: a code, a sentence, a hint, and the exit code."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from engine.errors import GlasshouseError
from engine.system.clock import utc
from glasshouse_tui.commands.confirm import Declined
from glasshouse_tui.commands.output import plain

INTERRUPTED: Final = 130
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_UNUSABLE: Final = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


@dataclass(frozen=True)
class Failure:
    """A failure as it is reported, as text or with `--json`."""

    code: str
    message: str
    hint: str
    exit_code: int
    is_error: bool = True
    """False for what the user decided: it is reported in its own words alone."""

    def as_document(self) -> dict[str, dict[str, str]]:
        """`{"error": {"code", "message", "hint"}}`."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}

    def as_text(self) -> str:
        """`error: sentence`, with the hint below."""
        if not self.is_error:
            return plain(self.message)
        lines = [f"error: {plain(self.message)}"]
        lines += [f"  {plain(line)}" for line in self.hint.splitlines() if line.strip()]
        return "\n".join(lines)


def explain(error: BaseException, home: Path) -> Failure:
    """The failure behind `error`. The traceback of an unexpected error goes to a log whose path the message names."""
    if isinstance(error, GlasshouseError):
        return Failure(error.code, error.message, error.hint, error.exit_code, is_error=not isinstance(error, Declined))
    if isinstance(error, click.ClickException):
        return _from_click(error)
    if isinstance(error, (click.Abort, KeyboardInterrupt, EOFError)):
        return Failure("interrupted", "Interrupted.", "", INTERRUPTED)
    if isinstance(error, OSError) and error.errno in _FULL:
        return Failure(
            "disk_full",
            f"{_path_of(error)} cannot be written: the disk is full.",
            "Free some space there, or choose another home with --home.",
            1,
        )
    if isinstance(error, OSError) and error.errno in _UNUSABLE:
        return Failure(
            "path_unusable",
            f"{_path_of(error)} cannot be used: {(error.strerror or 'unknown reason').lower()}.",
            "Change its permissions, or choose another path.",
            1,
        )
    return _unexpected(error, home)


def _path_of(error: OSError) -> str:
    return str(error.filename) if error.filename is not None else "The output"


def _from_click(error: click.ClickException) -> Failure:
    context = getattr(error, "ctx", None)
    hint = f"See `{context.command_path} --help`." if isinstance(context, click.Context) else ""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return Failure("usage", f"`{error.ctx.command_path}` needs a command.", hint, 2)
    message = error.format_message().strip()
    message = message if message.endswith((".", "?", "!")) else f"{message}."
    return Failure("usage" if error.exit_code == 2 else "error", message, hint, error.exit_code)


def _unexpected(error: BaseException, home: Path) -> Failure:
    kind = type(error).__name__
    try:
        path = write_crash_log(error, home)
    except OSError:
        return Failure(
            "unexpected",
            f"An unexpected error occurred ({kind}).",
            "Please report it. Its traceback could not be saved: no log file can be written.",
            1,
        )
    return Failure(
        "unexpected",
        f"An unexpected error occurred ({kind}). Its traceback is in {path}.",
        "Please report it and attach that file.",
        1,
    )


def write_crash_log(error: BaseException, home: Path) -> Path:
    """Write the traceback to a new file (0600) in `home/logs`, else in the temporary folder, and return its path."""
    import tempfile
    import traceback

    stamp = utc().strftime("%Y%m%dT%H%M%S.%fZ")
    text = "".join(traceback.format_exception(error))
    for folder in (home / "logs", Path(tempfile.gettempdir())):
        path = folder / f"crash-{stamp}-{os.getpid()}.log"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError:
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return path
    raise OSError(errno.ENOENT, "no folder for a crash log")
