"""The checks of `doctor`: each returns findings and does not raise for what the machine lacks.

No check costs money, and no finding contains a key or token.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import engine
from engine.errors import GlasshouseError

if TYPE_CHECKING:
    from engine.providers.settings import HostSettings, Server, Settings


PYTHON: Final = (3, 11)
MIN_FREE_BYTES: Final = 500_000_000
PROBE_TIMEOUT_SECONDS: Final = 20.0

_HARDENING_PROBE: Final = """
import json, sys
sys.path.insert(0, sys.argv[1])
from engine.worker.isolation.hardening import Options, harden
controls = {name: observed.as_dict() for name, observed in harden(Options()).items()}
sys.stdout.write(json.dumps(controls))
sys.stdout.flush()
"""


def examine(home: Path) -> list[Finding]:
    """All findings about this machine and this home, in display order."""
    findings: list[Finding] = []
    probes: tuple[Callable[[], list[Finding]], ...] = (
        _python,
        _base,
        _local_extra,
        _signing_extra,
        lambda: _home(home),
        lambda: _database(home),
        _loopback,
        _memfd,
        _hardening,
        _terminal,
        lambda: examine_rented(home),
    )
    for probe in probes:
        findings += probe()
    return findings


def _python() -> list[Finding]:
    running = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] >= PYTHON:
        return [Finding("python", "ok", running, needed=True)]
    return [Finding("python", "missing", running, "Install Python 3.11 or newer.", needed=True)]


def _packages(names: tuple[str, ...], *, hint: str, needed: bool) -> list[Finding]:
    findings = []
    for name in names:
        present = installed(name)
        status: Status = "ok" if present else "missing"
        findings.append(Finding(name, status, present or "not installed", "" if present else hint, needed))
    return findings


def _base() -> list[Finding]:
    return _packages(
        ("cryptography", "asyncssh", "textual"),
        hint="Reinstall glasshouse: pip install --force-reinstall glasshouse",
        needed=True,
    )


def _local_extra() -> list[Finding]:
    return _packages(
        ("torch", "transformers", "peft"),
        hint="Training on this machine needs the extra `local`: pip install 'glasshouse[local]'",
        needed=True,
    )


def _signing_extra() -> list[Finding]:
    return _packages(
        ("model_signing",),
        hint="Signing adapters needs the extra `signing`: pip install 'glasshouse[signing]'",
        needed=False,
    )


def _home(home: Path) -> list[Finding]:
    existing = next(path for path in (home, *home.parents) if path.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK) and not _read_only(existing)
    findings = [
        Finding("home", "ok", str(home), needed=True)
        if writable
        else Finding(
            "home",
            "missing",
            f"{home} is not writable",
            "Choose another with --home DIR or GLASSHOUSE_HOME, or change its permissions.",
            needed=True,
        )
    ]
    free = shutil.disk_usage(existing).free
    detail = f"{free / 1e9:.1f} GB free under {existing}"
    if free >= MIN_FREE_BYTES:
        findings.append(Finding("disk", "ok", detail, needed=True))
    else:
        findings.append(Finding("disk", "missing", detail, "Free at least 0.5 GB there.", needed=True))
    return findings


def _read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _database(home: Path) -> list[Finding]:
    from engine.store.connection import connect, schema_version, translated
    from engine.store.home import database_path

    path = database_path(home)
    if not path.exists():
        return [Finding("database", "ok", "none yet; the first run creates it", needed=True)]
    try:
        with translated(path):
            connection = connect(path)
            try:
                number = schema_version(connection, path)
                verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
            finally:
                connection.close()
    except GlasshouseError as error:
        return [Finding("database", "missing", error.message, error.hint, needed=True)]
    if verdict != "ok":
        return [Finding("database", "missing", f"{path} is damaged: {verdict}", f"Move {path} away.", needed=True)]
    return [Finding("database", "ok", f"{path}, schema {number}, intact", needed=True)]


def _loopback() -> list[Finding]:
    try:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
    except OSError as error:
        return [
            Finding(
                "loopback",
                "missing",
                f"no port can be opened on 127.0.0.1: {error.strerror}",
                "Allow it: the local allocation is an SSH server on 127.0.0.1.",
                needed=True,
            )
        ]
    return [Finding("loopback", "ok", "a port can be opened on 127.0.0.1", needed=True)]


def _memfd() -> list[Finding]:
    try:
        os.close(os.memfd_create("glasshouse-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    except (AttributeError, OSError):
        return [
            Finding(
                "memfd",
                "missing",
                "no sealed memory files",
                "The protected segment needs them: use Linux.",
                needed=True,
            )
        ]
    return [Finding("memfd", "ok", "sealed memory files", needed=True)]


def _hardening() -> list[Finding]:
    """All hardening controls, tried in a separate process."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _HARDENING_PROBE, str(Path(engine.__file__).parent.parent)],
            capture_output=True,
            timeout=PROBE_TIMEOUT_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
            cwd="/",  # with -c, the current folder is first on the import path: a json.py there would run
        )
        controls: dict[str, dict[str, str]] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return [Finding("hardening", "unknown", f"the probe did not finish ({type(error).__name__})")]
    return [_control(name, **observed) for name, observed in controls.items()]


def _control(name: str, value: str, detail: str) -> Finding:
    shown = f"{value} ({detail})" if detail else value
    if value == "enforced":
        return Finding(name, "ok", shown)
    return Finding(
        name,
        "missing",
        shown,
        "Optional: allow it in the kernel or for this account. The evidence reports it, and the policy decides.",
    )


def _terminal() -> list[Finding]:
    kind = os.environ.get("TERM", "")
    if not sys.stdout.isatty():
        return [Finding("terminal", "unknown", "stdout is not a terminal; the demo runs headless here")]
    if kind in ("", "dumb"):
        return [
            Finding(
                "terminal",
                "missing",
                f"TERM is {kind or 'not set'}",
                "Set TERM, for example to xterm-256color.",
            )
        ]
    size = shutil.get_terminal_size()
    detail = f"{kind}, {size.columns}x{size.lines}"
    if size.columns < 80 or size.lines < 24:
        return [Finding("terminal", "missing", detail, "Enlarge the terminal: the console needs 80x24 or more.")]
    return [Finding("terminal", "ok", detail)]


Status = Literal["ok", "missing", "unknown"]


@dataclass(frozen=True)
class Finding:
    """The result of one check: its name, status, detail and hint. `needed`: the demo cannot run without it."""

    name: str
    status: Status
    detail: str
    hint: str = ""
    needed: bool = False

    def as_document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.name,
            "status": self.status,
            "detail": self.detail,
            "hint": self.hint,
            "needed": self.needed,
        }


def installed(name: str) -> str | None:
    """A distribution's version if its module can be imported; it is not imported."""
    try:
        return version(name) if find_spec(name) is not None else None
    except (PackageNotFoundError, ValueError):
        return None


BASE_URL: Final = "RUNPOD_API_BASE_URL"
AGENT: Final = "SSH_AUTH_SOCK"
_APIS: Final = {"rest": "REST v2", "sdk": "the SDK (GraphQL)"}


def examine_rented(home: Path) -> list[Finding]:
    """All findings about rented allocations and hosts, in display order; without network access."""
    settings, findings = _config(home)
    if settings is None:
        return findings
    findings += [_key(), _api(settings), _extra(settings), _ceiling(settings)]
    for host in settings.host:
        findings.append(_host(host))
    for fault in settings.faults:
        findings.append(Finding(f"host {fault.name or '?'}", "missing", fault.message, fault.error().hint))
    return findings


def query_provider(home: Path, name: str) -> Finding:
    """Whether renting from a provider would work now: its preflight check, over the network, which costs nothing."""
    from engine.providers import provider_for
    from engine.providers.settings import load_settings

    async def query() -> None:
        provider = provider_for(name, home, load_settings(home))
        try:
            await provider.preflight()
            await provider.reconcile([])  # queries again, where a preflight may use a recent answer
        finally:
            await provider.close()

    try:
        asyncio.run(query())
    except GlasshouseError as error:
        return Finding(f"{name} account", "missing", f"{error.code}: {error.message}", error.hint)
    return Finding(f"{name} account", "ok", "it responds, and nothing was spent")


def _config(home: Path) -> tuple[Settings | None, list[Finding]]:
    from engine.providers.settings import FILE, load_settings

    path = home / FILE
    try:
        settings = load_settings(home)
    except GlasshouseError as error:
        return None, [Finding("config", "missing", error.message, error.hint)]
    return settings, [Finding("config", "ok", str(path) if path.exists() else f"no {path}; the defaults apply")]


def _key() -> Finding:
    from engine.providers.runpod.api.credentials import api_key

    try:
        return Finding("runpod key", "ok", f"in {api_key().source}")
    except GlasshouseError as error:
        return Finding("runpod key", "missing", error.message, f"Needed only for rented pods. {error.hint}")


def _api(settings: Settings) -> Finding:
    chosen = _APIS[settings.runpod.api]
    given = os.environ.get(BASE_URL)
    if not given:
        return Finding("runpod api", "ok", f"{chosen}, {settings.runpod.cloud.lower()} cloud")
    try:
        host = urlsplit(given).hostname
    except ValueError:
        host = None
    if host is None:
        return Finding("runpod api", "missing", f"{BASE_URL} is not a valid URL", f"Correct {BASE_URL}, or unset it.")
    return Finding("runpod api", "ok", f"{chosen} at {host}, from {BASE_URL}")


def _extra(settings: Settings) -> Finding:
    present = installed("runpod")
    if present:
        return Finding("runpod", "ok", present)
    if settings.runpod.api == "rest":
        return Finding("runpod", "ok", 'not installed, and not needed with api = "rest"')
    return Finding(
        "runpod",
        "missing",
        'not installed, and api = "sdk" needs it',
        "Install it: pip install 'glasshouse[runpod]', or set api = \"rest\".",
    )


def _ceiling(settings: Settings) -> Finding:
    own = settings.runpod
    if own.max_cost is None:
        return Finding("ceiling", "unknown", "none in the settings: a rented run needs --max-cost or a preset with one")
    hourly = "" if own.max_price is None else f", {own.max_price:g} USD per hour"
    return Finding("ceiling", "ok", f"{own.max_cost:g} USD per run{hourly}")


def _host(host: HostSettings) -> Finding:
    for jump, server in host.servers[:-1]:
        if (finding := _server(jump, server)).status != "ok":
            return Finding(f"host {host.name}", finding.status, f"{jump}: {finding.detail}", finding.hint)
    finding = _server(f"host {host.name}", host)
    if not host.proxy_jump or finding.status != "ok":
        return finding
    jumps = ", ".join(f"{jump.address}:{jump.port}" for jump in host.proxy_jump)
    return Finding(finding.name, "ok", f"{finding.detail}; through {jumps}, each pinned")


def _server(name: str, host: Server) -> Finding:
    if host.agent:
        socket = os.environ.get(AGENT)
        if socket and Path(socket).is_socket():
            return Finding(name, "ok", "host key pinned; logs in with an SSH agent")
        return Finding(
            name, "missing", "logs in with an SSH agent, but none is running", "Start ssh-agent, then run ssh-add."
        )
    key = Path(host.key or "").expanduser()
    if key.is_file() and os.access(key, os.R_OK):
        return Finding(name, "ok", f"host key pinned; logs in with {key}")
    return Finding(name, "missing", f"its key {key} cannot be read", "Correct `key` of this host in config.toml.")
