"""The operator's settings of providers: `config.toml` in the home, written by hand, read strictly."""

from __future__ import annotations

import math
import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from engine.errors import UsageError
from engine.system.files import read_named

FILE: Final = "config.toml"
MAX_BYTES: Final = 1024 * 1024
DEFAULT_IMAGE: Final = "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404"
_ROOT_RULE: Final = "must be a folder path other than `/`, without `~`, `.`, `..` or a trailing slash"
_INDEX: Final = re.compile(r"(?:https?|file)://[\x21-\x7e]+")
_VALUE: Final = re.compile(r"value '.*'", re.DOTALL)
_ADDRESS: Final = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9._:%-]{0,252}")
_HINT: Final = "See engine/providers/README.md for the settings that exist."
MOST_JUMPS: Final = 8
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class _Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class RunPodLimits(_Settings, frozen=True, kw_only=True):
    """Times in seconds. Tests shorten them; an operator rarely has a reason to."""

    api: float = 30.0
    provisioning: float = 1200.0
    ssh: float = 300.0
    poll: float = 4.0
    search: float = 90.0
    """How long a pod is searched for by name after an ambiguous answer to its creation."""
    listings_apart: float = 5.0
    terminate: float = 600.0
    silence: float = 3600.0
    """Age of the last heartbeat at which the pod terminates itself."""
    helper_idle: float = 30.0
    """How long the process that holds the SDK stays alive without requests."""
    parked: float = 3600.0
    """How long an unanswered creation may still appear; after that, absence from two listings counts as gone."""
    recheck: float = 15.0
    """How long after its end a pod is looked for again; then each time after twice as long, up to an hour, or a day if
    RunPod never confirmed its termination."""


class RunPodSettings(_Settings, frozen=True, kw_only=True):
    """How pods are rented.

    `api`: `sdk` is the `runpod` package (GraphQL), `rest` is REST v2. `image` must be one whose start command installs
    `PUBLIC_KEY` and starts sshd, such as RunPod's official ones. `python` is the interpreter in the image.
    `environment`: `lock` installs the hash-checked lock into a fresh environment, `image` uses the folders in `site`
    as they are. `index` is the package index that pip uses there instead of its default, without credentials. `root`
    is the parent of run folders on the pod, relative to the login's home unless absolute.
    """

    api: Literal["rest", "sdk"] = "rest"
    cloud: Literal["SECURE", "COMMUNITY"] = "SECURE"
    image: str = DEFAULT_IMAGE
    disk_gb: int | None = None
    gpus: tuple[str, ...] = ()
    max_price: float | None = None
    max_cost: float | None = None
    python: str = "python3"
    environment: Literal["lock", "image"] = "lock"
    site: tuple[str, ...] = ()
    index: str | None = None
    root: str = "glasshouse"
    calls_per_minute: int = 30
    limits: RunPodLimits = RunPodLimits()


class Server(_Settings, frozen=True, kw_only=True):
    """One SSH server of the operator's own. `host_key` is its public key line or its `SHA256:` fingerprint.

    The login uses either `key` (a private key file) or the SSH `agent`, which only signs and is never forwarded.
    """

    address: str
    user: str
    host_key: str
    port: int = 22
    key: str | None = None
    agent: bool = False


class HostSettings(Server, frozen=True, kw_only=True):
    """One host of the operator's own. `proxy_jump` are the servers that lead to it, first to last, each pinned like the
    host itself. The other fields are as in `RunPodSettings`.
    """

    name: str
    gpu: str | None = None
    python: str = "python3"
    environment: Literal["lock", "image"] = "lock"
    site: tuple[str, ...] = ()
    index: str | None = None
    root: str = "glasshouse"
    proxy_jump: tuple[Server, ...] = ()

    @property
    def servers(self) -> tuple[tuple[str, Server], ...]:
        """Every server on the way with its name for a sentence, the host itself last."""
        jumps = [(f"jump {number} of host {self.name}", one) for number, one in enumerate(self.proxy_jump, 1)]
        return (*jumps, (f"host {self.name}", self))


class HostFault(msgspec.Struct, frozen=True, kw_only=True):
    """A `[[host]]` that cannot be used, and why; every other host can. `name` is empty if it has no valid one."""

    name: str
    message: str

    def error(self) -> UsageError:
        """The error for somebody who wants this host (`config_invalid`)."""
        return UsageError(self.message, _HINT, code="config_invalid")


class Settings(_Settings, frozen=True, kw_only=True):
    """The whole file. `host` holds the usable static hosts, one per `[[host]]` table; `faults` the other ones."""

    runpod: RunPodSettings = RunPodSettings()
    host: tuple[HostSettings, ...] = ()
    faults: tuple[HostFault, ...] = ()


class _File(_Settings, frozen=True, kw_only=True):
    """The tables of the file; hosts are read one by one, so that a bad one blocks only itself."""

    runpod: RunPodSettings = RunPodSettings()
    host: tuple[dict[str, Any], ...] = ()


def load_settings(home: Path) -> Settings:
    """The home's settings, or the defaults if there is no file; raises `UsageError` (`config_invalid`).

    What is wrong with one host is in `faults`.
    """
    path = home / FILE
    try:
        text = read_named(path, MAX_BYTES).decode("utf-8")
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(path, "it cannot be read as text") from error
    try:
        tables = msgspec.convert(tomllib.loads(text), _File, strict=True)
    except tomllib.TOMLDecodeError as error:
        raise _invalid(path, str(error)) from error
    except msgspec.ValidationError as error:
        raise _invalid(path, _without_value(error)) from None
    problem = _problem(tables.runpod)
    if problem:
        raise _invalid(path, problem)
    names = [str(table.get("name")) for table in tables.host]
    hosts, faults = list[HostSettings](), list[HostFault]()
    for number, table in enumerate(tables.host, 1):
        read = _host(path, number, table, is_twice=names.count(str(table.get("name"))) > 1)
        if isinstance(read, HostFault):
            faults.append(read)
        else:
            hosts.append(read)
    return Settings(runpod=tables.runpod, host=tuple(hosts), faults=tuple(faults))


def _host(path: Path, number: int, table: dict[str, Any], *, is_twice: bool) -> HostSettings | HostFault:
    """One `[[host]]` table."""
    given = table.get("name")
    name = given if isinstance(given, str) and _NAME.fullmatch(given) else ""
    try:
        host = msgspec.convert(table, HostSettings, strict=True)
    except msgspec.ValidationError as error:
        problem = f"{f'host {name}' if name else f'[[host]] number {number}'}: {_without_value(error)}"
    else:
        problem = f"two hosts have the same name, {name}" if is_twice else _host_problem(host)
        if not problem:
            return host
    return HostFault(name=name, message=_invalid(path, problem).message)


def _without_value(error: msgspec.ValidationError) -> str:
    """The library's text quotes the value, which may be an API key in the wrong place."""
    return _VALUE.sub("value", str(error))


def host_settings(settings: Settings, name: str | None) -> HostSettings:
    """The static host called `name`, or the only one.

    Raises `UsageError`: `config_invalid` if its settings are not valid, `host_unknown`, which lists the hosts.
    """
    everything: list[HostSettings | HostFault] = [*settings.host, *settings.faults]
    matching = [one for one in everything if name is None or one.name == name]
    if matching and isinstance(matching[0], HostFault) and (name is not None or len(matching) == 1):
        raise matching[0].error()
    if len(matching) == 1 and isinstance(matching[0], HostSettings):
        return matching[0]
    names = ", ".join(host.name for host in settings.host)
    if not (settings.host or settings.faults):
        message, hint = (
            "No host is configured",
            f"Add a [[host]] table to {FILE}; engine/providers/README.md shows one.",
        )
    elif name is None:
        message, hint = "More than one host is configured", f"Name one with --allocation: {names}."
        if settings.faults:
            hint += f" Not usable as configured: {', '.join(fault.name or '?' for fault in settings.faults)}."
    else:
        message, hint = f"No host called {name!r} is configured", f"Choose one of: {names}."
    raise UsageError(f"{message}.", hint, code="host_unknown")


def only_host(settings: Settings, name: str | None) -> Settings:
    """The settings with this one host alone, whatever is wrong with others; raises as `host_settings`."""
    return msgspec.structs.replace(settings, host=(host_settings(settings, name),), faults=())


def environment_of(settings: Settings, provider: str, host: str | None) -> Literal["own", "image", "lock"]:
    """Where an allocation of `provider` gets its Python environment from; see `Lease`."""
    if provider == "static":
        return host_settings(settings, host).environment
    return settings.runpod.environment if provider == "runpod" else "own"


def _problem(runpod: RunPodSettings) -> str:
    """What is wrong with settings that have the right types; empty when nothing is."""
    for name, value in msgspec.structs.asdict(runpod.limits).items():
        if not 0 < value < 7 * 24 * 3600:
            return f"runpod.limits.{name} must be above zero and below 7 days, in seconds"
    if not 1 <= runpod.calls_per_minute <= 600:
        return "runpod.calls_per_minute must be between 1 and 600"
    for ceiling in (runpod.max_price, runpod.max_cost):
        if ceiling is not None and not 0 < ceiling < math.inf:
            return "runpod.max_price and runpod.max_cost must be above zero, in USD"
    if _has_secret(runpod.index):
        return "runpod.index is not the address of a package index, or it contains credentials"
    return "" if _is_root(runpod.root) else f"runpod.root {_ROOT_RULE}"


def _host_problem(host: HostSettings) -> str:
    if not _NAME.fullmatch(host.name):
        return f"the host name {host.name!r} may have only lower-case letters, digits, dots, dashes and underscores"
    if problem := next(filter(None, (_server_problem(name, server) for name, server in host.servers)), ""):
        return problem
    if len(host.proxy_jump) > MOST_JUMPS:
        return f"host {host.name} has more than {MOST_JUMPS} jumps"
    if _has_secret(host.index):
        return f"the index of host {host.name} is not the address of a package index, or it contains credentials"
    return "" if _is_root(host.root) else f"the root of host {host.name} {_ROOT_RULE}"


def _server_problem(name: str, server: Server) -> str:
    if not _ADDRESS.fullmatch(server.address):
        return (
            f"{name} has no valid address: give a name or an IP address alone, without user, port, brackets or `ssh://`"
        )
    if (server.key is None) == (not server.agent):
        return f"{name} needs either a key or agent = true"
    if not server.host_key.startswith(("SHA256:", "ssh-", "ecdsa-")):
        return f"{name} has no valid host key: give a SHA256: fingerprint or a public key line"
    return "" if 0 < server.port < 65536 else f"{name} has no valid port"


def _is_root(root: str) -> bool:
    """False where removing a run's folder would be refused, or where the path does not mean what it seems to."""
    is_plain = root.isprintable() and posixpath.normpath(root) == root
    return is_plain and root not in {".", "/", "//"} and not root.startswith(("~", ".."))


def _has_secret(index: str | None) -> bool:
    """True unless it is a plain address: credentials would end up in the database and on the allocation."""
    return index is not None and (_INDEX.fullmatch(index) is None or "@" in index)


def _invalid(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path} is not valid: {why}.",
        _HINT,
        code="config_invalid",
    )
