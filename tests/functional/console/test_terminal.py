"""The console on a real terminal: it starts, resizes, quits, and restores the terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.functional.console.conftest import Story

ROOT = Path(__file__).parents[3]
COMMAND = (sys.executable, "-m", "glasshouse_tui.cli")
TIMEOUT_SECONDS = 90.0
WELCOME = "Nothing has run here yet"

needs_tmux = pytest.mark.skipif(
    shutil.which("tmux") is None, reason="there is no real terminal to test on: install the package tmux"
)


def environment(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "TZ": "UTC", "LC_ALL": "C.UTF-8"} | more


class Tmux:
    """A shell in its own tmux server."""

    def __init__(self, folder: Path) -> None:
        self._socket = f"glasshouse-{uuid.uuid4().hex[:8]}"
        self._folder = folder
        shell = ("env", "-i", *(f"{name}={value}" for name, value in environment().items()), "bash", "--norc")
        self.run("new-session", "-d", "-x", "100", "-y", "30", shlex.join((*shell, "--noprofile")))

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self._socket, "-f", "/dev/null", *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout

    def type(self, *keys: str) -> None:
        self.run("send-keys", *keys)

    def screen(self) -> str:
        return self.run("capture-pane", "-p")

    def until(self, *texts: str) -> str:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            shown = self.screen()
            if all(text in shown for text in texts):
                return shown
            time.sleep(0.1)
        pytest.fail(f"{texts} did not appear:\n{self.screen()}")

    def start(self, *arguments: str) -> None:
        """Start the console; afterwards the shell prints its exit code and the terminal's settings."""
        line = shlex.join((*COMMAND, *arguments))
        self.type(f"clear; {line}; echo \"code=$?\" $(stty -a | grep -o -E ' -?(icanon|echo) ')", "Enter")

    def pid(self) -> int:
        """The id of the console's process."""
        shell = self.run("display-message", "-p", "#{pane_pid}").strip()
        children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        return int(children[-1])

    def is_restored(self) -> bool:
        """True if the terminal is restored: no alternate screen, a cursor, no mouse reports."""
        flags = self.run("display-message", "-p", "#{alternate_on} #{cursor_flag} #{mouse_any_flag}")
        return flags.split() == ["0", "1", "0"]

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.run("kill-server")


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    made = Tmux(tmp_path)
    yield made
    made.close()


@needs_tmux
def test_it_starts_resizes_quits_and_restores_the_terminal(tmux: Tmux, home: Path) -> None:
    tmux.start("--home", str(home))
    tmux.until(WELCOME, "d Demo", "q Quit")
    assert not tmux.is_restored()
    tmux.run("resize-window", "-x", "80", "-y", "24")
    tmux.type("h")
    shown = tmux.until("7B smoke", "1 of 17")
    assert len(shown.splitlines()) <= 24
    assert max(map(len, shown.splitlines())) <= 80
    tmux.type("q")
    tmux.until("code=0", " icanon echo")
    assert tmux.is_restored()


@needs_tmux
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_quits_and_restores_the_terminal(tmux: Tmux, home: Path, number: int, code: int) -> None:
    tmux.start("--home", str(home))
    tmux.until(WELCOME)
    os.kill(tmux.pid(), number)
    shown = tmux.until(f"code={code}", " icanon echo")
    assert "Traceback" not in shown
    assert tmux.is_restored()


@needs_tmux
def test_quitting_during_a_run_reports_that_it_continues_and_a_restart_shows_it(
    tmux: Tmux, home: Path, story: Story
) -> None:
    run_id = story.half("b81e44d0a6c1")
    tmux.start("--home", str(home))
    tmux.until("demo", "75 %")
    tmux.type("Enter")
    tmux.until("600 of 1,200 steps", "✓ verified")
    tmux.type("q")
    tmux.until("code=0", "1 run continues without the console", f"glasshouse watch {run_id}")
    story.train(run_id, "protected", 150)
    tmux.start("--home", str(home))
    tmux.until("750 of 1,200 steps", "✓ verified")
    tmux.type("q")
    tmux.until("code=0")


@needs_tmux
def test_a_crash_restores_the_terminal_and_names_a_log_file(tmux: Tmux, home: Path) -> None:
    broken = (
        "import sys; from glasshouse_tui import cli, poller as p; "  # one line, as it is typed into a shell
        "p.Poller._poll = lambda self: 1 / 0; sys.exit(cli.main())"
    )
    tmux.type(f"clear; {sys.executable} -c {shlex.quote(broken)} --home {home}; echo code=$?", "Enter")
    shown = tmux.until("code=1", "ZeroDivisionError", "crash-")
    assert "Traceback" not in shown
    assert tmux.is_restored()
    (log,) = (home / "logs").glob("crash-*.log")
    assert "ZeroDivisionError" in log.read_text()


class Terminal:
    """A pseudo-terminal that runs the console, to read its raw output."""

    def __init__(self, home: Path, **variables: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [*COMMAND, "--home", str(home)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(**variables),
            preexec_fn=take_terminal,  # noqa: PLW1509
        )
        os.close(slave)
        self.output = b""

    def until(self, condition: Callable[[str], object]) -> str:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.2)[0]:
                self.output += os.read(self.master, 65536)
            text = self.output.decode(errors="replace")
            if condition(text):
                return text
        pytest.fail(f"the expected output did not appear:\n{self.output.decode(errors='replace')[-2000:]}")

    def hang_up(self) -> int:
        """Close the master end, as a lost SSH session does, and return the exit code."""
        os.close(self.master)
        return self.process.wait(TIMEOUT_SECONDS)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_a_lost_terminal_quits_silently(home: Path) -> None:
    terminal = Terminal(home)
    terminal.until(lambda text: WELCOME in plain(text))
    assert terminal.hang_up() == 128 + signal.SIGHUP
    assert not list((home / "logs").glob("*")) if (home / "logs").exists() else True


def test_no_color_disables_colour(home: Path) -> None:
    terminal = Terminal(home, NO_COLOR="1", COLORTERM="truecolor")
    text = terminal.until(lambda text: WELCOME in plain(text))
    terminal.process.terminate()
    terminal.process.wait(TIMEOUT_SECONDS)
    os.close(terminal.master)
    codes = [part for sequence in re.findall(r"\x1b\[([0-9;]*)m", text) for part in sequence.split(";")]
    coloured = {str(number) for number in [*range(30, 39), *range(40, 49), *range(90, 98), *range(100, 108)]}
    assert codes
    assert not coloured & set(codes)
