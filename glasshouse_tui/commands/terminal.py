"""Whether a person sits at a terminal."""

from __future__ import annotations

import os
import sys


def on_terminal() -> bool:
    """True when all three standard streams are a terminal that can draw."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return all(stream is not None and stream.isatty() for stream in streams) and os.environ.get("TERM") != "dumb"


def can_ask() -> bool:
    """True when a person can be asked for something that is not echoed."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty()
