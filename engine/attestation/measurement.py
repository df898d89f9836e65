"""What runs, as digests: the bundle, the lock inside it, and every file of the environment that it imports
from.

The environment's digest depends on what the files are, not on where they lie. It covers sources, extension
modules, data and the compiled caches that this interpreter would load.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal

import msgspec

from engine.attestation.reasons import refusal
from engine.wire import sha256_hex

_THREADS: Final = 2
_GROUP: Final = 64  # files handed to a thread at once
_WHOLE: Final = 1024 * 1024  # up to here a file is read in one call
_CACHE_FOLDER: Final = "__pycache__"
_FOREIGN: Final = ("site-packages", "dist-packages")

Kind = Literal["file", "link"]


class Measurements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The three digests of a measured launch, SHA-256 in hex."""

    bundle: str
    lock: str
    environment: str


class EnvironmentMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """A digest over an environment, and what it covers. `skipped` counts special files and foreign caches."""

    digest: str
    files: int
    bytes: int
    links: int
    skipped: int


class _Found(msgspec.Struct, frozen=True):
    label: bytes
    kind: Kind
    path: str


def bundle_digest(bundle: bytes) -> str:
    """SHA-256 in hex over the bytes of a bundle."""
    return sha256_hex(bundle)


def stdlib_roots() -> tuple[Path, ...]:
    """The folders of the base interpreter's standard library, the same inside and outside of `-S` and a venv."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    base |= {"installed_base": sys.base_prefix, "installed_platbase": sys.base_exec_prefix}
    paths = (Path(sysconfig.get_path(name, vars=base)).resolve() for name in ("stdlib", "platstdlib"))
    return tuple(dict.fromkeys(path for path in paths if path.is_dir()))


def _libpython() -> Path | None:
    folder, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    if not folder or not name or not str(name).startswith("libpython") or ".so" not in str(name):
        return None
    found = Path(str(folder)) / str(name)
    return found if found.is_file() else None


def _runs(name: str) -> bool:
    """True for the compiled caches that this interpreter would load."""
    stem, _, tail = name.partition(f".{sys.implementation.cache_tag}")
    return bool(stem) and tail in (".pyc", ".opt-1.pyc", ".opt-2.pyc")


class _Walk:
    """Lists one root: what to hash, and how much was passed over."""

    def __init__(self, number: int, root: Path, apart: frozenset[str]) -> None:
        self._number = number
        self._root = str(root)
        self._apart = apart
        self.skipped = 0

    def found(self) -> Iterator[_Found]:
        return self._in(self._root)

    def _in(self, folder: str) -> Iterator[_Found]:
        caches = folder.endswith(f"/{_CACHE_FOLDER}")
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    yield self._one(entry.path, "link")
                elif entry.is_dir(follow_symlinks=False):
                    if entry.path not in self._apart:
                        yield from self._in(entry.path)
                elif entry.is_file(follow_symlinks=False) and (not caches or _runs(entry.name)):
                    yield self._one(entry.path, "file")
                else:
                    self.skipped += 1

    def _one(self, path: str, kind: Kind) -> _Found:
        return _Found(b"%d/" % self._number + os.fsencode(path[len(self._root) + 1 :]), kind, path)


def _hash(found: _Found) -> tuple[int, bytes]:
    if found.kind == "link":
        target = os.fsencode(os.readlink(found.path))  # noqa: PTH115  # bytes as the system has them
        return len(target), hashlib.sha256(target).digest()
    descriptor = os.open(found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123  # closes the descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if status.st_size < _WHOLE:
            content = file.read()
            return len(content), hashlib.sha256(content).digest()
        return status.st_size, hashlib.file_digest(file, "sha256").digest()


def _hash_group(group: Sequence[_Found]) -> list[tuple[int, bytes]]:
    return [_hash(found) for found in group]


def _netstring(field: bytes) -> bytes:
    return b"%d:%b," % (len(field), field)


def environment_digest(roots: Sequence[Path], interpreter: Path) -> EnvironmentMeasurement:
    """Measure every file below `roots` and the interpreter; two threads, seconds per GiB.

    The order of `roots` counts, their places do not. A root inside another is measured once, under its own
    number; the standard library's own `site-packages` is left out unless it is a root. Links are recorded by
    their target and not followed. Raises `RefusedError` (`environment_unreadable`).
    """
    resolved = [root.resolve() for root in roots]
    apart = frozenset(
        [str(root) for root in resolved] + [str(root / name) for root in stdlib_roots() for name in _FOREIGN]
    )
    walks = [_Walk(number, root, apart - {str(root)}) for number, root in enumerate(resolved)]
    try:
        found = [_Found(b"interpreter", "file", str(interpreter.resolve()))]
        library = _libpython()
        if library is not None:
            found.append(_Found(b"libpython", "file", str(library.resolve())))
        for walk in walks:
            found.extend(walk.found())
        found.sort(key=lambda one: one.label)
        groups = [found[start : start + _GROUP] for start in range(0, len(found), _GROUP)]
        with ThreadPoolExecutor(_THREADS) as pool:
            hashed = [result for results in pool.map(_hash_group, groups) for result in results]
    except OSError as error:
        raise refusal("environment_unreadable", error.strerror or "not a regular file") from error
    digest = hashlib.sha256(b"glasshouse/environment/1\n")
    for one, (size, content) in zip(found, hashed, strict=True):
        fields = (one.label, one.kind.encode(), b"%d" % size, content)
        digest.update(b"".join(map(_netstring, fields)))
    files = [size for one, (size, _) in zip(found, hashed, strict=True) if one.kind == "file"]
    return EnvironmentMeasurement(
        digest=digest.hexdigest(),
        files=len(files),
        bytes=sum(files),
        links=len(found) - len(files),
        skipped=sum(walk.skipped for walk in walks),
    )
