"""The installed command, run as a user or a script would: real processes, real homes, nothing stubbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from engine.plan import preset
from engine.store.writer import Writer

ENTRY: Final = Path(sys.executable).with_name("glasshouse")
COMMAND: Final = [str(ENTRY)] if ENTRY.exists() else [sys.executable, "-m", "glasshouse_tui.cli"]
RUN: Final = "a1b2c3d4e5f6"


@dataclass(frozen=True)
class Done:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)

    def refused(self, code: int, error: str) -> dict[str, str]:
        """The error document of a failed `--json` command, checked for its codes and for tracebacks."""
        assert self.code == code, self.out + self.err
        assert "Traceback" not in self.out + self.err
        failure: dict[str, str] = self.document["error"]
        assert set(failure) == {"code", "message", "hint"}
        assert failure["code"] == error
        assert failure["message"].endswith((".", "?"))
        assert failure["hint"]
        return failure


class CommandLine:
    """Runs the installed command off a terminal, for one home."""

    run_id = RUN
    command = COMMAND

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *arguments: str | Path, home: Path | None = None, env: Mapping[str, str] | None = None) -> Done:
        """Run one command line to its end; `env` is added to its environment."""
        return self.process([*COMMAND, "--home", str(home or self.home), *map(str, arguments)], env)

    def python(self, script: str, *arguments: str) -> Done:
        """Run a Python script with this home and these arguments."""
        return self.process([sys.executable, "-c", script, "--home", str(self.home), *arguments])

    def process(self, command: list[str], env: Mapping[str, str] | None = None) -> Done:
        """Run any process to its end."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            env=self.environment(env),
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command line in the background, with pipes for its streams."""
        return subprocess.Popen(
            [*COMMAND, "--home", str(self.home), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(),
        )

    @staticmethod
    def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """This environment without Glasshouse's variables, plus `extra`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GLASSHOUSE_")}
        return {**kept, **(extra or {})}

    def enter_run(self, *, owner: int | None) -> Writer:
        """Create a run in a new store, with process `owner` as its runner, or without a runner."""
        writer = Writer(self.home)
        writer.create_run(RUN, preset("demo"))
        if owner is not None:
            writer.claim_runner(RUN, owner)
        return writer


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    """The command line for a home that does not exist yet."""
    return CommandLine(tmp_path / "home")
