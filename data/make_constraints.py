"""Writes `locks/contributors.txt` again: `python data/make_constraints.py`, in a `.[local,test]` environment with `uv`.

The file names an exact version for everything that such an environment holds on the supported Pythons. Versions are
those installed here, which the suite has run with. What is not installed here, because torch's CPU build needs less or
another Python needs more, has the version of the allocations' lock, or is resolved. There are no hashes, so that a
build of torch for another accelerator fits too.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

from engine.remote.bundle import normalised

OLDEST_PYTHON = "3.11"
NEWEST_PYTHON = "3.13"
EXTRAS = ("local", "test")
LEFT_OUT = ("glasshouse", "pip")  # pip comes with each Python
ROOT = Path(__file__).parents[1]
LOCK = Path(__file__).parent / "locks" / "linux-x86_64.txt"
OUT = Path(__file__).parent / "locks" / "contributors.txt"
HEAD = f"""\
# What the suite was last run with, for Python {OLDEST_PYTHON} to {NEWEST_PYTHON} on Linux:
#   pip install -c data/locks/contributors.txt -e '.[local,test]'
# Made by `python data/make_constraints.py`; never edited by hand.
"""


def known() -> dict[str, str]:
    """The versions of the allocations' lock, and before them those installed here, without labels such as `+cpu`."""
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE))
    here = {normalised(found.name): found.version.split("+")[0] for found in metadata.distributions()}
    return {name: version for name, version in (locked | here).items() if name not in LEFT_OUT}


def resolved(constraints: Path) -> str:
    """The requirements of the project with `EXTRAS`, resolved for every supported Python at once."""
    command = ["uv", "pip", "compile", "--no-config", "--no-header", "--no-annotate", "--quiet", "--universal"]
    command += ["--python-version", OLDEST_PYTHON, "-c", str(constraints), "pyproject.toml"]
    command += [word for extra in EXTRAS for word in ("--extra", extra)]
    command += [word for name in LEFT_OUT for word in ("--no-emit-package", name)]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Resolve and write."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in known().items()), encoding="utf-8")
        OUT.write_text(HEAD + resolved(constraints), encoding="utf-8")


if __name__ == "__main__":
    main()
