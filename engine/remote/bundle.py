"""The worker's bundle: a reproducible zipapp of our own Python code and the lock of its requirements.

The same installation gives the same bytes, whatever the folder, locale, umask or clock: names are sorted, entries are
stored uncompressed, times and modes are fixed. The bundle's identity is the SHA-256 of its bytes.
"""

from __future__ import annotations

import io
import re
import zipfile
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import engine
from engine.errors import MissingExtraError
from engine.wire import canonical, sha256_hex

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MODULES: Final = ("__init__.py", "errors.py", "events.py", "hints.py", "plan.py", "wire.py")
ROOMS: Final = ("attestation", "measure", "sealing", "system", "worker")
REQUIREMENTS: Final = (
    "cryptography",
    "joserfc",
    "msgspec",
    "numpy",
    "peft",
    "rfc8785",
    "safetensors",
    "securesystemslib",
    "torch",
    "transformers",
)
LOCK_NAME: Final = "worker.lock"
_MAIN: Final = b"import sys\n\nfrom engine.worker.main import main\n\nsys.exit(main())\n"
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_UNIX: Final = 3
_REGULAR_0644: Final = 0o100644 << 16


def build_bundle(lock: Mapping[str, str] | None = None) -> bytes:
    """The zipapp that an allocation runs; `lock` defaults to `worker_lock()`, whose errors it raises."""
    entries = dict(_sources(Path(engine.__file__).parent))
    entries["__main__.py"] = _MAIN
    entries[LOCK_NAME] = canonical(dict(worker_lock() if lock is None else lock))
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(entries):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = _UNIX
            entry.external_attr = _REGULAR_0644
            archive.writestr(entry, entries[name])
    return output.getvalue()


def bundle_digest(bundle: bytes) -> str:
    """The bundle's identity: SHA-256 of its bytes, in hex."""
    return sha256_hex(bundle)


def worker_lock() -> dict[str, str]:
    """Name and version of every distribution that the worker needs; raises `MissingExtraError`."""
    return {name: distribution.version for name, distribution in worker_distributions().items()}


@cache
def worker_distributions() -> Mapping[str, metadata.Distribution]:
    """`REQUIREMENTS` and their transitive requirements, as installed here, sorted by normalised name.

    Raises `MissingExtraError` (`extra_missing`) when one of `REQUIREMENTS` is missing. A transitive requirement that is
    not installed is left out.
    """
    missing = sorted(name for name in REQUIREMENTS if _distribution(name) is None)
    if missing:
        raise MissingExtraError(
            f"The worker needs {', '.join(missing)}, which this installation lacks.",
            "Run: pip install 'glasshouse[local]'",
        )
    from packaging.requirements import Requirement  # noqa: PLC0415  # comes with transformers

    distributions: dict[str, metadata.Distribution] = {}
    visited: set[tuple[str, str]] = set()
    pending = [(name, "") for name in REQUIREMENTS]
    while pending:
        name, extra = pending.pop()
        installed = _distribution(name)
        if installed is None or (name, extra) in visited:
            continue
        visited.add((name, extra))
        distributions[name] = installed
        for line in installed.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                pending.extend((normalised(requirement.name), one) for one in ("", *sorted(requirement.extras)))
    return MappingProxyType(dict(sorted(distributions.items())))


def site_paths() -> tuple[str, ...]:
    """The folders from which the worker's distributions are imported here, sorted."""
    folders = {str(Path(str(one.locate_file(""))).resolve()) for one in worker_distributions().values()}
    return tuple(sorted(folders))


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def normalised(name: str) -> str:
    """A distribution's name, normalised as in PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _sources(package: Path) -> Iterator[tuple[str, bytes]]:
    for module in MODULES:
        yield f"engine/{module}", (package / module).read_bytes()
    for room in ROOMS:
        for path in (package / room).rglob("*.py"):
            if path.is_file() and not path.is_symlink():
                yield f"engine/{path.relative_to(package).as_posix()}", path.read_bytes()
