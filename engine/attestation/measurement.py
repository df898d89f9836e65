"""What runs, as digests: the bundle, the lock inside it, and every file of the environment that it imports
from.

The environment's digest depends on what the files are, not on where they lie. It covers sources, extension
modules, data, the compiled caches that this interpreter would load, what links lead to outside the folders, and
the files by which an interpreter can be told to look elsewhere. `Listing.fingerprint` tells whether any of them was
touched since, restored or not: a file's change time cannot be set back without privileges.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal

import msgspec

from engine.attestation.reasons import refusal
from engine.errors import RefusedError
from engine.wire import sha256_hex

_THREADS: Final = 2
_DOMAIN: Final = b"glasshouse/environment/2\n"
_STAMP: Final = struct.Struct("=4Q2q")
_GROUP: Final = 64  # files handed to a thread at once
_WHOLE: Final = 1024 * 1024  # up to here a file is read in one call
_CACHE_FOLDER: Final = "__pycache__"
_FOREIGN: Final = ("site-packages", "dist-packages")

_MAX_ENTRIES: Final = 2_000_000

Kind = Literal["file", "link", "linked"]


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
    """One thing to hash. `linked` is what a link leads to; `stamp` is what the file system says of it."""

    label: bytes
    kind: Kind
    path: str
    stamp: bytes


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


def _redirections(interpreter: Path) -> Iterator[tuple[bytes, Path]]:
    """Files that are normally absent: an interpreter that finds one takes its library from elsewhere, even isolated.

    The archive stands before the standard library on every import path; a `._pth` file replaces the whole path.
    """
    archive = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    for prefix in dict.fromkeys((sys.base_prefix, sys.base_exec_prefix)):
        yield b"archive", Path(prefix) / sys.platlibdir / archive
    library = _libpython()
    beside = [interpreter, interpreter.resolve(), *(() if library is None else (library, library.resolve()))]
    for path in dict.fromkeys(beside):
        yield b"pth", path.with_name(f"{path.name}._pth")
        yield b"pth", path.with_suffix("._pth")


def _environment_files(interpreter: Path) -> list[Path]:
    """Where this interpreter looks for its `pyvenv.cfg`, which names the installation that it belongs to."""
    return [folder / "pyvenv.cfg" for folder in (interpreter.parent, interpreter.parent.parent)]


def _runs(name: str) -> bool:
    """True for the compiled caches that this interpreter would load."""
    stem, _, tail = name.partition(f".{sys.implementation.cache_tag}")
    return bool(stem) and tail in (".pyc", ".opt-1.pyc", ".opt-2.pyc")


def _stamp(status: os.stat_result) -> bytes:
    times = status.st_mtime_ns, status.st_ctime_ns
    return _STAMP.pack(status.st_dev, status.st_ino, status.st_mode, status.st_size, *times)


class _Walk:
    """Lists one root: what to hash, and how much was passed over."""

    def __init__(self, number: int, root: Path, apart: frozenset[str], roots: Sequence[str]) -> None:
        self._number = number
        self._root = str(root)
        self._apart = apart
        self._roots = roots
        self.skipped = 0

    def found(self) -> Iterator[_Found]:
        return self._in(self._root, self._root, "file", ())

    def _in(self, folder: str, place: str, kind: Kind, through: tuple[str, ...]) -> Iterator[_Found]:
        """What lies in `folder`, which is reached as `place`; `through` are the linked folders on the way."""
        caches = place.endswith(f"/{_CACHE_FOLDER}")
        with os.scandir(folder) as entries:
            for entry in entries:
                here = f"{place}/{entry.name}"
                if entry.is_symlink():
                    yield self._one(here, entry.path, "link", entry.stat(follow_symlinks=False))
                    yield from self._behind(here, entry.path, caches, through)
                elif entry.is_dir(follow_symlinks=False):
                    if entry.path not in self._apart or kind == "linked":
                        yield from self._in(entry.path, here, kind, through)
                elif entry.is_file(follow_symlinks=False) and (not caches or _runs(entry.name)):
                    yield self._one(here, entry.path, kind, entry.stat(follow_symlinks=False))
                else:
                    self.skipped += 1

    def _behind(self, place: str, link: str, caches: bool, through: tuple[str, ...]) -> Iterator[_Found]:
        """What a link leads to: a file always, a folder unless it is measured under its own name."""
        target = os.path.realpath(link)
        try:
            status = os.stat(target)  # noqa: PTH116  # the text is a path already
        except OSError:
            return
        if stat.S_ISREG(status.st_mode):
            if not caches or _runs(place.rpartition("/")[2]):
                yield self._one(place, target, "linked", status)
        elif not stat.S_ISDIR(status.st_mode):
            self.skipped += 1
        elif not self._is_measured(target) and not any(_within(one, target) for one in through):
            yield from self._in(target, place, "linked", (*through, target))

    def _is_measured(self, folder: str) -> bool:
        inside = any(_within(folder, root) for root in self._roots)
        return inside and not any(_within(folder, one) for one in self._apart if one not in self._roots)

    def _one(self, place: str, path: str, kind: Kind, status: os.stat_result) -> _Found:
        label = b"%d/" % self._number + os.fsencode(place[len(self._root) + 1 :])
        return _Found(label, kind, path, _stamp(status))


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


class Listing:
    """What an environment consists of at one moment, not hashed yet. Raises as `list_environment`."""

    def __init__(self, roots: Sequence[Path], interpreter: Path) -> None:
        resolved = [root.resolve() for root in roots]
        names = [str(root) for root in resolved]
        foreign = [str(root / name) for root in stdlib_roots() for name in _FOREIGN]
        apart = frozenset([*names, *foreign])
        walks = [_Walk(number, root, apart - {str(root)}, names) for number, root in enumerate(resolved)]
        found = [_single(b"interpreter", interpreter.resolve())]
        library = _libpython()
        if library is not None:
            found.append(_single(b"libpython", library.resolve()))
        redirections = {path.resolve(): label for label, path in _redirections(interpreter) if path.exists()}
        found += [_single(label, path) for path, label in redirections.items()]
        for walk in walks:
            for one in walk.found():
                found.append(one)
                if len(found) > _MAX_ENTRIES:
                    raise OSError("more files than the limit")
        self._found = sorted(found, key=lambda one: (one.label, one.kind, one.path))
        self._skipped = sum(walk.skipped for walk in walks)
        self.fingerprint = _fingerprint(self._found, _environment_files(interpreter))

    def measure(self) -> EnvironmentMeasurement:
        """Hash everything that was listed, in two threads; raises `RefusedError` (`environment_unreadable`)."""
        found = self._found
        groups = [found[start : start + _GROUP] for start in range(0, len(found), _GROUP)]
        try:
            with ThreadPoolExecutor(_THREADS) as pool:
                hashed = [result for results in pool.map(_hash_group, groups) for result in results]
        except OSError as error:
            raise _unreadable(error) from error
        digest = hashlib.sha256(_DOMAIN)
        for one, (size, content) in zip(found, hashed, strict=True):
            fields = (one.label, one.kind.encode(), b"%d" % size, content)
            digest.update(b"".join(map(_netstring, fields)))
        files = [size for one, (size, _) in zip(found, hashed, strict=True) if one.kind != "link"]
        return EnvironmentMeasurement(
            digest=digest.hexdigest(),
            files=len(files),
            bytes=sum(files),
            links=len(found) - len(files),
            skipped=self._skipped,
        )


def _single(label: bytes, path: Path) -> _Found:
    return _Found(label, "file", str(path), _stamp(path.stat()))


def _fingerprint(found: Iterable[_Found], others: Iterable[Path]) -> str:
    """Moves whenever something that was listed is touched, replaced, added or removed."""
    digest = hashlib.sha256(_DOMAIN)
    for one in found:
        digest.update(b"".join(map(_netstring, (one.label, os.fsencode(one.path), one.stamp))))
    for path in others:
        stamp = _stamp(path.stat()) if path.exists() else b""
        digest.update(b"".join(map(_netstring, (os.fsencode(path), stamp))))
    return digest.hexdigest()


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


def _unreadable(error: OSError) -> RefusedError:
    return refusal("environment_unreadable", error.strerror or "not a regular file")


def list_environment(roots: Sequence[Path], interpreter: Path) -> Listing:
    """Everything below `roots`, and the interpreter (by the path under which it is started).

    The order of `roots` counts, their places do not. A root inside another is listed once, under its own number; the
    standard library's own `site-packages` is left out unless it is a root. Links count by their target and by what it
    holds. Raises `RefusedError` (`environment_unreadable`).
    """
    try:
        return Listing(roots, interpreter)
    except OSError as error:
        raise _unreadable(error) from error


def environment_digest(roots: Sequence[Path], interpreter: Path) -> EnvironmentMeasurement:
    """List and measure at once; seconds per GiB. Raises `RefusedError` (`environment_unreadable`)."""
    return list_environment(roots, interpreter).measure()


def listed_environment(sites: tuple[str, ...]) -> Listing:
    """Interpreter, standard library and the folders of third-party code, in that order."""
    return list_environment([*stdlib_roots(), *map(Path, sites)], Path(sys.executable))
