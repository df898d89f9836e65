"""Resolves `locks/linux-x86_64.txt` again: `python data/make_locks.py`, with the `local` extra and `uv` installed.

Versions are those of the worker's distributions as installed here; packages that only the CUDA build of torch needs are
resolved. The result must be the same for every interpreter in `PYTHONS`, because a run's bundle contains one lock.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from engine.remote.bundle import REQUIREMENTS, worker_lock

PYTHONS = ("3.11", "3.12", "3.13")
GLIBC = "2.28"
CUDA = "13.0"  # of torch's build on PyPI
DISK_GB = 14  # the downloads and the installed files together
OUT = Path(__file__).parent / "locks" / "linux-x86_64.txt"


def resolved(python: str, folder: Path) -> str:
    """The hash-checked requirements for one interpreter."""
    target = folder / f"{python}.txt"
    command = ["uv", "pip", "compile", "--no-config", "--no-header", "--no-annotate", "--generate-hashes", "--quiet"]
    command += ["--only-binary", ":all:", "--python-version", python]
    command += ["--python-platform", f"x86_64-manylinux_{GLIBC.replace('.', '_')}"]
    command += ["-c", str(folder / "constraints.txt"), "-o", str(target), str(folder / "requirements.txt")]
    subprocess.run(command, check=True)
    return target.read_text(encoding="utf-8")


def main() -> None:
    """Resolve for every interpreter, compare, write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pins = [f"{name}=={version.split('+')[0]}\n" for name, version in worker_lock().items()]
        (folder / "constraints.txt").write_text("".join(pins), encoding="utf-8")
        (folder / "requirements.txt").write_text("\n".join(REQUIREMENTS), encoding="utf-8")
        locks = [resolved(python, folder) for python in PYTHONS]
    versions = [re.findall(r"^\S+==\S+", text, re.MULTILINE) for text in locks]
    if any(other != versions[0] for other in versions):
        raise SystemExit("the lock has different versions for different interpreters")
    lines = dict.fromkeys(line for text in locks for line in text.splitlines())
    if list(lines) != locks[0].splitlines():
        raise SystemExit("the lock has different hashes for different interpreters")
    head = f"# python: {' '.join(PYTHONS)}\n# machine: x86_64\n# glibc: {GLIBC}\n# cuda: {CUDA}\n# disk-gb: {DISK_GB}\n"
    OUT.write_text(head + locks[0], encoding="utf-8")


if __name__ == "__main__":
    main()
