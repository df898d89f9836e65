"""What runs, as digests: the bundle, the lock inside it, and every file of the environment that it imports from.

The environment's digest depends on the content of the files, not on the folders' paths. It covers sources, extension
modules, data, the compiled caches that this interpreter would load, the targets of links outside the folders, and the
files that can redirect an interpreter's imports. `Listing.fingerprint` shows whether any of them was touched since,
even if its content was restored: a file's change time cannot be set back without privileges.
"""

from __future__ import annotations

import errno
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
_MAX_PATH: Final = 200
_SHOWN_PARTS: Final = 3

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


class _Entry(msgspec.Struct, frozen=True):
    """One file or link to hash. `linked` is the target of a link; `stamp` is its packed file status."""

    label: bytes
    kind: Kind
    path: str
    stamp: bytes


def bundle_digest(bundle: bytes) -> str:
    """SHA-256 in hex over the bytes of a bundle."""
    return sha256_hex(bundle)


def stdlib_roots() -> tuple[Path, ...]:
    """The folders of the base interpreter's standard library; the same with and without `-S` or a venv."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    base |= {"installed_base": sys.base_prefix, "installed_platbase": sys.base_exec_prefix}
    paths = (Path(sysconfig.get_path(name, vars=base)).resolve() for name in ("stdlib", "platstdlib"))
    return tuple(dict.fromkeys(path for path in paths if path.is_dir()))


def _libpython() -> Path | None:
    folder, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    if not folder or not name or not str(name).startswith("libpython") or ".so" not in str(name):
        return None
    library = Path(str(folder)) / str(name)
    return library if library.is_file() else None


def _redirections(interpreter: Path) -> Iterator[tuple[bytes, Path]]:
    """Files that are normally absent: an interpreter that finds one imports from elsewhere, even in isolated mode.

    The archive precedes the standard library on every import path; a `._pth` file replaces the whole path.
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
    """Where this interpreter looks for its `pyvenv.cfg`, which names its base installation."""
    return [folder / "pyvenv.cfg" for folder in (interpreter.parent, interpreter.parent.parent)]


def _is_loaded_cache(name: str) -> bool:
    """True for the compiled caches that this interpreter would load."""
    stem, _, tail = name.partition(f".{sys.implementation.cache_tag}")
    return bool(stem) and tail in (".pyc", ".opt-1.pyc", ".opt-2.pyc")


def _stamp(status: os.stat_result) -> bytes:
    times = status.st_mtime_ns, status.st_ctime_ns
    return _STAMP.pack(status.st_dev, status.st_ino, status.st_mode, status.st_size, *times)


class _Walk:
    """Lists one root: what to hash, and how much was skipped. `excluded` are folders that are not part of it."""

    def __init__(self, number: int, root: Path, excluded: frozenset[str], roots: Sequence[str]) -> None:
        self._number = number
        self._root = str(root)
        self._excluded = excluded
        self._roots = roots
        self.skipped = 0

    def entries(self) -> Iterator[_Entry]:
        return self._folder(self._root, self._root, "file", ())

    def _folder(self, folder: str, place: str, kind: Kind, through: tuple[str, ...]) -> Iterator[_Entry]:
        """The entries of `folder`, which is reached as `place`; `through` are the linked folders on the way to it."""
        is_cache = place.endswith(f"/{_CACHE_FOLDER}")
        with os.scandir(folder) as entries:
            for entry in entries:
                here = f"{place}/{entry.name}"
                if entry.is_symlink():
                    yield self._entry(here, entry.path, "link", entry.stat(follow_symlinks=False))
                    yield from self._link_target(here, entry.path, is_cache, through)
                elif entry.is_dir(follow_symlinks=False):
                    if entry.path not in self._excluded or kind == "linked":
                        yield from self._folder(entry.path, here, kind, through)
                elif entry.is_file(follow_symlinks=False) and (not is_cache or _is_loaded_cache(entry.name)):
                    yield self._entry(here, entry.path, kind, entry.stat(follow_symlinks=False))
                else:
                    self.skipped += 1

    def _link_target(self, place: str, link: str, is_cache: bool, through: tuple[str, ...]) -> Iterator[_Entry]:
        """The target of a link: always if it is a file; if it is a folder, unless it is measured under its own path."""
        target = os.path.realpath(link)
        try:
            status = os.stat(target)  # noqa: PTH116  # the text is a path already
        except OSError:
            return
        if stat.S_ISREG(status.st_mode):
            if not is_cache or _is_loaded_cache(place.rpartition("/")[2]):
                yield self._entry(place, target, "linked", status)
        elif not stat.S_ISDIR(status.st_mode):
            self.skipped += 1
        elif not self._is_measured(target) and not any(_within(linked, target) for linked in through):
            yield from self._folder(target, place, "linked", (*through, target))

    def _is_measured(self, folder: str) -> bool:
        inside = any(_within(folder, root) for root in self._roots)
        return inside and not any(_within(folder, other) for other in self._excluded if other not in self._roots)

    def _entry(self, place: str, path: str, kind: Kind, status: os.stat_result) -> _Entry:
        label = b"%d/" % self._number + os.fsencode(place[len(self._root) + 1 :])
        return _Entry(label, kind, path, _stamp(status))


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


class Listing:
    """The files of an environment at one time, not hashed yet. Raises as `list_environment`."""

    def __init__(self, roots: Sequence[Path], interpreter: Path) -> None:
        resolved = [root.resolve() for root in roots]
        names = [str(root) for root in resolved]
        foreign = [str(root / name) for root in stdlib_roots() for name in _FOREIGN]
        excluded = frozenset([*names, *foreign])
        walks = [_Walk(number, root, excluded - {str(root)}, names) for number, root in enumerate(resolved)]
        entries = [_single(b"interpreter", interpreter.resolve())]
        library = _libpython()
        if library is not None:
            entries.append(_single(b"libpython", library.resolve()))
        redirections = {path.resolve(): label for label, path in _redirections(interpreter) if path.exists()}
        entries += [_single(label, path) for path, label in redirections.items()]
        for walk in walks:
            for entry in walk.entries():
                entries.append(entry)
                if len(entries) > _MAX_ENTRIES:
                    raise OSError("more files than the limit")
        self._entries = sorted(entries, key=lambda entry: (entry.label, entry.kind, entry.path))
        self._skipped = sum(walk.skipped for walk in walks)
        self.fingerprint = _fingerprint(self._entries, _environment_files(interpreter))

    def measure(self) -> EnvironmentMeasurement:
        """Hash everything that was listed, in two threads; raises `RefusedError` (`environment_unreadable`)."""
        entries = self._entries
        groups = [entries[start : start + _GROUP] for start in range(0, len(entries), _GROUP)]
        try:
            with ThreadPoolExecutor(_THREADS) as pool:
                hashed = [result for results in pool.map(_hash_group, groups) for result in results]
        except OSError as error:
            raise _unreadable(error) from error
        digest = hashlib.sha256(_DOMAIN)
        for entry, (size, content) in zip(entries, hashed, strict=True):
            fields = (entry.label, entry.kind.encode(), b"%d" % size, content)
            digest.update(b"".join(map(_netstring, fields)))
        files = [size for entry, (size, _) in zip(entries, hashed, strict=True) if entry.kind != "link"]
        return EnvironmentMeasurement(
            digest=digest.hexdigest(),
            files=len(files),
            bytes=sum(files),
            links=len(entries) - len(files),
            skipped=self._skipped,
        )


def _single(label: bytes, path: Path) -> _Entry:
    return _Entry(label, "file", str(path), _stamp(path.stat()))


def _fingerprint(entries: Iterable[_Entry], others: Iterable[Path]) -> str:
    """Changes whenever a listed file is touched, replaced, added or removed."""
    digest = hashlib.sha256(_DOMAIN)
    for entry in entries:
        digest.update(b"".join(map(_netstring, (entry.label, os.fsencode(entry.path), entry.stamp))))
    for path in others:
        stamp = _stamp(path.stat()) if path.exists() else b""
        digest.update(b"".join(map(_netstring, (os.fsencode(path), stamp))))
    return digest.hexdigest()


def _hash(entry: _Entry) -> tuple[int, bytes]:
    if entry.kind == "link":
        target = os.fsencode(os.readlink(entry.path))  # noqa: PTH115  # bytes as the system has them
        return len(target), hashlib.sha256(target).digest()
    descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123  # closes the descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", entry.path)
        if status.st_size < _WHOLE:
            content = file.read()
            return len(content), hashlib.sha256(content).digest()
        return status.st_size, hashlib.file_digest(file, "sha256").digest()


def _hash_group(group: Sequence[_Entry]) -> list[tuple[int, bytes]]:
    hashed = []
    for entry in group:
        try:
            hashed.append(_hash(entry))
        except OSError as error:
            error.filename = error.filename or entry.path  # a failed read does not name its file
            raise
    return hashed


def _netstring(field: bytes) -> bytes:
    return b"%d:%b," % (len(field), field)


def _unreadable(error: OSError) -> RefusedError:
    """The refusal, with the end of the file's path, by which it is found; where it lies here is said to nobody else."""
    name = "/".join(Path(error.filename).parts[-_SHOWN_PARTS:]) if isinstance(error.filename, str) else ""
    path = "".join(char if char.isprintable() else "?" for char in name[-_MAX_PATH:])
    why = error.strerror or str(error)
    return refusal("environment_unreadable", f"{path}: {why}" if path else why)


def list_environment(roots: Sequence[Path], interpreter: Path) -> Listing:
    """Everything below `roots`, and the interpreter (by the path under which it is started).

    The order of `roots` matters, their paths do not. A root inside another is listed once, under its own number; the
    standard library's own `site-packages` is left out unless it is a root. A link is listed with its target path and
    with its target's content. Raises `RefusedError` (`environment_unreadable`).
    """
    try:
        return Listing(roots, interpreter)
    except OSError as error:
        raise _unreadable(error) from error


def listed_environment(sites: tuple[str, ...]) -> Listing:
    """The listing of this interpreter, its standard library and the third-party folders `sites`, in that order."""
    return list_environment([*stdlib_roots(), *map(Path, sites)], Path(sys.executable))
