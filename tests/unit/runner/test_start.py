from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest

from engine.runner.spawn import spawn_runner
from engine.worker.isolation.binding import BIND_NOW


def test_the_runner_resolves_its_symbols_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the content keys, which lazy binding could copy onto the stack (see `BIND_NOW`)."""
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\nexec cat /proc/self/environ\n")
    interpreter.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.delenv(next(iter(BIND_NOW)), raising=False)
    pid = spawn_runner(tmp_path, "abcdefabcdef")
    with contextlib.suppress(ChildProcessError):  # Popen's finalizer may already have reaped it
        os.waitpid(pid, 0)
    (log,) = (tmp_path / "logs").iterdir()
    words = log.read_bytes().split(b"\0")
    assert {f"{name}={value}".encode() for name, value in BIND_NOW.items()} <= set(words)
