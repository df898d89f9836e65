"""Hash-checked locks: the packages that an allocation installs, for given interpreters and machines."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Final

import msgspec

from engine.errors import RemoteError
from engine.system.resources import data_path
from engine.wire import canonical, sha256_hex

if TYPE_CHECKING:
    from collections.abc import Mapping

SHIPPED: Final = "linux-x86_64.txt"
_HEAD: Final = re.compile(r"# ([a-z-]+): (.+)")
_PIN: Final = re.compile(r"([a-z0-9][a-z0-9-]*)==([A-Za-z0-9.+!]+) \\")
_HASH: Final = re.compile(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?")


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    """pip requirements with a hash for every file, and the environments that they are for.

    `versions` are exact, sorted by normalised name. `pythons` are minor versions such as `3.12`; `glibc` and `cuda` are
    the oldest supported versions; `disk` is the peak use during installation, in bytes.
    """

    name: str
    text: bytes
    versions: dict[str, str]
    pythons: tuple[str, ...]
    machine: str
    glibc: tuple[int, ...]
    cuda: tuple[int, ...] | None
    disk: int

    @property
    def digest(self) -> str:
        """SHA-256 of the text, in hex."""
        return sha256_hex(self.text)


def parse_lock(name: str, text: bytes) -> Lock:
    """A lock from its file; raises `RemoteError` (`lock_invalid`) for a pin without a hash or an invalid line."""
    header: dict[str, str] = {}
    versions: dict[str, str] = {}
    hashes = 1
    for line in text.decode("utf-8", "replace").splitlines():
        if entry := _HEAD.fullmatch(line):
            header[entry[1]] = entry[2]
        elif pin := _PIN.fullmatch(line):
            if not hashes:
                raise _invalid(name)
            versions[pin[1]] = pin[2]
            hashes = 0
        elif _HASH.fullmatch(line) and versions:
            hashes += 1
        else:
            raise _invalid(name)
    if not versions or not hashes:
        raise _invalid(name)
    try:
        return Lock(
            name=name,
            text=text,
            versions=dict(sorted(versions.items())),
            pythons=tuple(header["python"].split()),
            machine=header["machine"],
            glibc=numbers(header["glibc"]),
            cuda=numbers(header["cuda"]) if "cuda" in header else None,
            disk=int(header["disk-gb"]) * 10**9,
        )
    except (KeyError, ValueError) as error:
        raise _invalid(name) from error


@cache
def shipped_lock() -> Lock:
    """The lock that comes with this installation; raises `GlasshouseError` (`install_broken`) without it."""
    return parse_lock(SHIPPED, data_path("locks", SHIPPED).read_bytes())


def lock_of(versions: Mapping[str, str]) -> Lock:
    """A lock to compare an image with, where nothing is installed."""
    return Lock(
        name="worker.lock",
        text=canonical(dict(versions)),
        versions=dict(versions),
        pythons=(),
        machine="",
        glibc=(),
        cuda=None,
        disk=0,
    )


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: `(2, 28)`; raises `ValueError` when there are none."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    if match is None:
        raise ValueError("not a version")
    return tuple(map(int, match[0].split(".")))


def _invalid(name: str) -> RemoteError:
    return RemoteError(f"The lock {name} is not valid.", "Reinstall glasshouse.", code="lock_invalid")
