"""Measures the environment once, as a segment will, for the operator to pin before anything of a run is staged."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from engine.attestation.measurement import listed_environment
from engine.errors import GlasshouseError
from engine.wire import canonical


def main(argv: Sequence[str]) -> int:
    """`measuring --site PATH...`: prints `{"digest", "files", "bytes"}`; exit status 1 when something is unreadable."""
    parser = argparse.ArgumentParser("measuring")
    parser.add_argument("--site", action="append", default=[])
    options = parser.parse_args(argv)
    try:
        measurement = listed_environment(tuple(options.site)).measure()
    except GlasshouseError as error:
        sys.stderr.write(f"{error.code}: {error.message}\n")
        return 1
    sys.stdout.write(
        canonical({"digest": measurement.digest, "files": measurement.files, "bytes": measurement.bytes}).decode()
    )
    return 0
