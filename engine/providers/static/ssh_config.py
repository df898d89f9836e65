"""A host whose address is an alias of ~/.ssh/config: connections do not read that file, and this says what to write.

OpenSSH itself resolves the alias (`ssh -G`). It runs the commands of `Match exec`, so a configuration with one is left
alone.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from engine.providers.settings import HostSettings

MOST_BYTES: Final = 1024 * 1024
SECONDS: Final = 10.0
_LINE: Final = re.compile(r"(?im)^\s*(host|match|include)(?:\s+|\s*=\s*)(.+)$")
_VALUE: Final = re.compile(r"[\x21-\x7e]{1,300}")


def alias_hint(host: HostSettings, file: Path | None = None) -> str:
    """What to write for a host whose address is an alias of the operator's SSH configuration; empty if it is none.

    `file` is that configuration, by default `~/.ssh/config`.
    """
    path = file or Path("~/.ssh/config").expanduser()
    entries = _entries(path)
    if not _is_alias(host.address, entries):
        return ""
    text = f"{host.address} is an alias in {path}, which is not read: everything about a host is in config.toml."
    resolved = _resolved(path, host.address, entries)
    if not resolved:
        return f"{text} Write there what `ssh -G {host.address}` prints as hostname, port, user and identityfile."
    return f"{text} Write there: {resolved}."


def _entries(path: Path) -> list[tuple[str, str]]:
    """The lines that decide what applies to a host: keyword in lower case, and its arguments."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    return [(keyword.lower(), words.strip()) for keyword, words in _LINE.findall(text)]


def _is_alias(address: str, entries: list[tuple[str, str]]) -> bool:
    """Whether a `Host` line names it, other than by a pattern for everything."""
    patterns = [word.strip('"') for keyword, words in entries if keyword == "host" for word in words.split()]
    return any(pattern.strip("*?") and fnmatch.fnmatchcase(address, pattern) for pattern in patterns)


def _resolved(path: Path, alias: str, entries: list[tuple[str, str]]) -> str:
    """Settings for config.toml as OpenSSH resolves the alias; empty where it cannot be asked without side effects."""
    program = shutil.which("ssh")
    runs_commands = any(
        keyword == "include" or "exec" in words.lower() for keyword, words in entries if keyword != "host"
    )
    if program is None or runs_commands or alias.startswith("-"):
        return ""
    command = [program, "-G", "-F", str(path), "--", alias]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    values: dict[str, str] = {}
    for line in done.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        if _VALUE.fullmatch(value) and '"' not in value:
            values.setdefault(keyword, value)
    if done.returncode or not {"hostname", "port", "user"} <= values.keys():
        return ""
    parts = [f'address = "{values["hostname"]}"', f"port = {values['port']}", f'user = "{values["user"]}"']
    parts += [f'key = "{values["identityfile"]}"'] if "identityfile" in values else []
    if values.get("proxyjump", "none") != "none":
        parts.append(f"a [[host.proxy_jump]] table for {values['proxyjump']}")
    return ", ".join(parts)
