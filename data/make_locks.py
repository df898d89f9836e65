"""Makes `locks/linux-x86_64.txt` anew: `python data/make_locks.py`, where the `local` extra and `uv` are installed.

Versions are those of the worker's distributions as installed here; what only the CUDA build of torch needs is resolved.
Every interpreter in `PYTHONS` must come to the same names and versions, for a run's bundle holds one lock.
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
DISK_GB = 14  # the downloads and what they unpack to, together
OUT = Path(__file__).parent / "locks" / "linux-x86_64.txt"


def resolved(python: str, folder: Path) -> str:
    """The hash-checked requirements for one interpreter."""
    made = folder / f"{python}.txt"
    command = ["uv", "pip", "compile", "--no-config", "--no-header", "--no-annotate", "--generate-hashes", "--quiet"]
    command += ["--only-binary", ":all:", "--python-version", python]
    command += ["--python-platform", f"x86_64-manylinux_{GLIBC.replace('.', '_')}"]
    command += ["-c", str(folder / "constraints.txt"), "-o", str(made), str(folder / "wanted.txt")]
    subprocess.run(command, check=True)
    return made.read_text(encoding="utf-8")


def main() -> None:
    """Resolve for every interpreter, compare, write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pins = [f"{name}=={version.split('+')[0]}\n" for name, version in worker_lock().items()]
        (folder / "constraints.txt").write_text("".join(pins), encoding="utf-8")
        (folder / "wanted.txt").write_text("\n".join(REQUIREMENTS), encoding="utf-8")
        found = [resolved(python, folder) for python in PYTHONS]
    versions = [re.findall(r"^\S+==\S+", text, re.MULTILINE) for text in found]
    if any(one != versions[0] for one in versions):
        raise SystemExit("the interpreters come to different versions")
    lines = dict.fromkeys(line for text in found for line in text.splitlines())
    if list(lines) != found[0].splitlines():
        raise SystemExit("the interpreters come to different hashes")
    head = f"# python: {' '.join(PYTHONS)}\n# machine: x86_64\n# glibc: {GLIBC}\n# cuda: {CUDA}\n# disk-gb: {DISK_GB}\n"
    OUT.write_text(head + found[0], encoding="utf-8")


if __name__ == "__main__":
    main()
