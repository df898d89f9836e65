"""`python -m tests.vectors.make`: writes every vector anew. `--new-base` also draws what libraries draw at random."""

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
    """Packages, a release of the first one's keys, and an adapter, all under fresh content keys."""
    shutil.rmtree(BASE, ignore_errors=True)
    for name in ("package", "other"):
        files: dict[str, bytes | Path] = {
            "tokens.bin": honest.plain(name, TOKEN_BYTES), "weights.bin": honest.plain(f"{name} weights", 200),
        }  # fmt: skip
        sealed = seal_package(files, BASE / name, run_id=honest.RUN, plan_digest=honest.digest("plan"),
                              policy_digest=honest.digest("policy"))  # fmt: skip
        (BASE / name / "keys.hex").write_text(sealed.keys.hex() + "\n")
    with (BASE / "adapter.sealed").open("wb") as out:
        key = bytearray(honest.seed("adapter key"))
        recipient = honest.public(honest.receiving("recipient"))
        seal_adapter(memoryview(honest.plain("adapter", 300)), recipient, honest.binding(), key, out)
    with zipfile.ZipFile(BASE / "pickles.pt", "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), b"\x80\x02cos\nsystem\nq\x00.")
    keys = bytearray.fromhex((BASE / "package" / "keys.hex").read_text())
    made = honest.result()
    info = release_info(
        evidence_sha256=made.evidence_sha256, policy_sha256=made.policy_sha256,
        manifest_sha256=made.manifest_sha256, run_id=honest.RUN,
    )  # fmt: skip
    (BASE / "release.bin").write_bytes(seal_release(keys, honest.public(honest.receiving("cnf")), info))


def cases() -> Iterator[Case]:
    """Every vector."""
    yield from evidence_cases.cases()
    yield from package_cases.cases()
    yield from receipt_cases.cases()
    yield from log_cases.cases()


def contents() -> dict[str, bytes]:
    """Every file of every vector, by its path below this folder."""
    found: dict[str, bytes] = {}
    for case in cases():
        for name, data in case.contents().items():
            path = f"{case.name}/{name}"
            if path in found:
                raise ValueError(f"{path} is made twice")
            found[path] = data
    return found


def write(target: Path) -> int:
    """Replace the vectors in `target`; returns how many files there are."""
    for old in target.glob("[0-9][0-9]-*"):
        shutil.rmtree(old)
    made = contents()
    for name, data in made.items():
        path = target / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return len(made)


if __name__ == "__main__":
    if "--new-base" in sys.argv:
        new_base()
    sys.stdout.write(f"{write(VECTORS)} files\n")
