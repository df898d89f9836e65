"""The installed command as a person or a script meets it: real processes, real homes, nothing stubbed."""

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
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)

    def refused(self, code: int, error: str) -> dict[str, str]:
        """The error of a `--json` command that failed so; no traceback anywhere."""
        assert self.code == code, self.out + self.err
        assert "Traceback" not in self.out + self.err
        found: dict[str, str] = self.document["error"]
        assert set(found) == {"code", "message", "hint"}
        assert found["code"] == error
        assert found["message"].endswith((".", "?"))
        assert found["hint"]
        return found


class CommandLine:
    """Runs the installed command off a terminal, for one home."""

    run_id = RUN
    command = COMMAND

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *arguments: str | Path, home: Path | None = None, env: Mapping[str, str] | None = None) -> Done:
        """One command line to its end; `env` joins its environment."""
        return self.process([*COMMAND, "--home", str(home or self.home), *map(str, arguments)], env)

    def python(self, script: str, *arguments: str) -> Done:
        """A Python process that is given this home and these arguments."""
        return self.process([sys.executable, "-c", script, "--home", str(self.home), *arguments])

    def process(self, command: list[str], env: Mapping[str, str] | None = None) -> Done:
        """Any process to its end."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            env=self.environment(env),
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A command line that goes on, its streams as pipes."""
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
        """This environment without settings of ours, and `extra`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GLASSHOUSE_")}
        return {**kept, **(extra or {})}

    def enter_run(self, *, owner: int | None) -> Writer:
        """A run in a new store, owned by a living process or by nobody."""
        writer = Writer(self.home)
        writer.create_run(RUN, preset("demo"))
        if owner is not None:
            writer.claim_runner(RUN, owner)
        return writer


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    """The command line of a home that is not there yet."""
    return CommandLine(tmp_path / "home")
