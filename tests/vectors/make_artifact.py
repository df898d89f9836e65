"""`python -m tests.vectors.make_artifact`: a short pair on this machine, exported to `artifact/` with its references.

For a new format of the row. Needs the `local` extra; about half a minute. The run's home, keys included, is deleted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.vectors.honest import VECTORS

ARTIFACT = VECTORS / "artifact"
PLAN = ("--steps", "20", "--checkpoint-every", "10", "--settling", "2", "--challenge", "kept for the tests")


def main() -> int:
    """Run, export and keep; the exit status is 1 if the row is not clean."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["GLASSHOUSE_HOME"] = home
        ran = subprocess.run(
            _glasshouse("run", "--preset", "demo", *PLAN, "--json"), check=False, stdout=subprocess.DEVNULL
        )
        if ran.returncode != 0:
            return 1
        row = _output("export", "last", "--format", "json")
        operator = _output("key", "show", "--public")
        reference = _output("doctor", "--reference")
    ARTIFACT.mkdir(exist_ok=True)
    (ARTIFACT / "row.json").write_bytes(row)
    (ARTIFACT / "operator.txt").write_bytes(operator)
    (ARTIFACT / "reference.json").write_bytes(reference)
    return 0


def _glasshouse(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("glasshouse")), *arguments]


def _output(*arguments: str) -> bytes:
    return subprocess.run(_glasshouse(*arguments), check=True, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    sys.exit(main())
