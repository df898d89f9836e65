"""`python -m tests.fuzz.atheris_parsers TARGET [libFuzzer options]`: coverage-guided fuzzing of one parser.

`python -m tests.fuzz.atheris_parsers` lists the targets. It needs `atheris` (`pip install atheris`), which is not part
of the `test` extra; without it this prints SKIPPED and exits 0. libFuzzer stores an input that raises anything but
`GlasshouseError` as `crash-…` in the working folder: turn it into a vector or into a case of `test_parsers.py`.
Example: `python -m tests.fuzz.atheris_parsers claims -max_total_time=60 -rss_limit_mb=1024 -timeout=5`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Fuzz the target named by the first argument; the other arguments go to libFuzzer."""
    if importlib.util.find_spec("atheris") is None:
        sys.stderr.write("SKIPPED: atheris is not installed\n")
        return 0
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["engine", "tests.fuzz", "json", "base64", "binascii"]):
        from engine.errors import GlasshouseError
        from tests.fuzz.targets import targets
    known = targets()
    if len(argv) < 2 or argv[1] not in known:
        sys.stderr.write(f"name one of these targets: {', '.join(known)}\n")
        return 2
    target = known[argv[1]]

    def one(data: bytes) -> None:
        try:
            target.read(data)
        except GlasshouseError:
            return

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / f"seed-{number}").write_bytes(seed)
        atheris.Setup([argv[0], *argv[2:], corpus], one)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
