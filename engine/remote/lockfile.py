"""Hash-checked locks: what an allocation installs, and for which interpreters and machines."""

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
    """pip's requirements with a hash for every file, and what they are for.

    `versions` are exact, by normalised name in order. `pythons` are `3.12` and the like; `glibc` and `cuda` the oldest
    that will do; `disk` in bytes is what installing takes at its peak.
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
    """A lock from its file; raises `RemoteError` (`lock_invalid`) for a pin without a hash or anything else in it."""
    told: dict[str, str] = {}
    versions: dict[str, str] = {}
    hashes = 1
    for line in text.decode("utf-8", "replace").splitlines():
        if head := _HEAD.fullmatch(line):
            told[head[1]] = head[2]
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
            pythons=tuple(told["python"].split()),
            machine=told["machine"],
            glibc=numbers(told["glibc"]),
            cuda=numbers(told["cuda"]) if "cuda" in told else None,
            disk=int(told["disk-gb"]) * 10**9,
        )
    except (KeyError, ValueError) as error:
        raise _invalid(name) from error


@cache
def shipped_lock() -> Lock:
    """The lock that comes with this installation; raises `GlasshouseError` (`install_broken`) without it."""
    return parse_lock(SHIPPED, data_path("locks", SHIPPED).read_bytes())


def lock_of(versions: Mapping[str, str]) -> Lock:
    """What an image must hold, where nothing is installed."""
    return Lock(
        name="worker.lock", text=canonical(dict(versions)), versions=dict(versions), pythons=(), machine="", glibc=(),
        cuda=None, disk=0,
    )  # fmt: skip


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: `(2, 28)`; raises `ValueError` when there are none."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    if found is None:
        raise ValueError("no version")
    return tuple(map(int, found[0].split(".")))


def _invalid(name: str) -> RemoteError:
    return RemoteError(f"The lock {name} is not one.", "Install glasshouse again.", code="lock_invalid")
