"""The operator's settings of providers: `config.toml` in the home, written by hand, read strictly."""

from __future__ import annotations

import math
import posixpath
import re
import tomllib
from pathlib import Path
from typing import Final, Literal

import msgspec

from engine.errors import UsageError
from engine.system.files import read_named

FILE: Final = "config.toml"
MAX_BYTES: Final = 1024 * 1024
DEFAULT_IMAGE: Final = "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404"
_ROOT_RULE: Final = "must be a folder path other than `/`, without `~`, `.`, `..` or a trailing slash"
_INDEX: Final = re.compile(r"(?:https?|file)://[\x21-\x7e]+")
_VALUE: Final = re.compile(r"value '.*'", re.DOTALL)
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


class HostSettings(_Settings, frozen=True, kw_only=True):
    """One SSH host of the operator's own. `host_key` is its public key line or its `SHA256:` fingerprint.

    The login uses either `key` (a private key file) or the SSH `agent`, which only signs and is never forwarded. The
    other fields are as in `RunPodSettings`.
    """

    name: str
    address: str
    user: str
    host_key: str
    port: int = 22
    key: str | None = None
    agent: bool = False
    gpu: str | None = None
    python: str = "python3"
    environment: Literal["lock", "image"] = "lock"
    site: tuple[str, ...] = ()
    index: str | None = None
    root: str = "glasshouse"


class Settings(_Settings, frozen=True, kw_only=True):
    """The whole file. `host` holds the static hosts, one per `[[host]]` table."""

    runpod: RunPodSettings = RunPodSettings()
    host: tuple[HostSettings, ...] = ()


def load_settings(home: Path) -> Settings:
    """The home's settings, or the defaults if there is no file; raises `UsageError` (`config_invalid`)."""
    path = home / FILE
    try:
        text = read_named(path, MAX_BYTES).decode("utf-8")
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(path, "it cannot be read as text") from error
    try:
        settings = msgspec.convert(tomllib.loads(text), Settings, strict=True)
    except tomllib.TOMLDecodeError as error:
        raise _invalid(path, str(error)) from error
    except msgspec.ValidationError as error:
        # The library's text quotes the value, which may be an API key in the wrong place.
        raise _invalid(path, _VALUE.sub("value", str(error))) from None
    problem = _problem(settings)
    if problem:
        raise _invalid(path, problem)
    return settings


def host_settings(settings: Settings, name: str | None) -> HostSettings:
    """The static host called `name`, or the only one; raises `UsageError` (`host_unknown`) that lists them."""
    matching = [host for host in settings.host if name in (None, host.name)]
    if len(matching) == 1:
        return matching[0]
    names = ", ".join(host.name for host in settings.host)
    if not settings.host:
        message, hint = (
            "No host is configured",
            f"Add a [[host]] table to {FILE}; engine/providers/README.md shows one.",
        )
    elif name is None:
        message, hint = "More than one host is configured", f"Name one with --allocation: {names}."
    else:
        message, hint = f"No host called {name!r} is configured", f"Choose one of: {names}."
    raise UsageError(f"{message}.", hint, code="host_unknown")


def environment_of(settings: Settings, provider: str, host: str | None) -> Literal["own", "image", "lock"]:
    """Where an allocation of `provider` gets its Python environment from; see `Lease`."""
    if provider == "static":
        return host_settings(settings, host).environment
    return settings.runpod.environment if provider == "runpod" else "own"


def _problem(settings: Settings) -> str:
    """What is wrong with settings that have the right types; empty when nothing is."""
    for name, value in msgspec.structs.asdict(settings.runpod.limits).items():
        if not 0 < value < 7 * 24 * 3600:
            return f"runpod.limits.{name} must be above zero and below 7 days, in seconds"
    if not 1 <= settings.runpod.calls_per_minute <= 600:
        return "runpod.calls_per_minute must be between 1 and 600"
    for ceiling in (settings.runpod.max_price, settings.runpod.max_cost):
        if ceiling is not None and not 0 < ceiling < math.inf:
            return "runpod.max_price and runpod.max_cost must be above zero, in USD"
    if _has_secret(settings.runpod.index):
        return "runpod.index is not the address of a package index, or it contains credentials"
    if len({host.name for host in settings.host}) != len(settings.host):
        return "two hosts have the same name"
    roots = {"runpod.root": settings.runpod.root} | {f"the root of host {one.name}": one.root for one in settings.host}
    bad_roots = (f"{setting} {_ROOT_RULE}" for setting, root in roots.items() if not _is_root(root))
    return next(filter(None, (*map(_host_problem, settings.host), *bad_roots)), "")


def _host_problem(host: HostSettings) -> str:
    if not _NAME.fullmatch(host.name):
        return f"the host name {host.name!r} may have only lower-case letters, digits, dots, dashes and underscores"
    if (host.key is None) == (not host.agent):
        return f"host {host.name} needs either a key or agent = true"
    if not host.host_key.startswith(("SHA256:", "ssh-", "ecdsa-")):
        return f"host {host.name} has no valid host key: give a SHA256: fingerprint or a public key line"
    if not 0 < host.port < 65536:
        return f"host {host.name} has no valid port"
    if _has_secret(host.index):
        return f"the index of host {host.name} is not the address of a package index, or it contains credentials"
    return ""


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
        "See engine/providers/README.md for the settings that exist.",
        code="config_invalid",
    )
