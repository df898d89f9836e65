"""`python -m tests.vectors.make`: regenerates every vector. `--new-base` also recreates the random files in `base/`."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from engine.sealing.adapter import seal_adapter
from engine.sealing.package import seal_package
from engine.sealing.release import release_info, seal_release
from tests.vectors import evidence_cases, honest, log_cases, package_cases, receipt_cases
from tests.vectors.case import Case
from tests.vectors.honest import BASE, VECTORS

TOKEN_BYTES = 2 * 16 * 1024 + 100


def new_base() -> None:
    """Two packages, a release of the first one's keys, and an adapter, all with new content keys."""
    shutil.rmtree(BASE, ignore_errors=True)
    for name in ("package", "other"):
        files: dict[str, bytes | Path] = {
            "tokens.bin": honest.plain(name, TOKEN_BYTES),
            "weights.bin": honest.plain(f"{name} weights", 200),
        }
        sealed = seal_package(
            files,
            BASE / name,
            run_id=honest.RUN,
            plan_digest=honest.digest("plan"),
            policy_digest=honest.digest("policy"),
        )
        (BASE / name / "keys.hex").write_text(sealed.keys.hex() + "\n")
    with (BASE / "adapter.sealed").open("wb") as out:
        key = bytearray(honest.seed("adapter key"))
        recipient = honest.public(honest.receiving("recipient"))
        seal_adapter(memoryview(honest.plain("adapter", 300)), recipient, honest.binding(), key, out)
    with zipfile.ZipFile(BASE / "pickles.pt", "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), b"\x80\x02cos\nsystem\nq\x00.")
    keys = bytearray.fromhex((BASE / "package" / "keys.hex").read_text())
    result = honest.result()
    info = release_info(
        evidence_sha256=result.evidence_sha256,
        policy_sha256=result.policy_sha256,
        manifest_sha256=result.manifest_sha256,
        run_id=honest.RUN,
    )
    (BASE / "release.bin").write_bytes(seal_release(keys, honest.public(honest.receiving("cnf")), info))


def cases() -> Iterator[Case]:
    """Every vector."""
    yield from evidence_cases.cases()
    yield from package_cases.cases()
    yield from receipt_cases.cases()
    yield from log_cases.cases()


def contents() -> dict[str, bytes]:
    """Every file of every vector, by its path below this folder."""
    files: dict[str, bytes] = {}
    for case in cases():
        for name, data in case.contents().items():
            path = f"{case.name}/{name}"
            if path in files:
                raise ValueError(f"{path} is generated twice")
            files[path] = data
    return files


def write(target: Path) -> int:
    """Replace the vectors in `target`; returns the number of files."""
    for old in target.glob("[0-9][0-9]-*"):
        shutil.rmtree(old)
    files = contents()
    for name, data in files.items():
        path = target / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return len(files)


if __name__ == "__main__":
    if "--new-base" in sys.argv:
        new_base()
    sys.stdout.write(f"{write(VECTORS)} files\n")
