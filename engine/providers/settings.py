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

FILE: Final = "config.toml"
DEFAULT_IMAGE: Final = "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404"
_ROOT_RULE: Final = "is a folder without `~`, `.`, `..` and a slash at its end"
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
    """How long a pod is looked for by name after an ambiguous answer to its creation."""
    listings_apart: float = 5.0
    terminate: float = 600.0
    silence: float = 3600.0
    """Age of the last heartbeat at which the pod ends itself."""
    helper_idle: float = 30.0
    """How long the process that holds the SDK stays without work."""
    parked: float = 3600.0
    """How long an unanswered creation is looked at again before two clean listings settle it as gone."""


class RunPodSettings(_Settings, frozen=True, kw_only=True):
    """How pods are rented.

    `api`: `sdk` is the `runpod` package (GraphQL), `rest` is REST v2. `image` must be one whose start command installs
    `PUBLIC_KEY` and starts sshd, such as RunPod's official ones. `python` is the interpreter in the image.
    `environment`: `lock` installs the hash-checked lock into a fresh environment, `image` uses the folders in `site`
    as they are. `index` is the package index that pip there asks instead of its default, without credentials. `root`
    holds run folders on the pod, under the login's home unless absolute.
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

    One of `key` (a private key file) and `agent` logs in; an agent only signs and is never forwarded. The rest as in
    `RunPodSettings`.
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
    """The whole file. `host` are static hosts, each a `[[host]]` table."""

    runpod: RunPodSettings = RunPodSettings()
    host: tuple[HostSettings, ...] = ()


def load_settings(home: Path) -> Settings:
    """The home's settings, or the defaults without a file; raises `UsageError` (`config_invalid`)."""
    path = home / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(path, "it cannot be read as text") from error
    try:
        found = msgspec.convert(tomllib.loads(text), Settings, strict=True)
    except tomllib.TOMLDecodeError as error:
        raise _invalid(path, str(error)) from error
    except msgspec.ValidationError as error:
        told = _VALUE.sub("value", str(error))
        raise _invalid(path, told) from None  # its text repeats the value, which may be a key in the wrong place
    fault = _fault(found)
    if fault:
        raise _invalid(path, fault)
    return found


def host_settings(settings: Settings, name: str | None) -> HostSettings:
    """The static host called `name`, or the only one; raises `UsageError` (`host_unknown`) that lists them."""
    found = [host for host in settings.host if name in (None, host.name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(host.name for host in settings.host)
    if not settings.host:
        told, hint = "No host is configured", f"Add a [[host]] table to {FILE}; engine/providers/README.md shows one."
    elif name is None:
        told, hint = "More than one host is configured", f"Name one with --allocation: {names}."
    else:
        told, hint = f"No host called {name!r} is configured", f"Choose one of: {names}."
    raise UsageError(f"{told}.", hint, code="host_unknown")


def environment_of(settings: Settings, provider: str, host: str | None) -> Literal["own", "image", "lock"]:
    """Where an allocation of `provider` has its Python environment from."""
    if provider == "static":
        return host_settings(settings, host).environment
    return settings.runpod.environment if provider == "runpod" else "own"


def _fault(settings: Settings) -> str:
    """What is wrong with settings that have the right types; empty when nothing is."""
    for name, value in msgspec.structs.asdict(settings.runpod.limits).items():
        if not 0 < value < 7 * 24 * 3600:
            return f"runpod.limits.{name} is a number of seconds above zero"
    if not 1 <= settings.runpod.calls_per_minute <= 600:
        return "runpod.calls_per_minute lies between 1 and 600"
    for ceiling in (settings.runpod.max_price, settings.runpod.max_cost):
        if ceiling is not None and not 0 < ceiling < math.inf:
            return "runpod.max_price and runpod.max_cost are numbers of USD above zero"
    if _has_secret(settings.runpod.index):
        return "runpod.index is no address of an index, or holds credentials"
    if len({host.name for host in settings.host}) != len(settings.host):
        return "two hosts have one name"
    places = {"runpod.root": settings.runpod.root} | {f"the root of host {one.name}": one.root for one in settings.host}
    roots = (f"{where} {_ROOT_RULE}" for where, root in places.items() if not _is_root(root))
    return next(filter(None, (*map(_fault_of, settings.host), *roots)), "")


def _fault_of(host: HostSettings) -> str:
    if not _NAME.fullmatch(host.name):
        return f"the host name {host.name!r} is not made of lower-case letters, digits, dots and dashes"
    if (host.key is None) == (not host.agent):
        return f"host {host.name} needs either a key or agent = true"
    if not host.host_key.startswith(("SHA256:", "ssh-", "ecdsa-")):
        return f"host {host.name} has no host key that it could be trusted by"
    if not 0 < host.port < 65536:
        return f"the port of host {host.name} is none"
    if _has_secret(host.index):
        return f"the index of host {host.name} is no address of one, or holds credentials"
    return ""


def _is_root(root: str) -> bool:
    """False for what a run's folder could not be removed from again, or is not where it seems."""
    plain = root.isprintable() and posixpath.normpath(root) == root
    return plain and root not in {".", "/", "//"} and not root.startswith(("~", ".."))


def _has_secret(index: str | None) -> bool:
    """True for what is no plain address: credentials would end up in the database and on the allocation."""
    return index is not None and (_INDEX.fullmatch(index) is None or "@" in index)


def _invalid(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path} is not valid: {why}.", "See engine/providers/README.md for what it may hold.", code="config_invalid"
    )
